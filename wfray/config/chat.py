"""How a row of a data set becomes a conversation: turns as they stand, an instruction and its response, or a labelled example.

Texts are templates in which `{field}` stands for a field of the row. A response is learned, everything before it is context.
"""

from string import Formatter
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from wfray.config.base import Config

ASSISTANT = "assistant"
SHARE_GPT_ROLES = {"human": "user", "gpt": ASSISTANT, "function_call": ASSISTANT, "observation": "tool"}


def check_template(template: str) -> str:
    """Refuse what is no plain `{field}`: attributes, indices, conversions and formats of Python's `str.format`."""
    for _, field, form, conversion in Formatter().parse(template):
        if field is not None and (not field.isidentifier() or form or conversion):
            raise ValueError(f"{{{field}}} is not a field's name: write {{field}}, and {{{{ }}}} for braces themselves")
    return template


Template = Annotated[str, AfterValidator(check_template)]


class ChatFormat(Config):
    """What every format states."""

    system: Template | None = None
    """The system message; None leaves it to the chat template."""

    @property
    def fields(self) -> list[str]:
        """The fields of a row that are read."""
        return template_fields(self.system)


class Turns(ChatFormat):
    """A field that lists the turns of a conversation, any number of them; those of the assistant are learned."""

    kind: Literal["turns"]
    field: str = "messages"
    role: str = "role"
    """Key of a turn's role."""
    content: str = "content"
    """Key of a turn's text: a string, or a list of parts with a `text` or `value` each."""
    roles: dict[str, str] = SHARE_GPT_ROLES
    """The data set's names of roles that the chat template calls otherwise."""
    learned: list[str] | None = Field(None, min_length=1)
    """The data set's names of roles whose turns are learned, `[function_call]` say; the assistant's others are context. A conversation
    ends with the last such turn, and one without any is left out. None learns all of the assistant's."""

    @property
    def fields(self) -> list[str]:
        """The fields of a row that are read."""
        return [self.field, *super().fields]

    @model_validator(mode="after")
    def check_learned(self) -> Self:
        if others := [role for role in self.learned or [] if self.roles.get(role, role) != ASSISTANT]:
            raise ValueError(f"learned: {', '.join(others)} is not the assistant's: map it in `roles`, or leave it out")
        return self


class Instruction(ChatFormat):
    """One prompt and one response."""

    kind: Literal["instruction"]
    prompt: Template
    """White space at its ends is dropped, so a field at its end may be empty."""
    response: Template

    @property
    def fields(self) -> list[str]:
        """The fields of a row that are read."""
        return [*template_fields(self.prompt), *template_fields(self.response), *super().fields]


class Classification(ChatFormat):
    """A prompt whose response is one of a few words, the verbalised labels."""

    kind: Literal["classification"]
    prompt: Template
    """White space at its ends is dropped."""
    label: str
    """The field that holds the label."""
    labels: dict[str, str] = Field(min_length=2)
    """Value of the field -> the word that the model shall answer with."""

    @model_validator(mode="after")
    def check(self) -> Self:
        if len(set(self.labels.values())) < len(self.labels):
            raise ValueError(f"labels {self.labels} answer with the same word twice, so the classes could not be told apart")
        return self

    @property
    def fields(self) -> list[str]:
        """The fields of a row that are read."""
        return [*template_fields(self.prompt), self.label, *super().fields]


def template_fields(template: str | None) -> list[str]:
    """The fields that a template names."""
    return [field for _, field, _, _ in Formatter().parse(template or "") if field is not None]


Chat = Annotated[Turns | Instruction | Classification, Field(discriminator="kind")]
