"""Conversations as text: the string that transformers makes of them, and nothing a template may not do."""

from __future__ import annotations

from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from twoheads.graphs.errors import InputError
from twoheads.runtime.generation.text import bounded_templates
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


ENDLESS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "macros": "{% macro f(n) %}{{ f(n + 1) if n < 40 }}{{ f(n + 1) if n < 40 }}{% endmacro %}{{ f(0) }}",
    "times": "{{ 'x' * 10 ** 10 }}",
    "a list": "{{ [[1] * 10 ** 9] }}",
    "a power": "{{ 10 ** (10 ** 10) }}",
    "a product": "{{ (2 ** 60000) * (2 ** 60000) }}",
    "doubling": "{% set x = namespace(t='12345678') %}{% for a in range(60) %}{% set x.t = x.t ~ x.t %}{% endfor %}",
    "a sum": "{% set x = namespace(t='12345678') %}{% for a in range(60) %}{% set x.t = x.t + x.t %}{% endfor %}",
    "replacing": "{% set x = namespace(t='x') %}{% for a in range(9) %}"
    "{% set x.t = x.t|replace('x', 'xxxxxxxxx' * 99) %}{% endfor %}",
    "a filter's width": "{{ 'x'|center(10 ** 10) }}",
    "a method's width": "{{ 'x'.ljust(10 ** 10) }}",
    "a format's width": "{{ '%9999999999d' % 1 }}",
    "a width given": "{{ '%*d' % (9999999999, 1) }}",
}  # fmt: skip


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_ends_and_fills_no_memory(name, monkeypatch):
    monkeypatch.setattr(bounded_templates, "MOST_STEPS", 5000)
    monkeypatch.setattr(bounded_templates, "LONGEST", 1 << 20)
    with pytest.raises(InputError, match="chat template"):
        render_chat({"default": ENDLESS[name]}, {}, [{"role": "user", "content": "x"}])


def test_what_is_bounded_gives_what_it_gave():
    template = """{% macro f(n) %}{{ n ~ '-' ~ n * 2 }}{% endmacro %}{% for m in messages -%}
        {{ m.role ~ ':' + m.content|indent(2) }} {{ f(loop.index) }} {{ '%3d' % 7 }} {{ 'x' * 3 }} {{ [1] + [2] }}
        {{- ['a', 'b']|join('-') }} {{ 2 ** 10 }}{% endfor %}"""
    messages = [{"role": "user", "content": "one"}, {"role": "dog", "content": "two"}]
    found = render_chat({"default": template}, {}, messages)
    assert found == "user:one 1-2   7 xxx [1, 2]a-b 1024dog:two 2-4   7 xxx [1, 2]a-b 1024"
