"""Rows of the common shapes become conversations; what is missing or unknown is named."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from wfray.config.chat import Chat
from wfray.data.conversations import Conversation, conversation_of

INSTRUCTION = {"kind": "instruction", "prompt": "{instruction}\n\n{input}", "response": "{output}"}
SHARE_GPT = {"kind": "turns", "field": "conversations", "role": "from", "content": "value", "system": "Tools: {tools}"}
LABELLED = {"kind": "classification", "prompt": "{text} {{sic}}", "label": "class", "labels": {"0": "bad", "1": "good"}}


def chat_of(tree: dict[str, Any]) -> Chat:
    return TypeAdapter[Chat](Chat).validate_python(tree)


def said_in(tree: dict[str, Any], row: dict[str, Any]) -> Conversation:
    found = conversation_of(chat_of(tree), row)
    assert found
    return found


def turns(tree: dict[str, Any], row: dict[str, Any]) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in said_in(tree, row).turns]


def test_rows_of_every_shape() -> None:
    assert turns(INSTRUCTION, {"instruction": "Add.", "input": "1, 2", "output": "3"}) == [("user", "Add.\n\n1, 2"), ("assistant", "3")]
    assert turns(INSTRUCTION, {"instruction": "Rest.", "input": None, "output": " ok "}) == [("user", "Rest."), ("assistant", " ok ")]
    said = [("human", "hi"), ("function_call", "{}"), ("observation", "[1]"), ("gpt", "one")]
    row = {"tools": "[]", "conversations": [{"from": role, "value": text} for role, text in said]}
    assert turns(SHARE_GPT, row) == [("system", "Tools: []"), ("user", "hi"), ("assistant", "{}"), ("tool", "[1]"), ("assistant", "one")]
    parts = [{"type": "text", "value": "a"}, {"type": "text", "text": "b"}]
    row = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "c"}]}
    assert turns({"kind": "turns"}, row) == [("user", "ab"), ("assistant", "c")]
    assert turns(LABELLED, {"text": "{text} fun ", "class": 1}) == [("user", "{text} fun  {sic}"), ("assistant", "good")]
    assert said_in(LABELLED, {"text": "x", "class": 0}).ends_with_label


def test_only_turns_that_are_asked_for_are_learned_and_nothing_after_them_is_kept() -> None:
    said = [("human", "hi"), ("gpt", "yes?"), ("human", "add"), ("function_call", "{}"), ("observation", "[1]"), ("gpt", "one")]
    row = {"tools": "[]", "conversations": [{"from": role, "value": text} for role, text in said]}
    found = said_in({**SHARE_GPT, "learned": ["function_call"]}, row)
    assert [turn.content for turn in found.turns if turn.role == "assistant" and not turn.is_context] == ["{}"]
    assert [turn.content for turn in found.turns] == ["Tools: []", "hi", "yes?", "add", "{}"]
    assert said_in({**SHARE_GPT, "learned": ["function_call", "gpt"]}, row).turns == said_in(SHARE_GPT, row).turns
    assert conversation_of(chat_of({**SHARE_GPT, "learned": ["function_call"]}), {**row, "conversations": row["conversations"][:3]}) is None


def test_the_fields_that_are_read_are_known() -> None:
    assert chat_of(INSTRUCTION).fields == ["instruction", "input", "output"]
    assert chat_of(SHARE_GPT).fields == ["conversations", "tools"]
    assert chat_of(LABELLED).fields == ["text", "class"]


@pytest.mark.parametrize(
    ("tree", "row", "message"),
    [
        (INSTRUCTION, {"instruction": "x", "output": "y"}, "no field 'input'; there are: instruction, output"),
        (INSTRUCTION, {"instruction": "x", "input": "", "output": ""}, "nothing could be learned"),
        (SHARE_GPT, {"tools": "", "conversations": "hi"}, "'conversations' is no list of turns"),
        (SHARE_GPT, {"tools": "", "conversations": []}, "no list of turns"),
        (
            SHARE_GPT,
            {"tools": "", "conversations": [{"from": "human", "value": "x"}]},
            "nothing could be learned; the roles are: system, user",
        ),
        (SHARE_GPT, {"tools": "", "conversations": [{"from": "gpt", "value": 3}]}, "'value' of a turn is no text"),
        (LABELLED, {"text": "x", "class": 2}, "label '2' in field 'class' is none of: 0, 1"),
    ],
)
def test_bad_rows_are_named(tree: dict[str, Any], row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        conversation_of(chat_of(tree), row)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "{text.__class__}"}, "is not a field's name"),
        ({"prompt": "{text:>9}"}, "is not a field's name"),
        ({"labels": {"0": "bad", "1": "bad"}}, "same word twice"),
        ({"labels": {"0": "bad"}}, "at least 2"),
        ({"verbalizer": "x"}, "Extra inputs"),
    ],
)
def test_bad_formats_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        chat_of({**LABELLED, **change})


@pytest.mark.parametrize(("learned", "message"), [([], "at least 1"), (["gpt", "human"], "human is not the assistant's")])
def test_turns_to_be_learned_are_the_assistants(learned: list[str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        chat_of({**SHARE_GPT, "learned": learned})
