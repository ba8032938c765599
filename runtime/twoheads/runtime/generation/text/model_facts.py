"""What a bundle says about generating: settings, chat templates and special tokens (``tokenizer/generation.json``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twoheads.graphs.errors import BundleError
from twoheads.graphs.serialization.read_json import read_json

__all__ = ["ModelFacts", "read_facts"]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The contents of the file.

    Attributes:
        where: How errors call it.
        settings: Fields of the model's ``generation_config.json``.
        chat_templates: Jinja templates by name.
        special_tokens: By name, e.g. ``bos_token``.
    """

    where: str = "generation settings"
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    chat_templates: Mapping[str, str] = field(default_factory=dict[str, str])
    special_tokens: Mapping[str, str] = field(default_factory=dict[str, str])


def read_facts(path: Path | None) -> ModelFacts:
    """What the bundle's file says; nothing where it has none.

    Raises:
        BundleError: It is not what a compilation writes.
    """
    if path is None:
        return ModelFacts()
    data = read_json(path, fix="compile the model again", error=BundleError)
    names = {"settings", "chat_templates", "special_tokens"}
    if not isinstance(data, dict) or data.keys() != names or not all(isinstance(part, dict) for part in data.values()):
        raise BundleError(str(path), f"has other parts than {', '.join(sorted(names))}", "compile the model again")
    texts = (*data["chat_templates"].values(), *data["special_tokens"].values())
    if not all(isinstance(text, str) for text in texts):
        raise BundleError(str(path), "has templates or special tokens that are no texts", "compile the model again")
    return ModelFacts(str(path), data["settings"], data["chat_templates"], data["special_tokens"])
