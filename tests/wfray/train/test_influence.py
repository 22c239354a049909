"""Scores from the student's own gradients: against automatic differentiation of plain logits, and in the direction they promise."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from tests.wfray.data.conftest import write_corpus
from tests.wfray.student.conftest import tiny_model
from tests.wfray.train.workers import run_workers
from wfray.config.convert import Subln
from wfray.config.mixing import InfluenceMixing
from wfray.data.batch import PackedBatch
from wfray.data.corpus import PackedCorpus
from wfray.data.stream import MixedStream, heldout
from wfray.student import convert, hidden_states
from wfray.train import Collective, Replica
from wfray.train.feed import as_tensors
from wfray.train.influence import StudentProbe, damped_scores, influence_scores, inner, next_losses


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def student(request: pytest.FixtureRequest) -> PreTrainedModel:
    model = tiny_model("llama")
    if not request.param:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    return convert(model, Subln(init="ones")).train()


def probe_of(model: PreTrainedModel, micro_rows: int = 3) -> StudentProbe:
    return StudentProbe(Replica(model, torch.float32, Collective()), micro_rows, Collective())


def plain_loss(model: PreTrainedModel, rows: PackedBatch) -> torch.Tensor:
    batch = as_tensors(rows, slice(None))
    logits = hidden_states(model, batch).flatten(0, 1) @ model.get_output_embeddings().weight.t()
    return F.cross_entropy(logits, batch["targets"].flatten().long(), ignore_index=-100)


def test_losses_and_gradients_are_those_of_plain_logits(corpus: PackedCorpus, student: PreTrainedModel) -> None:
    rows, probe = MixedStream(corpus, seed=0).take(7), probe_of(student)
    blocks = [student.get_input_embeddings().weight]
    if student.get_output_embeddings().weight is not blocks[0]:
        blocks.append(student.get_output_embeddings().weight)
    wanted = torch.autograd.grad(plain_loss(student, rows), blocks)
    assert probe.loss(rows) == pytest.approx(plain_loss(student, rows).item(), rel=1e-5)
    gradients = probe.gradients(rows)
    assert len(gradients) == len(wanted)
    for ours, reference in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-6)
    assert all(parameter.grad is None for parameter in student.parameters())


def test_scores_are_the_formula(corpus: PackedCorpus, student: PreTrainedModel) -> None:
    stream = MixedStream(corpus, seed=0)
    stream.take(5)
    before = stream.cursor
    config = InfluenceMixing(kind="influence", probe=["small", "large"], probe_rows=2, rows=3, damping=0.2)
    probe = probe_of(student)
    scores = influence_scores(probe, config, stream, ["large", "small"])
    rows = {name: stream.peek(name, 3) for name in ("large", "small")}
    both = [heldout(corpus, name, 2) for name in ("small", "large")]
    counts = [int((batch["targets"] != -100).sum()) for batch in both]
    parts = [probe.gradients(batch) for batch in both]
    wanted = [sum(g * n for g, n in zip(blocks, counts, strict=True)) / sum(counts) for blocks in zip(*parts, strict=True)]
    own = {name: probe.gradients(batch) for name, batch in rows.items()}
    for name in rows:
        expected = 0.0
        for block, target in enumerate(wanted):
            mean = np.mean([own[other][block].double().square().sum().item() for other in rows])
            norm = own[name][block].double().square().sum().item()
            expected += (own[name][block].double() * target.double()).sum().item() / (0.2 * mean + norm)
        assert scores[name] == pytest.approx(expected, rel=1e-3)
    assert stream.cursor == before
    assert next_losses(probe, 3, stream, ["small"]) == {"small": probe.loss(rows["small"])}


def test_damping_is_relative_and_blocks_add_up() -> None:
    products = {"a": [(2.0, 4.0), (1.0, 1.0)], "b": [(3.0, 0.0), (0.0, 3.0)]}
    assert damped_scores(products, 0.5) == {"a": 2 / (1 + 4) + 1 / (1 + 1), "b": 3 / 1}
    scaled = {name: [(product * 9, norm * 9) for product, norm in blocks] for name, blocks in products.items()}
    assert damped_scores(scaled, 0.5) == pytest.approx(damped_scores(products, 0.5))


def test_a_source_with_the_probes_tokens_scores_highest(tmp_path: Path) -> None:
    """Random text has no structure to share but the tokens; sources of disjoint tokens share none."""
    corpus = write_corpus(tmp_path, {"near": 30, "far": 30}, {"near": 1.0, "far": 1.0}, {"near": (1, 50), "far": (50, 100)})
    model = convert(tiny_model("llama"), Subln(init="ones")).train()
    config = InfluenceMixing(kind="influence", probe=["near"], probe_rows=8, rows=8)
    scores = influence_scores(probe_of(model), config, MixedStream(corpus, seed=0), ["near", "far"])
    assert scores["near"] > 0.1 > 2 * scores["far"]


def test_inner_products_are_summed_in_double_precision() -> None:
    ones = torch.full((3000, 3000), 1.1)
    assert inner(ones, ones) == pytest.approx(ones.numel() * float(torch.tensor(1.1) * torch.tensor(1.1)), rel=1e-12)


def measure(corpus: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Scores and losses on the workers of this group, as between two steps."""
    replica = Replica(convert(tiny_model("llama"), Subln(init="ones")).train(), torch.float32, Collective())
    replica.hold_codes()
    probe, stream = StudentProbe(replica, 2, Collective()), MixedStream(PackedCorpus(corpus), seed=0)
    config = InfluenceMixing(kind="influence", probe=["small"], probe_rows=4, rows=4)
    losses = next_losses(probe, 4, stream, ["large", "small"])
    return influence_scores(probe, config, stream, ["large", "small"]), losses


def test_two_workers_see_the_scores_of_one(corpus: PackedCorpus, tmp_path: Path) -> None:
    alone = measure(corpus.directory)
    both = run_workers(2, measure, tmp_path, corpus.directory)
    assert both[0] == both[1]
    for ours, reference in zip(both[0], alone, strict=True):
        assert ours == pytest.approx(reference, rel=1e-3)
