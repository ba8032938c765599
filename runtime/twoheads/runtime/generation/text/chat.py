"""Conversations as the text that a model was trained on: its own Jinja template, rendered in a sandbox.

A template comes with the model, so it is foreign code: it runs in Jinja's immutable sandbox, with an end to loops and
to the size of texts, sees plain data only, and reaches nothing else. What it may call beside Jinja's own is what
transformers gives to chat templates.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from twoheads.graphs.errors import InputError

__all__ = ["Message", "render_chat"]

Message = Mapping[str, Any]
"""One turn, e.g. ``{"role": "user", "content": "Hello"}``."""

PACKAGE = 'pip install "twoheads[text]"'


def render_chat(
    templates: Mapping[str, str],
    special: Mapping[str, str],
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    template: str | None = None,
    **others: Any,
) -> str:
    """The text of a conversation, as ``apply_chat_template(..., tokenize=False)`` of transformers gives it.

    Args:
        templates: The model's templates by name. Without ``template``, ``tool_use`` serves where there are tools, else
            ``default``.
        special: The model's special tokens by name, which templates read.
        messages: The conversation.
        add_generation_prompt: Whether the text ends where the model's answer begins.
        tools: JSON schemas of functions, for templates that have a use for them.
        documents: Texts, likewise.
        template: The name of one of ``templates``, or a template itself.
        others: What else the template reads, by name.

    Raises:
        InputError: The model has no template, it fails on this conversation, or the package jinja2 is not installed.
    """
    text = _chosen(templates, template, tools=bool(tools))
    given_messages: Sequence[Any] = messages
    if not messages or not all(isinstance(one, Mapping) and "role" in one for one in given_messages):
        raise InputError("messages", "are no conversation", 'give a list of {"role": ..., "content": ...}')
    given = {
        **special,
        **others,
        "messages": _plain(messages),
        "tools": None if tools is None else _plain(tools),
        "documents": None if documents is None else _plain(documents),
        "add_generation_prompt": add_generation_prompt,
    }
    try:
        compiled = _compiled(text)
        compiled.environment.begin()
        return str(compiled.render(**given))
    except InputError:
        raise
    except Exception as error:  # a template may raise anything, and so may what it is given
        message = " ".join(str(error).split())[:300] or type(error).__name__
        problem = f"fails on this conversation: {message}"
        raise InputError("chat template", problem, "change the messages as it asks") from error


def _chosen(templates: Mapping[str, str], template: str | None, *, tools: bool) -> str:
    if template is not None:
        return templates.get(template, template)
    if tools and "tool_use" in templates:
        return templates["tool_use"]
    if "default" in templates:
        return templates["default"]
    have = f"only {', '.join(sorted(templates))}" if templates else "none"
    raise InputError("messages", f"need a chat template, and the model has {have}", "give a prompt, or a template")


@lru_cache(maxsize=8)
def _compiled(text: str) -> Any:
    """The template, ready to be rendered.

    Raises:
        InputError: It is no template, or the package is not installed.
    """
    try:
        from jinja2 import TemplateError, TemplateSyntaxError
        from jinja2.ext import Extension, loopcontrols
        from jinja2.nodes import Node

        from twoheads.runtime.generation.text.bounded_templates import BoundedEnvironment
    except ImportError as error:
        raise InputError("messages", "need the package jinja2, which is not installed", PACKAGE) from error

    class Generation(Extension):
        """``{% generation %}`` marks an answer, for training; the text is what stands inside."""

        tags = {"generation"}  # noqa: RUF012 - Jinja's own way

        def parse(self, parser: Any) -> list[Node]:
            next(parser.stream)
            body: list[Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return body

    def refuse(message: str) -> NoReturn:
        raise TemplateError(message)

    environment = BoundedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = _json
    known: Any = environment.globals
    known.update(raise_exception=refuse, strftime_now=_now)
    try:
        return environment.from_string(text)
    except TemplateSyntaxError as error:
        raise InputError("chat template", f"is none: {error}", "give the template by name or as text") from error


def _json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """As JSON, not escaped for HTML as Jinja's own filter does."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _now(form: str) -> str:
    return datetime.now().strftime(form)  # the user's clock


def _plain(value: Any) -> Any:
    """A copy in plain types: a template gets no object of ours."""
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Sequence):
        return [_plain(entry) for entry in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    raise InputError("messages", f"hold a {type(value).__name__}", "give texts, numbers, lists and mappings")
