"""Conversations as text: the string that transformers makes of them, and nothing a template may not do."""

from __future__ import annotations

from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from twoheads.graphs.errors import InputError
from twoheads.runtime.generation.text.chat import render_chat

CHATML = """{% for message in messages %}
    {% if loop.first and message['role'] != 'system' %}
        {{- '<|im_start|>system\nBe good<|im_end|>\n' }}
    {% endif %}
    {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}"""
TOOLS = """{{ bos_token }}{% if tools %}{{ tools | tojson(indent=2) }} {{ tools[0] | tojson }}{% endif %}
{%- set ns = namespace(last='') %}
{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{% set ns.last = m.content %}
{% generation %}{{ m.content | trim | upper }}{% endgeneration %}
{% if m.extra %}{{ m.extra.key }}{% endif %}
{% endfor %}{{ ns.last }}
{{ strftime_now('%Y') | length }} {{ dict(a=1)['a'] }} {{ now is defined }}"""
TALK: list[dict[str, Any]] = [
    {"role": "user", "content": " <b>Grüße & co</b> "},
    {"role": "assistant", "content": "ok", "extra": {"key": [1, None, True]}},
    {"role": "system", "content": "x"},
]
TOOL = [{"type": "function", "function": {"name": "größe", "parameters": {"b": 1, "a": "<"}}}]


@pytest.mark.parametrize("template", [CHATML, TOOLS], ids=["chatml", "tools"])
@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("tools", [None, TOOL], ids=["plain", "tools"])
def test_the_text_is_that_of_the_library(template, prompt, tools):
    special = {"bos_token": "<s>"}
    render: Any = render_jinja_template
    expected, _ = render([TALK], chat_template=template, add_generation_prompt=prompt, tools=tools, **special)
    made = render_chat({"default": template}, special, TALK, add_generation_prompt=prompt, tools=tools)
    assert made == expected[0]


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{ raise_exception('only two turns') }}", "only two turns"),
        ("{{ messages.append(1) }}", "fails"),
        ("{{ ''.__class__.__mro__ }}", "fails"),
        ("{{ messages[7].content.x }}", "fails"),
        ("{% for %}", "is none"),
    ],
)
def test_a_template_that_fails_or_reaches_out_is_refused(template, problem):
    with pytest.raises(InputError, match=problem):
        render_chat({"default": template}, {}, TALK)


def test_templates_have_names_and_messages_roles():
    templates = {"default": "plain", "tool_use": "tools"}
    assert render_chat(templates, {}, TALK) == "plain"
    assert render_chat(templates, {}, TALK, tools=TOOL) == "tools"
    assert render_chat(templates, {}, TALK, template="tool_use") == "tools"
    assert render_chat({}, {}, TALK, template="{{ messages | length }}") == "3"
    with pytest.raises(InputError, match="the model has none"):
        render_chat({}, {}, TALK)
    with pytest.raises(InputError, match="are no conversation"):
        render_chat(templates, {}, [{"content": "x"}])
