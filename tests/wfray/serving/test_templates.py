"""A conversation that a model's own template refuses is the request's fault, in every way that templates are rendered here."""

import pytest
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from wfray.data.tokenizer import load_gguf_tokenizer
from wfray.serving.prompts import prompt_tokens
from wfray.serving.templates import refusals

NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{{ messages[0]['content'] }}"
)
SYSTEM = [{"role": "system", "content": "Be brief."}]


def test_a_refusal_and_a_mistake_of_a_template_are_value_errors(model_file):
    tokenizer = load_gguf_tokenizer(model_file.parent, model_file.name)
    for template in (NO_SYSTEM, "{{ messages[1]['content'] }}"):
        tokenizer.chat_template = template
        with pytest.raises(ValueError, match="chat template refuses these messages"):
            prompt_tokens(tokenizer, len(tokenizer), SYSTEM)
        formatter = Jinja2ChatFormatter(template=template, bos_token="<s>", eos_token="</s>")
        with pytest.raises(ValueError, match="System role not supported|chat template refuses these messages"), refusals():
            formatter(messages=SYSTEM)
    tokenizer.chat_template = NO_SYSTEM
    assert prompt_tokens(tokenizer, len(tokenizer), [{"role": "user", "content": "Hello"}])
