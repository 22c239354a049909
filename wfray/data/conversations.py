"""Rows of a data set as conversations, and conversations as documents.

A conversation travels through cleaning and packing as a text: its turns divided by the control characters that ASCII has for
records and units, so that what looks at the words of documents sees those of the turns.
"""

import re
from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel

from wfray.config.chat import ASSISTANT, Chat, Classification, Instruction, Turns, template_fields

CONTENT = "\x1f"
"""Begins a turn's content."""
TURN, LABELLED, READ = "\x1e", "\x1d", "\x1c"
"""Begin a turn: any, one whose content is a label, and one that is context although it is the assistant's."""


class Turn(BaseModel):
    """What one side says."""

    role: str
    """As the chat template calls it."""
    content: str
    is_context: bool = False
    """Whether it is not learned although it is the assistant's."""


class Conversation(BaseModel):
    """Turns in order; the assistant's are learned, except those that are context."""

    turns: list[Turn]
    ends_with_label: bool = False
    """Whether the last turn is a verbalised label."""

    def to_text(self) -> str:
        """The conversation as a document.

        Raises:
            ValueError: a turn holds one of the control characters.
        """
        starts = [READ if turn.is_context else TURN for turn in self.turns]
        if self.ends_with_label:
            starts[-1] = LABELLED
        text = "".join(f"{start}{turn.role}{CONTENT}{turn.content}" for start, turn in zip(starts, self.turns, strict=True))
        if len(re.findall(f"[{READ}-{CONTENT}]", text)) != 2 * len(self.turns):
            raise ValueError("a turn holds a control character (U+001C to U+001F): remove it, or filter the row out")
        return text

    @classmethod
    def from_text(cls, text: str) -> Self:
        """The conversation that became `text`."""
        _, *parts = re.split(f"([{TURN}{LABELLED}{READ}])", text)
        starts, turns = parts[::2], [turn.split(CONTENT) for turn in parts[1::2]]
        said = [Turn(role=role, content=content, is_context=start == READ) for start, (role, content) in zip(starts, turns, strict=True)]
        return cls(turns=said, ends_with_label=LABELLED in text)


def conversation_of(chat: Chat, row: Mapping[str, Any]) -> Conversation | None:
    """The conversation in a row; None where it has none of the turns that `learned` asks for.

    Raises:
        ValueError: a field is missing, no text or no list of turns, a label is unknown, or nothing is learned.
    """
    match chat:
        case Turns():
            turns = turns_of(chat, row)
            if not turns:
                return None
        case Instruction():
            turns = exchange(fill(chat.prompt, row).strip(), fill(chat.response, row))
        case Classification():
            turns = exchange(fill(chat.prompt, row).strip(), verbalise(chat, row))
    if chat.system is not None:
        turns.insert(0, Turn(role="system", content=fill(chat.system, row)))
    if not any(turn.role == ASSISTANT and turn.content for turn in turns):
        raise ValueError(f"no turn of the role {ASSISTANT!r} says anything, so nothing could be learned; the roles are: {roles_of(turns)}")
    return Conversation(turns=turns, ends_with_label=isinstance(chat, Classification))


def exchange(prompt: str, response: str) -> list[Turn]:
    """One prompt and its response."""
    return [Turn(role="user", content=prompt), Turn(role=ASSISTANT, content=response)]


def turns_of(chat: Turns, row: Mapping[str, Any]) -> list[Turn]:
    """The turns that a field lists, up to the last that is learned."""
    listed = value_of(row, chat.field)
    if not isinstance(listed, list) or not listed or not all(isinstance(item, dict) for item in listed):
        raise ValueError(f"field {chat.field!r} is no list of turns")
    turns, num_wanted = [], 0
    for item in listed:
        name, content = str(value_of(item, chat.role)), joined_parts(value_of(item, chat.content), chat.content)
        role, is_wanted = chat.roles.get(name, name), chat.learned is None or name in chat.learned
        turns.append(Turn(role=role, content=content, is_context=role == ASSISTANT and not is_wanted))
        num_wanted = len(turns) if is_wanted else num_wanted
    return turns[:num_wanted]


def joined_parts(content: Any, key: str) -> str:
    """A turn's text, whether it stands there whole or in parts."""
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text", part.get("value")) if isinstance(part, dict) else part for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{key!r} of a turn is no text")
    return "".join(map(str, texts))


def verbalise(chat: Classification, row: Mapping[str, Any]) -> str:
    """The word for a row's label."""
    label = str(value_of(row, chat.label))
    if label not in chat.labels:
        raise ValueError(f"label {label!r} in field {chat.label!r} is none of: {', '.join(chat.labels)}")
    return chat.labels[label]


def fill(template: str, row: Mapping[str, Any]) -> str:
    """A template with the fields of a row; a field that is null is empty."""
    values = {field: value_of(row, field) for field in template_fields(template)}
    return template.format_map({field: "" if value is None else value for field, value in values.items()})


def value_of(row: Mapping[str, Any], field: str) -> Any:
    """One field of a row."""
    if field not in row:
        raise ValueError(f"there is no field {field!r}; there are: {', '.join(row) or 'none'}")
    return row[field]


def roles_of(turns: list[Turn]) -> str:
    """The roles of some turns, for a message."""
    return ", ".join(dict.fromkeys(turn.role for turn in turns)) or "none"
