"""What benchmarks work on, made once and kept below `.cache/benchmarks`: packed corpora of real text, and students."""

from pathlib import Path

import ray

from actors.corpus import pack_corpus
from wfray.config.convert import Subln
from wfray.config.data import PackConfig
from wfray.config.model import ModelSource
from wfray.data.packages import fetch
from wfray.data.shards import INDEX
from wfray.data.tokenizer import save_tokenizer
from wfray.runs import resolve_home
from wfray.student import convert, load_original, materialize, save_student

ROOT = Path(__file__).parent.parent
CACHE = ROOT / ".cache" / "benchmarks"


def quickstart_corpus(*overrides: str) -> Path:
    """The corpus of the quickstart, real text of four kinds from installed packages, packed with some options changed."""
    return packed_corpus("quickstart", *overrides)


def packed_corpus(name: str, *overrides: str) -> Path:
    """The corpus of `configs/pack/<name>.yaml`, packed with some options changed."""
    config = PackConfig.load(ROOT / "configs" / "pack" / f"{name}.yaml", list(overrides))
    directory = CACHE / f"corpus-{config.digest()[:16]}"
    if (directory / INDEX).exists():
        return directory
    fetch(config.all_sources, resolve_home(config.cache))
    ray.init(address="local", num_cpus=2, object_store_memory=200_000_000, include_dashboard=False)
    tokenizer = save_tokenizer(config.tokenizer, directory / "tokenizer")
    pack_corpus(config, tokenizer, directory, lambda share, message: None)
    ray.shutdown()
    return directory


def make_student(source: ModelSource) -> Path:
    """The student of a model, converted and not yet trained."""
    directory = CACHE / f"student-{source.digest()[:16]}"
    if not directory.exists():
        original = materialize(source, CACHE / "models")
        save_student(convert(load_original(original), Subln(init="ones")), directory, tokenizer_from=original)
    return directory
