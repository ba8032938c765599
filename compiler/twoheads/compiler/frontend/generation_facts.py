"""What a model says about generating: its generation settings, its chat templates and its special tokens.

Everything is data: fields of ``generation_config.json``, templates as text. Whoever generates judges it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twoheads.graphs.errors import CompileError
from twoheads.graphs.serialization.read_json import read_json

__all__ = ["folder_facts", "generation_facts"]

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def generation_facts(module: Any, *, folder: Path | None = None, tokenizer: Any = None) -> bytes | None:
    """A bundle's ``tokenizer/generation.json``.

    Args:
        module: A transformers model.
        folder: Where it came from, with the tokenizer's files; or
        tokenizer: A transformers tokenizer.

    Returns:
        ``None`` for a model that does not generate.

    Raises:
        CompileError: A file of the folder can't be read.
    """
    config = getattr(module, "generation_config", None)
    if config is None or not module.can_generate():
        return None
    if tokenizer is not None:
        templates: Any = getattr(tokenizer, "chat_template", None)
        special = {name: str(token) for name in SPECIAL if (token := getattr(tokenizer, name, None)) is not None}
    else:
        templates, special = (None, {}) if folder is None else _of_folder(folder)
    return _written(config.to_diff_dict(), templates, special)


def folder_facts(folder: Path) -> bytes | None:
    """The same of a folder whose model has no module; ``None`` where it does not say how it generates.

    Raises:
        CompileError: A file of the folder can't be read.
    """
    settings = _read(folder / "generation_config.json")
    return _written(settings, *_of_folder(folder)) if settings else None


def _written(settings: Mapping[str, Any], templates: Any, special: Mapping[str, str]) -> bytes:
    settings = {name: value for name, value in settings.items() if not name.startswith(("_", "transformers_"))}
    facts = {"settings": settings, "chat_templates": _named(templates), "special_tokens": special}
    return (json.dumps(facts, indent=1, ensure_ascii=False, default=_plain) + "\n").encode()


def _of_folder(folder: Path) -> tuple[Any, dict[str, str]]:
    """The chat templates and the special tokens of a Hugging Face folder."""
    settings = _read(folder / "tokenizer_config.json") | {}
    special = _read(folder / "special_tokens_map.json") | settings
    templates = _named(settings.get("chat_template"))
    if (legacy := _read(folder / "chat_template.json").get("chat_template")) is not None:
        templates |= _named(legacy)
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        templates[path.stem] = path.read_text(encoding="utf-8")
    if (single := folder / "chat_template.jinja").is_file():
        templates["default"] = single.read_text(encoding="utf-8")
    tokens = {name: special[name] for name in SPECIAL if special.get(name) is not None}
    return templates, {name: str(it["content"] if isinstance(it, Mapping) else it) for name, it in tokens.items()}


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    found = read_json(path, fix="download the model again", error=CompileError)
    return found if isinstance(found, dict) else {}


def _named(templates: Any) -> dict[str, str]:
    """Templates by name; a single one is called ``default``."""
    if templates is None:
        return {}
    if isinstance(templates, str):
        return {"default": templates}
    if isinstance(templates, Mapping):
        return {str(name): str(text) for name, text in templates.items()}
    return {str(entry["name"]): str(entry["template"]) for entry in templates}


def _plain(value: Any) -> Any:
    """What JSON does not know: sets, tuples as keys are the library's own business."""
    return sorted(value) if isinstance(value, set | frozenset) else str(value)
