"""Chat templates are programs of the model's authors: what they refuse is the request's fault, not the engine's."""

from collections.abc import Iterator
from contextlib import contextmanager

from jinja2 import TemplateError


@contextmanager
def refusals() -> Iterator[None]:
    """Render inside.

    Raises:
        ValueError: the template refuses the conversation, or cannot render it.
    """
    try:
        yield
    except TemplateError as error:
        raise ValueError(f"the model's chat template refuses these messages: {error}") from None
