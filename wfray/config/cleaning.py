"""What is left out of a corpus: conditions on the fields of a row, duplicates, and how bad input is met."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from wfray.config.base import Config

OnBadInput = Literal["raise", "skip"]
"""`raise`: the first unreadable document ends the job with its name. `skip`: it is left out and counted, of a damaged file what follows."""


class Condition(Config):
    """A row is kept where its `field` satisfies this; a row without the field is bad input."""

    field: str
    at_least: float | None = None
    at_most: float | None = None
    one_of: list[str | int | float | bool] | None = None

    @model_validator(mode="after")
    def check(self) -> Self:
        if self.at_least is None and self.at_most is None and self.one_of is None:
            raise ValueError(f"filter on {self.field}: state at_least, at_most or one_of")
        return self


class ExactDuplicates(Config):
    """Of documents with the same text, the first is kept, over all sources in their order."""

    kind: Literal["exact"]


class NearDuplicates(Config):
    """Of documents with nearly the same words, the first is kept, over all sources in their order; exact copies go too."""

    kind: Literal["minhash"]
    threshold: float = Field(0.8, gt=0, lt=1)
    """Jaccard similarity of the sets of word n-grams from which two documents are the same, as MinHash estimates it."""
    num_permutations: PositiveInt = 128
    """Numbers of a signature, 4 bytes each; the standard error of the estimate is at most 0.5 / sqrt(num_permutations)."""
    shingle_words: PositiveInt = 5
    """Words of an n-gram."""


Duplicates = Annotated[ExactDuplicates | NearDuplicates, Field(discriminator="kind")]
