"""From rows of a data set to a mixed stream: conversations packed beside plain text, loss on their responses alone."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wfray.config.chat import Classification, Instruction
from wfray.config.data import JsonLines, PackConfig, Parquet, RowSource, TextFiles
from wfray.data.batch import LABEL, NO_TARGET, label_spans
from wfray.data.build import pack_unit, units_wanted
from wfray.data.chat_encoding import ChatEncoder
from wfray.data.cleaning import Cleaner
from wfray.data.conversations import Conversation, Turn, conversation_of
from wfray.data.corpus import PackedCorpus
from wfray.data.encoding import DocumentEncoder, Encoder, TokenizerFacts
from wfray.data.options import PackOptions
from wfray.data.shards import CorpusIndex, SourceIndex, SplitIndex, write_index
from wfray.data.sources import plan_units, read_unit
from wfray.data.stream import MixedStream, heldout

INSTRUCTION = Instruction(kind="instruction", prompt="{question}", response="{answer}", system="Be exact.")
ROWS = [{"question": f"What is {n} + {n}?", "answer": f"{n} and {n} is {2 * n}." * (1 + 40 * (n == 7)), "good": n % 2} for n in range(120)]


@pytest.fixture
def options(tmp_path: Path, encoder: Encoder) -> PackOptions:
    facts = TokenizerFacts(tokenizer_sha256="a" * 64, vocab_size=49152, document_end_id=encoder.end_id)
    return PackOptions(
        corpus=str(tmp_path / "corpus"), cache="/no", tokenizer=facts, sequence_length=128, rows_per_shard=8, heldout_rows=3, seed=0,
        unit_bytes=2**20,
    )  # fmt: skip


def jsonl(tmp_path: Path, **changes: object) -> JsonLines:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    tree = {"kind": "jsonl", "name": "chats", "path": str(path), "licence": "CC0-1.0", "weight": 1.0, "chat": INSTRUCTION, **changes}
    return JsonLines.model_validate(tree)


def index_of(source: RowSource | TextFiles, options: PackOptions, encoder: DocumentEncoder) -> SourceIndex:
    [unit] = units_wanted(plan_units(source, Path(options.cache), options.seed, options.unit_bytes), [], options)
    result = pack_unit(unit, options, encoder)
    assert result.heldout is not None
    splits = {"train": SplitIndex(shards=result.train), "heldout": SplitIndex(shards=[result.heldout])}
    return SourceIndex(name=source.name, kind=source.kind, licence=source.licence, weight=1.0, splits=splits)


def test_conversations_and_plain_text_in_one_stream(
    tmp_path: Path, options: PackOptions, tokenizer_directory: Path, encoder: Encoder
) -> None:
    (tmp_path / "texts").mkdir()
    for number in range(80):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"Number {number} " + "and on " * number, encoding="utf-8")
    plain = TextFiles(kind="text_files", name="plain", path=str(tmp_path / "texts"), licence="CC0-1.0", weight=1.0)
    chat = ChatEncoder(tokenizer_directory)
    sources = [index_of(jsonl(tmp_path), options, chat), index_of(plain, options, encoder)]
    facts = options.tokenizer.model_dump()
    write_index(options.directory, CorpusIndex(**facts, sequence_length=128, sources=sources))
    corpus = PackedCorpus(options.directory)
    stream = MixedStream(corpus, seed=0)
    sizes = [corpus.split(name, "train").num_rows for name in corpus.source_names]
    batch = stream.take(2 * max(sizes))
    is_chat = batch["source_ids"][:, 0] == 0
    plain_targets = (batch["segment_ids"][:, 1:] == batch["segment_ids"][:, :-1]) & (batch["segment_ids"][:, 1:] > 0)
    assert np.array_equal(batch["targets"][~is_chat][:, :-1] != NO_TARGET, plain_targets[~is_chat])
    learned = batch["targets"][is_chat] != NO_TARGET
    assert 0.1 < learned.sum() / plain_targets[is_chat].sum() < 0.5
    texts = "".join(chat.tokenizer.decode(row[row != NO_TARGET].tolist(), skip_special_tokens=False) for row in batch["targets"][is_chat])
    answers = {answer for answer in texts.split("<|im_end|>") if answer}
    assert answers <= {row["answer"] for row in ROWS} | {answer for answer in answers if answer.startswith("7 and 7 is 14.7 and 7")}
    assert len(answers) > 80
    assert (heldout(corpus, "chats", 3)["targets"] != NO_TARGET).any(axis=1).all()
    assert sources[0].splits["train"].num_cut_documents + sources[0].splits["heldout"].num_cut_documents == 1


def test_labels_of_a_parquet_source(tmp_path: Path, options: PackOptions, tokenizer_directory: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    task = Classification(kind="classification", prompt="Is {answer} good?", label="good", labels={"0": "no", "1": "yes indeed"})
    source = Parquet(kind="parquet", name="task", path=str(tmp_path / "rows.parquet"), licence="CC0-1.0", weight=1.0, chat=task)
    chat = ChatEncoder(tokenizer_directory)
    index = index_of(source, options, chat)
    write_index(options.directory, CorpusIndex(**options.tokenizer.model_dump(), sequence_length=128, sources=[index]))
    corpus = PackedCorpus(options.directory)
    rows = corpus.read_rows("task", "train", range(corpus.split("task", "train").num_rows))
    labels = [
        chat.tokenizer.decode(rows.input_ids[row, start:stop].tolist()) for row, start, stop in label_spans(rows.segment_ids, rows.marks)
    ]
    assert set(labels) == {"no", "yes indeed"} and len(labels) > 60
    assert (rows.marks == LABEL).sum() == sum(len(chat.tokenizer.encode(label).ids) for label in labels)


def test_a_conversation_travels_as_text() -> None:
    said = Conversation(turns=[Turn(role="user", content=" a\n"), Turn(role="assistant", content="b")], ends_with_label=True)
    assert Conversation.from_text(said.to_text()) == said
    calls = Conversation(turns=[*said.turns[:1], Turn(role="assistant", content="", is_context=True), *said.turns])
    assert Conversation.from_text(calls.to_text()) == calls
    found = conversation_of(INSTRUCTION, ROWS[3])
    assert found and Conversation.from_text(found.to_text()) == found
    with pytest.raises(ValueError, match="control character"):
        Conversation(turns=[Turn(role="user", content="a\x1c")]).to_text()


def test_bad_rows_are_named_or_counted_and_bad_sources_refused(tmp_path: Path, options: PackOptions) -> None:
    source = jsonl(tmp_path)
    with Path(source.path).open("a", encoding="utf-8") as file:
        file.write('{"question": "x"}\n')
    [unit] = plan_units(source, Path("/no"), 0, 2**20)
    with pytest.raises(ValueError, match=r"source chats: .*rows.jsonl, line 121: there is no field 'answer'; there are: question"):
        list(read_unit(unit, Path("/no"), "raise", Cleaner(source, None)))
    cleaner = Cleaner(source, None)
    assert len(list(read_unit(unit, Path("/no"), "skip", cleaner))) == 120
    assert cleaner.removed["unreadable"].documents == 1
    with pytest.raises(ValueError, match="`chat` names the fields that it reads"):
        jsonl(tmp_path, fields=["question"])
    config = PackConfig.load(Path(__file__).parents[3] / "configs" / "pack" / "tiny.yaml").model_dump()
    with pytest.raises(ValueError, match="concatenate would cut conversations"):
        PackConfig.parse({**config, "packing": "concatenate", "sources": [source.model_dump()]}, "test")
