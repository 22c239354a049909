"""Surveys and parts: what is held out is never trained on, work is idempotent, budgets are kept."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from wfray.config.data import TextFiles
from wfray.data.build import PackOptions, draw_piece, pack_part, parts_wanted, split_parts, survey, up_to
from wfray.data.encoding import Encoder, TokenizerFacts
from wfray.data.shards import ShardRecord, shard_path
from wfray.data.sources import list_documents
from wfray.runs import sha256_of

WORDS = "the of and to in a is that for it as was with be by on not he his but at are this have from or had an they which".split()


@pytest.fixture
def source(tmp_path: Path) -> TextFiles:
    """Sixty files of 5 to 300 words, each beginning with its own number."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(60):
        words = generator.choice(WORDS, size=generator.integers(5, 300))
        (folder / f"{number}.txt").write_text(f"Document{number} " + " ".join(words), encoding="utf-8")
    return TextFiles(kind="text_files", name="texts", path=str(folder), licence="CC0-1.0", weight=1.0)


@pytest.fixture
def options(tmp_path: Path, encoder: Encoder) -> PackOptions:
    facts = TokenizerFacts(tokenizer_sha256="a" * 64, vocab_size=49152, document_end_id=encoder.end_id)
    return PackOptions(corpus=str(tmp_path / "corpus"), tokenizer=facts, sequence_length=64, rows_per_shard=16, heldout_rows=8, seed=0)


def read(options: PackOptions, shard: ShardRecord) -> tuple[np.ndarray, np.ndarray]:
    arrays = load_file(options.directory / shard.file)
    return arrays["input_ids"], arrays["segment_ids"]


def test_held_out_documents_are_not_trained_on(source: TextFiles, options: PackOptions, encoder: Encoder) -> None:
    found = survey(source, options, encoder)
    everything = list_documents(source, options.seed)
    held = everything[: len(everything) - len(found.documents)]
    assert found.documents == everything[len(held) :]
    assert found.heldout.num_rows == 8
    input_ids, segment_ids = read(options, found.heldout)
    texts = {document.file: (Path(source.path) / document.file).read_text(encoding="utf-8") for document in everything}
    for row, segments in zip(input_ids, segment_ids, strict=True):
        for segment in range(1, segments.max() + 1):
            text = encoder.tokenizer.decode(row[segments == segment].tolist(), skip_special_tokens=True)
            owners = [document for document in everything if text in texts[document.file]]
            assert owners and owners[0] in held
    assert found.heldout.num_documents == segment_ids.max(axis=1).sum() > 4


def test_a_part_holds_all_its_text(source: TextFiles, options: PackOptions, encoder: Encoder) -> None:
    documents = list_documents(source, options.seed)
    parts = split_parts(source, documents, options)
    assert [document for part in parts for document in part.documents] == documents
    assert len(parts) > 3
    shards = [pack_part(part, options, encoder) for part in parts]
    expected = sum(len(tokens) for tokens in encoder.encode([(Path(source.path) / d.file).read_text(encoding="utf-8") for d in documents]))
    assert sum(shard.num_text_tokens for shard in shards) == expected
    assert sum(shard.num_documents for shard in shards) == 60
    input_ids, _ = read(options, shards[0])
    assert (input_ids == encoder.end_id).sum() >= shards[0].num_documents


def test_packing_again_takes_what_is_whole_and_mends_what_is_not(source: TextFiles, options: PackOptions, encoder: Encoder) -> None:
    part = split_parts(source, list_documents(source, 0), options)[0]
    shard = pack_part(part, options, encoder)
    path = options.directory / shard.file
    stamp = path.stat().st_mtime_ns
    assert pack_part(part, options, encoder) == shard and path.stat().st_mtime_ns == stamp
    path.write_bytes(path.read_bytes()[:-1])
    assert pack_part(part, options, encoder) == shard and sha256_of(path) == shard.sha256
    shutil.rmtree(options.directory)
    assert pack_part(part, options, encoder) == shard


@pytest.mark.parametrize("change", [{"sequence_length": 32}, {"seed": 1}, {"tokenizer": {"tokenizer_sha256": "b" * 64}}])
def test_another_option_or_text_is_another_shard(source: TextFiles, options: PackOptions, encoder: Encoder, change: dict) -> None:
    part = split_parts(source, list_documents(source, 0), options)[0]
    first = pack_part(part, options, encoder)
    tokenizer = options.tokenizer.model_copy(update=change.pop("tokenizer", {}))
    other = pack_part(part, options.model_copy(update={"tokenizer": tokenizer, **change}), encoder)
    file = Path(source.path) / part.documents[0].file
    file.write_text(file.read_text(encoding="utf-8") + "!", encoding="utf-8")
    assert len({first.file, other.file, pack_part(part, options, encoder).file}) == 3


def test_a_long_document_gives_one_of_its_full_rows() -> None:
    tokens = np.arange(35, dtype=np.int32)
    drawn = {tuple(draw_piece(tokens, 10, bytes([number]))) for number in range(50)}
    assert drawn == {tuple(range(start, start + 10)) for start in (0, 10, 20)}
    assert draw_piece(tokens[:10], 10, b"x").tolist() == list(range(10))


def test_budgets_end_with_the_shard_that_reaches_them(source: TextFiles, options: PackOptions, encoder: Encoder) -> None:
    parts = split_parts(source, list_documents(source, 0), options)
    shards = [pack_part(part, options, encoder) for part in parts]
    limited = source.model_copy(update={"max_tokens": 2000})
    kept = up_to(shards, 2000)
    assert sum(shard.num_tokens for shard in kept) >= 2000 > sum(shard.num_tokens for shard in kept[:-1])
    assert up_to(shards, None) == shards and parts_wanted(source, parts, [], options) == parts
    assert parts_wanted(limited, parts, [], options) == parts[:3]
    assert parts_wanted(limited, parts, shards[:1], options) == parts[1:3]
    assert parts_wanted(limited, parts, kept, options) == []


def test_a_source_too_small_to_hold_out_is_named(source: TextFiles, options: PackOptions, encoder: Encoder) -> None:
    with pytest.raises(ValueError, match="source texts: 60 documents do not fill 1000 held-out rows"):
        survey(source, options.model_copy(update={"heldout_rows": 1000}), encoder)


def test_names_depend_on_no_path(source: TextFiles, options: PackOptions, encoder: Encoder, tmp_path: Path) -> None:
    moved = shutil.copytree(source.path, tmp_path / "elsewhere")
    part = split_parts(source, list_documents(source, 0), options)[0]
    other = source.model_copy(update={"path": str(moved)})
    again = split_parts(other, list_documents(other, 0), options)[0]
    shard = pack_part(part, options, encoder)
    assert shard_path(options.directory, Path(shard.file).stem).exists()
    assert pack_part(again, options, encoder) == shard
