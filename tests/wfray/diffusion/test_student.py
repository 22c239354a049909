"""The mask token, the output directory, and training through the one trainer: losses fall, restarts are exact to the bit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from tests.wfray.data.conftest import SEQUENCE_LENGTH, smollm2, tokenizer, tokenizer_directory, write_corpus
from tests.wfray.student.conftest import SHAPE
from tests.wfray.train.conftest import Killed
from wfray.config.convert import Subln
from wfray.config.diffuse import DiffuseConfig
from wfray.data.corpus import PackedCorpus
from wfray.data.stream import MixedStream
from wfray.data.tokenizer import tokenizer_sha256
from wfray.diffusion.student import FILE, DiffusionStudent, load_diffuser, prepare_for_inference, read_method
from wfray.objectives import StageLoss
from wfray.quant.bitlinear import BitLinear
from wfray.student import convert, load_student, save_student
from wfray.train import CheckpointStore, Collective, Feed, Replica, StepPlan, Trainer
from wfray.train.optimizer import make_optimizer
from wfray.train.state import TrainingState

__all__ = ["smollm2", "tokenizer", "tokenizer_directory"]
STEP = 8 * SEQUENCE_LENGTH
VOCABULARY = 49152


def config(stage: dict[str, Any] | None = None, **train: Any) -> DiffuseConfig:
    """Ten steps on rows of sixteen tokens."""
    tree = {
        "run": "unused",
        "student": "unused",
        "block_size": 4,
        "sub_block_size": 2,
        "objectives": [{"kind": "cross_entropy"}],
        "train": {
            "tokens": 10 * STEP,
            "batch_tokens": STEP,
            "micro_rows": 4,
            "checkpoint_every_tokens": 3 * STEP,
            "optimizer": {"learning_rate": 1e-2},
            "precision": "float32",
            **train,
        },
        **(stage or {}),
    }
    return DiffuseConfig.parse(tree, "test")


def model_of(vocab_size: int, tied: bool) -> PreTrainedModel:
    """A ternary student of one layer."""
    torch.manual_seed(0)
    settings = AutoConfig.for_model("llama", **{**SHAPE, "num_hidden_layers": 1, "vocab_size": vocab_size}, tie_word_embeddings=tied)
    return convert(AutoModelForCausalLM.from_config(settings), Subln(init="ones"))


@pytest.fixture(scope="module")
def autoregressive(tokenizer_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("students") / "student"
    save_student(model_of(VOCABULARY, tied=True), directory, tokenizer_from=tokenizer_directory)
    return directory


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> PackedCorpus:
    return write_corpus(tmp_path_factory.mktemp("corpus"), {"large": 40, "small": 10}, {"large": 0.7, "small": 0.3})


class Attempt:
    """One attempt at a stage, as a worker makes it."""

    def __init__(self, corpus: PackedCorpus, student: Path, directory: Path, settings: DiffuseConfig, die_at: int | None = None) -> None:
        torch.use_deterministic_algorithms(True)
        self.rows: list[dict[str, Any]] = []
        self.die_at, self.kind, self.source = die_at, DiffusionStudent(settings), student
        self.model = self.kind.load(student)
        collective = Collective()
        replica, optimizer = Replica(self.model, torch.float32, collective), make_optimizer(self.model, settings.train)
        store = CheckpointStore(directory / "checkpoints", collective)
        newest = store.newest()
        progress = store.load(newest, self.model, optimizer) if newest else None
        self.first_step = progress.step if progress else 0
        stream = MixedStream(corpus, seed=0, cursor=progress.cursor if progress else None)
        rows = settings.train.batch_tokens // SEQUENCE_LENGTH
        self.feed = Feed(stream, StepPlan(rows, settings.train.micro_rows, settings.num_steps, self.first_step, 1), None, 0, 1)
        state = progress.state if progress else TrainingState()
        loss = StageLoss(settings.objectives, None, torch.float32)
        self.trainer = Trainer(settings, replica, optimizer, loss, store, collective, self.log, state, forward=self.kind.forward)

    def log(self, **row: Any) -> None:
        self.rows.append(row)
        if row["step"] == self.die_at:
            raise Killed

    def run(self) -> dict[int, float]:
        self.trainer.run(self.feed)
        return self.losses()

    def losses(self) -> dict[int, float]:
        return {row["step"]: row["loss"] for row in self.rows}

    def mask_row(self) -> torch.Tensor:
        return self.model.get_input_embeddings().weight[self.kind.vocab_size].detach()  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def whole(corpus: PackedCorpus, autoregressive: Path, tmp_path_factory: pytest.TempPathFactory) -> Attempt:
    """An attempt that was never interrupted, at its end."""
    attempt = Attempt(corpus, autoregressive, tmp_path_factory.mktemp("whole"), config())
    attempt.run()
    return attempt


def test_the_mask_tokens_embedding_starts_at_the_mean_of_the_vocabulary(autoregressive: Path) -> None:
    kind = DiffusionStudent(config())
    model = kind.load(autoregressive)
    before = load_student(autoregressive).get_input_embeddings().weight
    after = model.get_input_embeddings().weight
    assert after.shape == (VOCABULARY + 1, SHAPE["hidden_size"]) and model.config.vocab_size == VOCABULARY + 1
    assert torch.equal(after[:VOCABULARY], before)
    assert torch.allclose(after[VOCABULARY], before.mean(dim=0))
    assert model.get_output_embeddings().weight is after
    assert kind.tokenizer.mask_token_id == kind.vocab_size == VOCABULARY
    assert kind.tokenizer.decode([VOCABULARY]) == "<|mask|>"


def test_a_free_row_of_a_padded_untied_embedding_becomes_the_masks(tokenizer_directory: Path, tmp_path: Path) -> None:
    save_student(model_of(VOCABULARY + 64, tied=False), tmp_path / "student", tokenizer_from=tokenizer_directory)
    loaded = DiffusionStudent(config()).load(tmp_path / "student")
    assert loaded.config.vocab_size == VOCABULARY + 64
    for table in (loaded.get_input_embeddings(), loaded.get_output_embeddings()):
        assert torch.allclose(table.weight[VOCABULARY], table.weight[:VOCABULARY].mean(dim=0))


def test_losses_fall_and_the_directory_that_is_written_loads_again(whole: Attempt, autoregressive: Path, tmp_path: Path) -> None:
    attempt, losses = whole, list(whole.losses().values())
    assert sum(losses[-3:]) < sum(losses[:3]) - 1.0
    attempt.kind.save(attempt.model, tmp_path / "student", autoregressive, 10 * STEP)
    diffuser = load_diffuser(tmp_path / "student")
    assert torch.equal(diffuser.model.get_input_embeddings().weight[VOCABULARY], attempt.mask_row())  # type: ignore[union-attr]
    saved, trained = diffuser.model.state_dict(), attempt.model.state_dict()
    assert saved.keys() == trained.keys() and all(torch.equal(saved[name], tensor) for name, tensor in trained.items())
    described = json.loads((tmp_path / "student" / "config.json").read_text())
    assert described["wrinklefree"]["diffusion"] == {"block_size": 4, "mask_token_id": VOCABULARY}
    assert diffuser.method.block_size == 4 and diffuser.method.trained_tokens == 10 * STEP
    assert diffuser.tokenizer.chat_template
    assert diffuser.method.tokenizer_sha256 == read_method(tmp_path / "student").tokenizer_sha256 != tokenizer_sha256(diffuser.tokenizer)


def test_a_killed_and_resumed_run_has_the_same_losses_and_keeps_the_trained_mask(
    corpus: PackedCorpus, whole: Attempt, autoregressive: Path, tmp_path: Path
) -> None:
    killed = Attempt(corpus, autoregressive, tmp_path / "killed", config(), die_at=5)
    fresh = killed.mask_row().clone()
    with pytest.raises(Killed):
        killed.run()
    torch.manual_seed(9)
    resumed = Attempt(corpus, autoregressive, tmp_path / "killed", config())
    assert resumed.first_step == 3 and not torch.equal(resumed.mask_row(), fresh)
    resumed.run()
    assert {**killed.losses(), **resumed.losses()} == whole.losses()
    assert torch.equal(resumed.mask_row(), whole.mask_row())


def test_a_block_diffusion_student_goes_on_with_its_mask_token(autoregressive: Path, tmp_path: Path) -> None:
    first = DiffusionStudent(config())
    trained = first.load(autoregressive)
    with torch.no_grad():
        trained.get_input_embeddings().weight[VOCABULARY] = 7.0  # type: ignore[index]
    first.save(trained, tmp_path / "student", autoregressive, 7 * STEP)
    again = DiffusionStudent(config())
    model = again.load(tmp_path / "student")
    assert (model.get_input_embeddings().weight[VOCABULARY] == 7.0).all()
    again.save(model, tmp_path / "more", tmp_path / "student", 3 * STEP)
    assert read_method(tmp_path / "more").trained_tokens == 10 * STEP and again.tokenizer_sha256 == first.tokenizer_sha256
    with pytest.warns(UserWarning, match="block size 8: the student was trained for blocks of 4"):
        wider = DiffusionStudent(config({"block_size": 8}))
        wider.load(tmp_path / "student")
    assert wider.method.block_size == 8
    with pytest.raises(ValueError, match=r"the student's mask token is '<\|mask\|>': set mask_token to that"):
        DiffusionStudent(config({"mask_token": "[M]"})).load(tmp_path / "student")


def test_the_heldout_loss_falls_and_is_the_same_every_time(corpus: PackedCorpus, autoregressive: Path, tmp_path: Path) -> None:
    stop = {"kind": "heldout", "every_tokens": 2 * STEP, "rows_per_source": 2, "patience": 3}
    attempt = Attempt(corpus, autoregressive, tmp_path, config(early_stopping=stop))
    attempt.run()
    losses = [row["heldout_loss"] for row in attempt.rows if "heldout_loss" in row]
    assert len(losses) == 5 and losses[-1] < losses[0]
    again = Attempt(corpus, autoregressive, tmp_path / "again", config(early_stopping=stop))
    again.run()
    assert [row["heldout_loss"] for row in again.rows if "heldout_loss" in row] == losses


def test_what_is_made_ready_is_in_one_place(autoregressive: Path) -> None:
    """Codes do not move with a model, and rotary frequencies keep their digits."""
    model = load_student(autoregressive)
    prepare_for_inference(model, torch.bfloat16, "meta")
    held = [module._held for module in model.modules() if isinstance(module, BitLinear)]
    assert held and all(tensor.device.type == "meta" for pair in held if pair is not None for tensor in pair)
    assert all(parameter.dtype == torch.bfloat16 for parameter in model.parameters())
    assert all(buffer.dtype == torch.float32 for name, buffer in model.named_buffers() if "inv_freq" in name)


def test_answers_end_at_the_tokens_that_the_model_was_made_with(autoregressive: Path, tmp_path: Path) -> None:
    kind = DiffusionStudent(config())
    kind.save(kind.load(autoregressive), tmp_path / "student", autoregressive, STEP)
    end = load_diffuser(tmp_path / "student").tokenizer.eos_token_id
    (tmp_path / "student" / "generation_config.json").write_text('{"eos_token_id": [0, 17]}')
    assert load_diffuser(tmp_path / "student").stop_ids == {0, 17, end}


def test_what_is_no_block_diffusion_student_is_refused(autoregressive: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"holds no {FILE}: it is no block-diffusion student and has no mask token; run jobs.diffuse"):
        load_diffuser(autoregressive)
    kind = DiffusionStudent(config())
    kind.save(kind.load(autoregressive), tmp_path / "student", autoregressive, STEP)
    tokenizer.save_pretrained(tmp_path / "student")
    with pytest.raises(ValueError, match=r"has the mask token None .*dlm_config.json says '<\|mask\|>' \(id 49152\)"):
        load_diffuser(tmp_path / "student")
    with pytest.raises(ValueError, match="is a token of the model's vocabulary already"):
        DiffusionStudent(config({"mask_token": "<|im_end|>"})).load(autoregressive)
