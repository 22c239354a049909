"""The corpus maker on a real local Ray: the same corpus whatever runs where, resumed after a crash, errors that name the source."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from pydantic import TypeAdapter

from actors.corpus import pack_corpus
from jobs.pack import figures_of
from wfray.config.data import PackConfig, Source
from wfray.data.encoding import TokenizerFacts
from wfray.data.shards import PackedCorpus
from wfray.data.stream import MixedStream, heldout
from wfray.data.tokenizer import save_tokenizer
from wfray.runs import sha256_of

pytestmark = pytest.mark.ray
TINY = Path(__file__).parents[2] / "configs" / "pack" / "tiny.yaml"


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        ray.init(num_cpus=2, object_store_memory=200_000_000, include_dashboard=False)
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def config() -> PackConfig:
    return PackConfig.load(TINY)


@pytest.fixture(scope="module")
def packed(cluster: None, config: PackConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny corpus."""
    directory = tmp_path_factory.mktemp("packed") / "corpus"
    tokenizer = save_tokenizer(config.tokenizer, directory / "tokenizer")
    progress: list[float] = []
    pack_corpus(config, tokenizer, directory, lambda share, message: progress.append(share))
    assert len(progress) > 5 and progress == sorted(progress) and progress[-1] == 1
    return directory


def facts_of(directory: Path) -> TokenizerFacts:
    return TokenizerFacts.model_validate(PackedCorpus(directory).index.model_dump())


def quiet(share: float, message: str) -> None:
    """No report."""


def test_the_corpus_is_whole_and_of_its_sources(packed: Path, config: PackConfig) -> None:
    corpus = PackedCorpus(packed)
    corpus.verify()
    assert corpus.source_names == ["encyclopedia", "speeches", "code"]
    for source in config.sources:
        train, held = corpus.split(source.name, "train"), corpus.split(source.name, "heldout")
        assert held.num_rows == config.heldout_rows and train.fill > 0.9
        assert source.max_tokens is None or source.max_tokens <= train.num_tokens < source.max_tokens + 2 * 64 * 64
    batch = MixedStream(corpus, seed=0).take(16)
    assert batch["input_ids"].shape == (16, 64)
    assert (batch["source_ids"][:, 0] == 0).sum() == 8
    assert heldout(corpus, "code", 4)["targets"].max() < corpus.index.vocab_size


def test_a_dead_job_goes_on_at_the_first_missing_shard(packed: Path, config: PackConfig) -> None:
    before = sha256_of(packed)
    shards = sorted((packed / "shards").iterdir())
    lost, damaged, *kept = [path for path in shards if "-train-" in path.name]
    stamps = {path: path.stat().st_mtime_ns for path in kept}
    facts = facts_of(packed)
    (packed / "corpus.json").unlink()
    lost.unlink()
    damaged.write_bytes(damaged.read_bytes()[:100])
    (packed / "shards" / f".{lost.name}.partial-1").write_bytes(b"half")
    pack_corpus(config, facts, packed, quiet)
    assert sha256_of(packed) == before
    assert {path: path.stat().st_mtime_ns for path in kept} == stamps


def test_figures_add_up(packed: Path) -> None:
    figures = figures_of(PackedCorpus(packed).index, 1.0)
    assert json.loads(json.dumps(figures)) == figures
    rows = [row for source in figures["sources"].values() for row in (source["train"], source["heldout"])]
    assert figures["tokens"] == sum(row["tokens"] for row in rows) == 64 * sum(row["rows"] for row in rows)
    assert all(row["fill"] == round(1 - row["padding"] / row["tokens"], 5) for row in rows)


@pytest.mark.parametrize("damage", ["utf8", "field", "empty"])
def test_a_bad_source_in_a_mix_is_named_and_leaves_no_corpus(packed: Path, config: PackConfig, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    if damage == "utf8":
        (folder / "broken.txt").write_bytes(b"abc \xff")
        message = "source bad: .*broken.txt.*not valid UTF-8"
    elif damage == "field":
        (folder / "rows.jsonl").write_text('{"body": "x"}\n', encoding="utf-8")
        message = "source bad: .*rows.jsonl, line 1 has no text field 'text'"
    else:
        (folder / "blank.txt").write_text(" ", encoding="utf-8")
        message = "source bad: none of 1 files holds a document"
    kind = "jsonl" if damage == "field" else "text_files"
    tree = {"kind": kind, "name": "bad", "path": str(folder), "licence": "CC0-1.0", "weight": 1.0}
    bad = TypeAdapter[Source](Source).validate_python(tree)
    mixed = config.model_copy(update={"sources": [*config.sources, bad]})
    directory = tmp_path / "corpus"
    (directory / "tokenizer").mkdir(parents=True)
    (directory / "tokenizer" / "tokenizer.json").write_bytes((packed / "tokenizer" / "tokenizer.json").read_bytes())
    with pytest.raises(ValueError, match=message):
        pack_corpus(mixed, facts_of(packed), directory, quiet)
    with pytest.raises(ValueError, match="no corpus.json"):
        PackedCorpus(directory)
