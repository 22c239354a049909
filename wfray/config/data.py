"""Configuration of the corpus: which text, under which licence, tokenized and packed how, mixed in which shares."""

from collections import Counter
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from wfray.config.base import Config, StageConfig
from wfray.config.model import ModelSource


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


class PackageJson(TextSource):
    """One JSON file inside an installed package: a list of objects or a mapping to objects, one document an object."""

    kind: Literal["package_json"]
    package: str
    """Import name."""
    file: str
    """Relative to the package's directory."""
    fields: list[str] = Field(min_length=1)
    """Text fields of an object, in order; every object must have them."""
    separator: str = "\n\n"
    """Between two fields."""


class JsonLines(TextSource):
    """JSON-lines files, one document a line."""

    kind: Literal["jsonl"]
    path: str
    """A file, or a folder in which `glob` finds files."""
    glob: str = "**/*.jsonl"
    fields: list[str] = Field(["text"], min_length=1)
    """Text fields of a line, in order; every line must have them."""
    separator: str = "\n\n"
    """Between two fields."""


class TextFiles(TextSource):
    """Text files in a folder, one document a file."""

    kind: Literal["text_files"]
    path: str
    glob: str = "**/*.txt"
    exclude: list[str] = []


Source = Annotated[PackageFiles | StandardLibrary | PackageDocstrings | PackageJson | JsonLines | TextFiles, Field(discriminator="kind")]


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
    sources: list[Source] = Field(min_length=1)

    @model_validator(mode="after")
    def check(self) -> Self:
        repeated = sorted(name for name, count in Counter(source.name for source in self.sources).items() if count > 1)
        if repeated:
            raise ValueError(f"sources: {', '.join(repeated)} names more than one source; give each its own name")
        if not any(source.weight > 0 for source in self.sources):
            raise ValueError("sources: every weight is 0, so nothing could be mixed; give at least one source a weight > 0")
        for source in self.sources:
            if source.max_tokens is not None and source.max_tokens < self.sequence_length:
                raise ValueError(
                    f"source {source.name}: max_tokens {source.max_tokens} is less than one row of "
                    f"{self.sequence_length} tokens; raise it (a shard holds about {self.sequence_length * self.rows_per_shard})"
                )
        return self

    @property
    def parents(self) -> dict[str, str]:
        """The files and folders of the sources outside installed packages, by source name: inputs whose change is noticed."""
        return {source.name: source.path for source in self.sources if isinstance(source, JsonLines | TextFiles)}
