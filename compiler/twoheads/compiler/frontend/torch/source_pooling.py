"""How an embedding is made of a model's hidden states: what the folder says, or what is usual."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from torch import nn

from twoheads.compiler.frontend.torch.model_folder import CONFIG, DOWNLOAD, read_folder_json, require_below
from twoheads.graphs.errors import CompileError
from twoheads.graphs.program.program import Pooling

__all__ = ["default_pooling", "folder_pooling"]

MODES = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "last"}


def default_pooling(module: nn.Module) -> Pooling | None:
    """Mean pooling for a bidirectional model without a head, as sentence-transformers assumes for a bare encoder."""
    model = cast("Any", module)
    bare = model.base_model is module and model.main_input_name == "input_ids" and not model.config.is_encoder_decoder
    causal = any(getattr(part, "is_causal", False) for part in module.modules())
    return Pooling("mean", normalize=False) if bare and not causal else None


def folder_pooling(path: Path, module: nn.Module) -> Pooling | None:
    """Reads a sentence-transformers folder's ``modules.json``; falls back on :func:`default_pooling`.

    Raises:
        CompileError: The file is damaged, or asks for what is not supported.
    """
    listing = path / "modules.json"
    default = default_pooling(module)
    if not listing.is_file() or default is None:
        return default
    kinds = _stages(listing)
    unknown = kinds.keys() - {"Transformer", "Pooling", "Normalize"}
    if unknown or "Pooling" not in kinds:
        raise CompileError(
            str(listing),
            f"sentence-embedding stages {sorted(kinds)} are not supported",
            "only Transformer, Pooling and Normalize are; remove modules.json to compile the bare encoder",
        )
    file = require_below(path, kinds["Pooling"], listing) / CONFIG
    settings = read_folder_json(file)
    if not isinstance(settings, dict):
        raise CompileError(str(file), "is no JSON object", DOWNLOAD)
    entries = cast("dict[str, Any]", settings)
    chosen = [key for key, value in entries.items() if key.startswith("pooling_mode_") and value is True]
    if len(chosen) != 1 or chosen[0] not in MODES:
        raise CompileError(str(file), f"pooling {chosen} is not supported", "mean, cls and last-token pooling are")
    return Pooling(MODES[chosen[0]], normalize="Normalize" in kinds)


def _stages(listing: Path) -> dict[str, str]:
    """The path of every stage by its kind."""
    modules = read_folder_json(listing)
    entries: list[Any] = modules if isinstance(modules, list) else [None]  # pyright: ignore[reportUnknownVariableType]
    kinds: dict[str, str] = {}
    for entry in entries:
        fields = cast("dict[str, Any]", entry) if isinstance(entry, dict) else {}
        kind, path = fields.get("type"), fields.get("path")
        if not isinstance(kind, str) or not isinstance(path, str):
            raise CompileError(str(listing), "is no list of stages, each with a type and a path", DOWNLOAD)
        kinds[kind.rsplit(".", 1)[-1]] = path
    return kinds
