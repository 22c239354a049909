"""Units and parts: what is held out is never trained on, work is idempotent, budgets are kept, memory is bounded."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from wfray.config.data import JsonLines, Source, TextFiles
from wfray.data.batch import RESPONSE
from wfray.data.build import (
    UnitResult,
    draw_piece,
    pack_part,
    pack_unit,
    reached,
    shard_name,
    split_parts,
    units_wanted,
    up_to,
    windows,
)
from wfray.data.chat_encoding import ChatEncoder
from wfray.data.cleaning import Cleaner
from wfray.data.corpus import map_arrays
from wfray.data.encoding import DocumentEncoder, Encoded, Encoder, TokenizerFacts
from wfray.data.options import PackOptions
from wfray.data.shards import ShardRecord
from wfray.data.sources import Document, Unit, plan_units, read_unit, shuffled
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
    return PackOptions(
        corpus=str(tmp_path / "corpus"),
        cache="/no/cache",
        tokenizer=facts,
        sequence_length=64,
        rows_per_shard=16,
        heldout_rows=8,
        seed=0,
        unit_bytes=2**20,
    )


def read(options: PackOptions, shard: ShardRecord) -> tuple[np.ndarray, np.ndarray]:
    arrays = load_file(options.directory / shard.file)
    return arrays["input_ids"], arrays["segment_ids"]


def plan(source: Source, options: PackOptions) -> list[Unit]:
    return plan_units(source, Path(options.cache), options.seed, options.unit_bytes)


def pack_all(source: Source, options: PackOptions, encoder: DocumentEncoder) -> list[UnitResult]:
    """Every unit that is wanted, one after another."""
    units, results = plan(source, options), []
    while wanted := units_wanted(units, results, options):
        results += [pack_unit(unit, options, encoder) for unit in wanted]
    return results


def listed(source: Source, options: PackOptions) -> list[Document]:
    """All documents, in the order in which a source of one unit is packed."""
    [unit] = plan(source, options)
    return shuffled(source, read_unit(unit, Path(options.cache), "raise", Cleaner(source, None)), options.seed)


def packed_texts(encoder: Encoder, options: PackOptions, shard: ShardRecord) -> list[str]:
    """The text of every segment."""
    input_ids, segment_ids = read(options, shard)
    return [
        encoder.tokenizer.decode(row[segments == segment].tolist(), skip_special_tokens=True)
        for row, segments in zip(input_ids, segment_ids, strict=True)
        for segment in range(1, segments.max() + 1)
    ]


def test_held_out_documents_are_not_trained_on(source: TextFiles, options: PackOptions, encoder: Encoder) -> None:
    [result] = pack_all(source, options, encoder)
    everything = listed(source, options)
    assert result.heldout is not None and result.heldout.num_rows == 8
    num_trained = sum(shard.num_documents for shard in result.train)
    held = everything[: len(everything) - num_trained]
    texts = packed_texts(encoder, options, result.heldout)
    assert 4 < len(texts) == result.heldout.num_documents <= len(held)
    for text in texts:
        owners = [document for document in everything if text in document.text]
        assert owners and owners[0] in held
    trained = "".join(text for shard in result.train for text in packed_texts(encoder, options, shard))
    assert not any(document.text.split()[0] + " " in trained for document in held)


def test_a_unit_holds_all_its_text(source: TextFiles, options: PackOptions, encoder: Encoder) -> None:
    documents = listed(source, options)
    parts = list(split_parts(documents, options.bytes_per_shard))
    assert [document for part in parts for document in part] == documents
    assert len(parts) > 3
    shards = [pack_part(source.name, part, options, encoder) for part in parts]
    expected = sum(len(tokens) for tokens in encoder.encode([document.text for document in documents]))
    assert sum(shard.num_text_tokens for shard in shards) == expected
    assert sum(shard.num_documents for shard in shards) == 60
    input_ids, _ = read(options, shards[0])
    assert (input_ids == encoder.end_id).sum() >= shards[0].num_documents


@pytest.mark.parametrize("unit_bytes", [1000, 5000])
def test_several_units_hold_every_document_once(source: TextFiles, options: PackOptions, encoder: Encoder, unit_bytes: int) -> None:
    options = options.model_copy(update={"unit_bytes": unit_bytes, "heldout_rows": 2})
    results = pack_all(source, options, encoder)
    assert len(results) > 4 and sum(result.heldout is not None for result in results) == 1
    trained = "".join(text for result in results for shard in result.train for text in packed_texts(encoder, options, shard))
    missing = [number for number in range(60) if trained.count(f"Document{number} ") != 1]
    assert 1 <= len(missing) <= 4
    assert pack_all(source, options.model_copy(update={"corpus": options.corpus + "2"}), encoder) == results


def test_packing_again_takes_what_is_whole_and_mends_what_is_not(source: TextFiles, options: PackOptions, encoder: Encoder) -> None:
    part = next(split_parts(listed(source, options), options.bytes_per_shard))
    shard = pack_part(source.name, part, options, encoder)
    path = options.directory / shard.file
    stamp = path.stat().st_mtime_ns
    assert pack_part(source.name, part, options, encoder) == shard and path.stat().st_mtime_ns == stamp
    path.write_bytes(path.read_bytes()[:-1])
    assert pack_part(source.name, part, options, encoder) == shard and sha256_of(path) == shard.sha256
    shutil.rmtree(options.directory)
    assert pack_part(source.name, part, options, encoder) == shard


def test_a_unit_that_was_left_halfway_keeps_every_shard_that_it_made(source: TextFiles, options: PackOptions, encoder: Encoder) -> None:
    [unit] = plan(source, options)
    unit = unit.model_copy(update={"holds_out": True})
    result = pack_unit(unit, options, encoder)
    stamps = [(options.directory / shard.file).stat().st_mtime_ns for shard in result.shards]
    options.receipt(unit, encoder.identity).unlink()
    assert pack_unit(unit, options, encoder) == result and result.heldout is not None
    assert [(options.directory / shard.file).stat().st_mtime_ns for shard in result.shards] == stamps


def test_a_finished_unit_is_not_read_again_unless_its_files_or_shards_changed(
    source: TextFiles, options: PackOptions, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    [unit] = plan(source, options)
    result = pack_unit(unit, options, encoder)
    with monkeypatch.context() as patch:
        patch.setattr("wfray.data.build.read_unit", None)
        assert pack_unit(unit, options, encoder) == result
    (options.directory / result.train[1].file).write_bytes(b"damaged")
    assert pack_unit(unit, options, encoder) == result
    assert sha256_of(options.directory / result.train[1].file) == result.train[1].sha256
    file = Path(source.path) / "7.txt"
    file.write_text(file.read_text(encoding="utf-8") + " and more", encoding="utf-8")
    [changed] = plan(source, options)
    assert pack_unit(changed, options, encoder) != result


@pytest.mark.parametrize(
    "change", [{"sequence_length": 32}, {"seed": 1}, {"packing": "concatenate"}, {"tokenizer": {"tokenizer_sha256": "b" * 64}}]
)
def test_another_option_or_text_is_another_shard(options: PackOptions, change: dict) -> None:
    tokenizer = options.tokenizer.model_copy(update=change.pop("tokenizer", {}))
    other = options.model_copy(update={"tokenizer": tokenizer, **change})
    names = [
        shard_name("texts", "train", texts, given, "rules") for given in (options, other) for texts in (["a", "b"], ["a", "b!"], ["ab"])
    ]
    assert len(set(names)) == 6


def test_concatenation_packs_the_same_text_without_padding(source: TextFiles, options: PackOptions, encoder: Encoder) -> None:
    [unit] = plan(source, options)
    fitted = pack_unit(unit, options, encoder)
    joined = pack_unit(unit, options.model_copy(update={"packing": "concatenate", "corpus": options.corpus + "2"}), encoder)
    assert sum(shard.num_text_tokens for shard in joined.train) == sum(shard.num_text_tokens for shard in fitted.train)
    assert all(shard.num_tokens - shard.num_text_tokens < 64 for shard in joined.train)
    assert sum(shard.num_cut_documents for shard in joined.train) > sum(shard.num_cut_documents for shard in fitted.train)


def test_a_long_document_gives_one_of_its_full_rows_and_a_conversation_its_first() -> None:
    tokens = np.arange(35, dtype=np.int32)
    drawn = [draw_piece(Encoded([tokens], None), 10, bytes([number])) for number in range(50)]
    assert {tuple(piece.tokens[0]) for piece in drawn} == {tuple(range(start, start + 10)) for start in (0, 10, 20)}
    marked = draw_piece(Encoded([tokens], [tokens.astype(np.uint8)]), 10, b"x")
    assert marked.marks is not None and marked.tokens[0].tolist() == marked.marks[0].tolist() == list(range(10))
    short = Encoded([tokens[:10]], None)
    assert draw_piece(short, 10, b"x") is short


def test_conversations_are_packed_with_their_marks(tmp_path: Path, options: PackOptions, tokenizer_directory: Path) -> None:
    rows = [{"question": f"What is {n} + {n}?", "answer": f"It is {2 * n}."} for n in range(200)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    chat = {"kind": "instruction", "prompt": "{question}", "response": "{answer}"}
    source = JsonLines.parse({"kind": "jsonl", "name": "sums", "path": str(tmp_path), "licence": "own", "weight": 1, "chat": chat}, "test")
    encoder = ChatEncoder(tokenizer_directory)
    [result] = pack_all(source, options, encoder)
    shards = [map_arrays(options.directory / shard.file) for shard in result.shards]
    assert result.heldout is not None and all(set(arrays) == {"input_ids", "segment_ids", "marks"} for arrays in shards)
    learned = [
        encoder.tokenizer.decode(arrays["input_ids"][row][arrays["marks"][row] == RESPONSE].tolist())
        for arrays in shards
        for row in range(len(arrays["marks"]))
    ]
    told = " ".join(learned).replace(".It", ". It")
    assert sum(f"It is {2 * n}." in told for n in range(200)) >= 195 and "What" not in told
    shutil.copytree(tokenizer_directory, tmp_path / "other")
    template = tmp_path / "other" / "chat_template.jinja"
    template.write_text(template.read_text(encoding="utf-8") + "\nEnd.", encoding="utf-8")
    mended = pack_all(source, options, ChatEncoder(tmp_path / "other"))
    assert mended != [result], "what was packed with another template is not taken"
    assert pack_all(source, options, encoder) == [result]


def test_another_way_to_split_text_is_another_shard(
    tmp_path: Path, source: TextFiles, options: PackOptions, encoder: Encoder, tokenizer_directory: Path
) -> None:
    rules = json.loads((tokenizer_directory / "tokenizer.json").read_text(encoding="utf-8"))
    (tmp_path / "tokenizer.json").write_text(json.dumps({**rules, "normalizer": {"type": "Lowercase"}}), encoding="utf-8")
    other = Encoder(tmp_path / "tokenizer.json", encoder.end_id)
    before, after = pack_all(source, options, encoder), pack_all(source, options, other)
    assert not {shard.file for result in before for shard in result.shards} & {shard.file for result in after for shard in result.shards}


def test_budgets_end_with_the_shard_that_reaches_them(source: TextFiles, options: PackOptions, encoder: Encoder) -> None:
    limited = source.model_copy(update={"max_tokens": 2000})
    [unit], [free] = plan(limited, options), plan(source, options)
    kept = pack_unit(unit, options, encoder).train
    assert sum(shard.num_tokens for shard in kept) >= 2000 > sum(shard.num_tokens for shard in kept[:-1])
    shards = pack_unit(free, options, encoder).train
    assert up_to(shards, 2000) == kept and up_to(shards, None) == shards
    assert reached(kept, 2000) and not reached(shards, None)


def test_a_budget_asks_for_about_as_many_units_as_it_needs(source: TextFiles, options: PackOptions) -> None:
    options = options.model_copy(update={"unit_bytes": 4000})
    units = plan(source.model_copy(update={"max_tokens": 3500}), options)
    shard = ShardRecord(file="f", sha256="", num_rows=1, num_tokens=1000, num_text_tokens=1, num_documents=1, num_cut_documents=0)
    result = UnitResult(heldout=None, train=[shard], removed={})
    first = result.model_copy(update={"heldout": shard})
    assert len(units) > 8 and units_wanted(plan(source, options), [first], options) == plan(source, options)[1:]
    assert units_wanted(units, [result], options) == [units[1].model_copy(update={"holds_out": True})]
    assert units_wanted(units, [first], options) == units[1:4]
    assert units_wanted(units, [first, result, result], options) == units[3:4]
    assert units_wanted(units, [first, result, result, result], options) == []


def test_a_source_too_small_to_hold_out_is_named(source: TextFiles, options: PackOptions, encoder: Encoder) -> None:
    small = source.model_copy(update={"min_characters": 500})
    with pytest.raises(ValueError, match=r"source texts: \d+ documents \(left out: \d+ too_short\) do not fill 1000 held-out rows"):
        pack_all(small, options.model_copy(update={"heldout_rows": 1000}), encoder)


def test_names_depend_on_no_path(source: TextFiles, options: PackOptions, encoder: Encoder, tmp_path: Path) -> None:
    moved = source.model_copy(update={"path": str(shutil.copytree(source.path, tmp_path / "elsewhere"))})
    other = options.model_copy(update={"corpus": str(tmp_path / "corpus2")})
    assert pack_unit(plan(source, options)[0], options, encoder) == pack_unit(plan(moved, options)[0], other, encoder)


def test_masked_documents_are_in_no_split_and_a_missing_mask_is_an_error(source: TextFiles, options: PackOptions, encoder: Encoder) -> None:
    """Also in the unit that gives the held-out rows."""
    options = options.model_copy(update={"duplicates": True})
    [unit] = plan(source, options)
    with pytest.raises(FileNotFoundError):
        pack_all(source, options, encoder)
    documents = list(read_unit(unit, Path(options.cache), "raise", Cleaner(source, None)))
    options.mask(unit).parent.mkdir(parents=True)
    np.save(options.mask(unit), np.arange(60) % 2 == 0)
    [result] = pack_all(source, options, encoder)
    text = "".join(text for shard in result.shards for text in packed_texts(encoder, options, shard))
    assert result.removed["duplicate"].documents == 30
    assert not any(document.text.split()[0] + " " in text for document in documents[::2])
    assert sum(document.text.split()[0] + " " in text for document in documents[1::2]) >= 20


def test_windows_bound_what_is_held(options: PackOptions) -> None:
    documents = [Document("f", number, "x" * size, size) for number, size in enumerate([10, 0, 200, 30, 70, 5])]
    sizes = [[document.num_bytes for document in window] for window in windows(documents, 100)]
    assert sizes == [[10, 0, 200], [30, 70], [5]]
    assert list(windows([], 100)) == [[]]


@pytest.mark.parametrize("num_bytes", [2_000_000, pytest.param(50_000_000, marks=pytest.mark.slow)])
def test_empty_and_enormous_documents(tmp_path: Path, options: PackOptions, encoder: Encoder, num_bytes: int) -> None:
    """One enormous line, of fifty times the text that is held at once, between short and empty ones: nothing is lost."""
    enormous = "There is a tide in the affairs of men.\n" * (num_bytes // 39)
    texts = ["", "   ", *(f"short {number} " * 40 for number in range(30)), enormous, ""]
    with (tmp_path / "rows.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    source = JsonLines(kind="jsonl", name="texts", path=str(tmp_path), licence="CC0-1.0", weight=1.0)
    wide = options.model_copy(update={"sequence_length": 512, "heldout_rows": 1, "seed": 1, "unit_bytes": max(num_bytes // 50, 2**17)})
    results = pack_all(source, wide, encoder)
    assert sum(removed.documents for result in results for removed in result.removed.values()) == 3
    shards = [shard for result in results for shard in result.train]
    [shard] = [shard for shard in shards if shard.num_cut_documents]
    assert shard.num_text_tokens >= num_bytes // 39 * 10 and shard.num_text_tokens / shard.num_tokens > 0.999
    assert sum(shard.num_documents for shard in shards) < 31


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path, tokenizer_directory: Path) -> None:
    """Resident memory of a process that packs 1 and 20 times as much text, in documents so small that a list of them would show."""
    peaks = {}
    for factor in (1, 20):
        folder = tmp_path / str(factor)
        folder.mkdir()
        for number in range(factor):
            lines = (json.dumps({"text": f"{number} {line} " + "words and more " * 3}) for line in range(4_000))
            (folder / f"{number}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        command = [sys.executable, "-c", PACK_AND_MEASURE, str(folder), str(tokenizer_directory), str(tmp_path / f"corpus{factor}")]
        peaks[factor] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert peaks[20] < 1.1 * peaks[1], peaks


PACK_AND_MEASURE = """
import resource, sys
from pathlib import Path
from wfray.config.data import JsonLines
from wfray.data.build import pack_unit
from wfray.data.options import PackOptions
from wfray.data.encoding import DocumentEncoder, Encoded, Encoder, TokenizerFacts
from wfray.data.sources import plan_units
folder, tokenizer, corpus = sys.argv[1:]
facts = TokenizerFacts(tokenizer_sha256="a" * 64, vocab_size=49152, document_end_id=0)
options = PackOptions(corpus=corpus, cache=corpus, tokenizer=facts, sequence_length=512, rows_per_shard=128, heldout_rows=4,
                      seed=0, unit_bytes=500_000)
source = JsonLines(kind="jsonl", name="s", path=folder, licence="CC0-1.0", weight=1)
encoder = Encoder(Path(tokenizer) / "tokenizer.json", 0)
for unit in plan_units(source, Path(corpus), 0, options.unit_bytes):
    pack_unit(unit, options, encoder)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_many_small_files_take_less_than_ten_times_as_long_as_one(tmp_path: Path, options: PackOptions, encoder: Encoder) -> None:
    texts = [f"{number} " + "some words of text " * 8 for number in range(5000)]
    (tmp_path / "many").mkdir()
    for number, text in enumerate(texts):
        (tmp_path / "many" / f"{number:05}.txt").write_text(text, encoding="utf-8")
    (tmp_path / "one.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    stated = {"name": "texts", "licence": "CC0-1.0", "weight": 1.0}
    sources = [
        JsonLines(kind="jsonl", path=str(tmp_path / "one.jsonl"), **stated),
        TextFiles(kind="text_files", path=str(tmp_path / "many"), **stated),
    ]
    seconds, results = [], []
    for number, source in enumerate(sources):
        given = options.model_copy(update={"corpus": f"{options.corpus}-{number}"})
        began = time.perf_counter()
        results.append(pack_all(source, given, encoder))
        seconds.append(time.perf_counter() - began)
    tokens = [sum(shard.num_text_tokens for result in each for shard in result.train) for each in results]
    assert abs(tokens[0] / tokens[1] - 1) < 0.01
    assert seconds[1] < 10 * seconds[0], seconds
