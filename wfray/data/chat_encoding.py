"""Conversations to tokens as the tokenizer's own chat template writes them, each token marked as context, response or label.

Where the template puts each turn is found by rendering it with a numbered placeholder for every content, so a response is known
exactly even where the same words stand elsewhere. The rendered text is encoded stretch by stretch between the special tokens that
the template itself wrote; what looks like one inside a content is encoded as the characters that it is, so no data can
end its own turn or open another. Otherwise the tokens are those of `apply_chat_template`, which is checked on a sample when an
encoder is made.

A response is its content and the special token that ends its turn, since the student has to end it. A token that spans the border
of template and content (white space, mostly) belongs to the content. What the template writes after the turn is not learned.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer
from transformers import AutoTokenizer

from wfray.config.chat import ASSISTANT
from wfray.data.batch import CONTEXT, LABEL, RESPONSE
from wfray.data.conversations import Conversation, Turn
from wfray.data.encoding import Encoded, batches, rules_sha256

PLACEHOLDER = "\ue000{}\ue001"
"""Private-use characters: no template writes them."""
SAMPLE = Conversation(
    turns=[
        Turn(role="user", content="What is 12 + 30?"),
        Turn(role=ASSISTANT, content="It is 42."),
        Turn(role="user", content="  And\nthen? "),
        Turn(role=ASSISTANT, content="Nothing."),
    ]
)


@dataclass(frozen=True)
class MarkedTokens:
    """One encoded conversation."""

    tokens: NDArray[np.int32]
    """[length]."""
    marks: NDArray[np.uint8]
    """[length]; see `wfray.data.batch`."""


@dataclass(frozen=True)
class Layout:
    """A rendered conversation: literal 0, content 0, literal 1, content 1, ..., the last literal."""

    literals: list[str]
    contents: list[str]

    @property
    def text(self) -> str:
        return "".join(part for pair in zip(self.literals, [*self.contents, ""], strict=True) for part in pair)


@dataclass(frozen=True)
class Stretch:
    """Text between two special tokens of the template."""

    text: str
    marks: NDArray[np.uint8]
    """Of each character."""
    special_id: int | None
    """The special token after it."""
    special_mark: int


class ChatEncoder:
    """Encodes conversations with one tokenizer and its chat template; a `DocumentEncoder` of conversations that travel as texts."""

    def __init__(self, directory: Path) -> None:
        """Open the tokenizer's files in `directory`.

        Raises:
            ValueError: it has no chat template, or it encodes stretches of a text otherwise than the whole.
        """
        self.chat = AutoTokenizer.from_pretrained(directory)
        if not self.chat.chat_template:
            raise ValueError(f"the tokenizer in {str(directory)!r} has no chat template: use an instruction-tuned model's, or add one")
        self.rules_sha256 = rules_sha256(directory / "tokenizer.json")
        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self.tokenizer.encode_special_tokens = True
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.special_ids = {token.content: number for number, token in self.chat.added_tokens_decoder.items() if token.special}
        longest_first = sorted(self.special_ids, key=len, reverse=True)
        self.special = re.compile("|".join(map(re.escape, longest_first)))
        self._check()

    @property
    def template_sha256(self) -> str:
        """SHA-256 (hex) of the chat template: conversations depend on it, and `tokenizer_sha256` does not cover it."""
        return hashlib.sha256(str(self.chat.chat_template).encode()).hexdigest()

    @property
    def identity(self) -> str:
        """Conversations depend on the template too."""
        return hashlib.sha256(f"{self.template_sha256} {self.rules_sha256}".encode()).hexdigest()

    def encode_documents(self, texts: list[str]) -> Encoded:
        """Tokens and marks of conversations that travel as texts; see `wfray.data.conversations`."""
        encoded = self.encode([Conversation.from_text(text) for text in texts])
        return Encoded([each.tokens for each in encoded], [each.marks for each in encoded])

    def encode(self, conversations: list[Conversation]) -> list[MarkedTokens]:
        """Tokens and marks of each conversation.

        Raises:
            ValueError: the template refuses a conversation, or changes what a turn says.
        """
        return [marked for group in batches(conversations, num_characters) for marked in self._encode_group(group)]

    def _encode_group(self, conversations: list[Conversation]) -> list[MarkedTokens]:
        stretches = [self._stretches(conversation) for conversation in conversations]
        texts = [stretch.text for found in stretches for stretch in found]
        encodings = iter(self.tokenizer.encode_batch(texts, add_special_tokens=False))
        return [joined([(stretch, next(encodings)) for stretch in found]) for found in stretches]

    def _check(self) -> None:
        [ours] = self.encode([SAMPLE])
        theirs = self.chat.apply_chat_template(messages_of(SAMPLE), tokenize=True, return_dict=False)
        if ours.tokens.tolist() != list(theirs):
            raise ValueError(
                "this tokenizer encodes a stretch of a text otherwise than the whole text; conversations need a byte-level one"
            )

    def _stretches(self, conversation: Conversation) -> list[Stretch]:
        layout = self._layout(conversation)
        marks, specials = mark_characters(layout, conversation), self._template_specials(layout)
        text, stretches, position = layout.text, [], 0
        for start, stop, number in specials:
            ends_response = position < start and marks[start - 1] != CONTEXT
            stretches.append(Stretch(text[position:start], marks[position:start], number, RESPONSE if ends_response else CONTEXT))
            position = stop
        stretches.append(Stretch(text[position:], marks[position:], None, CONTEXT))
        return stretches

    def _layout(self, conversation: Conversation) -> Layout:
        messages = messages_of(conversation)
        rendered = self._render(messages)
        placeholders = [{**message, "content": PLACEHOLDER.format(number)} for number, message in enumerate(messages)]
        pieces = re.split(PLACEHOLDER.format(r"(\d+)"), self._render(placeholders))
        contents = [message["content"] for message in messages]
        if pieces[1::2] == [str(number) for number in range(len(contents))]:
            for said in (contents, [content.strip() for content in contents]):
                layout = Layout(pieces[::2], said)
                if layout.text == rendered:
                    return layout
        raise ValueError("the chat template changes or drops what a turn says, so its response cannot be found in the text")

    def _render(self, messages: list[dict[str, str]]) -> str:
        return str(self.chat.apply_chat_template(messages, tokenize=False))

    def _template_specials(self, layout: Layout) -> list[tuple[int, int, int]]:
        """The special tokens in the literals: start, stop and id of each."""
        found, offset = [], 0
        for literal, content in zip(layout.literals, [*layout.contents, ""], strict=True):
            matches = self.special.finditer(literal)
            found += [(offset + match.start(), offset + match.end(), self.special_ids[match.group()]) for match in matches]
            offset += len(literal) + len(content)
        return found


def num_characters(conversation: Conversation) -> int:
    """Of all contents."""
    return sum(len(turn.content) for turn in conversation.turns)


def messages_of(conversation: Conversation) -> list[dict[str, str]]:
    """The form that chat templates take."""
    return [{"role": turn.role, "content": turn.content} for turn in conversation.turns]


def mark_characters(layout: Layout, conversation: Conversation) -> NDArray[np.uint8]:
    """The mark of each character of a rendered conversation."""
    marks = np.full(len(layout.text), CONTEXT, dtype=np.uint8)
    start = len(layout.literals[0])
    for number, (content, turn) in enumerate(zip(layout.contents, conversation.turns, strict=True)):
        if turn.role == ASSISTANT and not turn.is_context:
            is_label = conversation.ends_with_label and number == len(conversation.turns) - 1
            marks[start : start + len(content)] = LABEL if is_label else RESPONSE
        start += len(content) + len(layout.literals[number + 1])
    return marks


def joined(stretches: list[tuple[Stretch, Encoding]]) -> MarkedTokens:
    """The tokens of stretches and of the special tokens between them."""
    tokens: list[int] = []
    marks: list[int] = []
    for stretch, encoding in stretches:
        tokens += encoding.ids
        marks += [int(stretch.marks[start : max(stop, start + 1)].max()) for start, stop in encoding.offsets]
        if stretch.special_id is not None:
            tokens.append(stretch.special_id)
            marks.append(stretch.special_mark)
    return MarkedTokens(np.array(tokens, dtype=np.int32), np.array(marks, dtype=np.uint8))
