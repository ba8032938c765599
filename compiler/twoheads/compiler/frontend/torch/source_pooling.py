"""How an embedding is made of a model's hidden states: what the folder says, or what is usual."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import nn

from twoheads.compiler.frontend.torch.model_folder import CONFIG, DOWNLOAD, read_folder_json, require_below
from twoheads.graphs.errors import CompileError
from twoheads.graphs.program.program import Pooling

__all__ = ["Embedder", "default_pooling", "embedder_of", "first_token_encoder", "stage_pooling"]

LISTING = "modules.json"

MODES = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
    "mean": "mean",
    "cls": "cls",
    "lasttoken": "last",
}
"""Of a pooling's configuration: flags, and since version 6 of sentence-transformers the names of ``pooling_mode``."""


@dataclass(frozen=True, slots=True)
class Embedder:
    """A sentence-transformers folder.

    Attributes:
        listing: The file that says what its stages are.
        model: The folder of its model: the same, or one below.
        pooling: The folder of its pooling.
        normalize: Whether vectors are normalised.
    """

    listing: Path
    model: Path
    pooling: Path
    normalize: bool


def default_pooling(module: nn.Module) -> Pooling | None:
    """Mean pooling for a bidirectional model without a head, as sentence-transformers assumes for a bare encoder."""
    model = cast("Any", module)
    bare = model.base_model is module and model.main_input_name == "input_ids" and not model.config.is_encoder_decoder
    causal = any(getattr(part, "is_causal", False) for part in module.modules())
    return Pooling("mean", normalize=False) if bare and not causal else None


def first_token_encoder(module: nn.Module) -> tuple[str, nn.Module] | None:
    """The encoder within a model that returns its first token's state as one vector (DPR), and that part's path.

    ``None`` for every other model; a DPR that projects the vector is one of them.
    """
    model = cast("Any", module)
    if getattr(model.config, "model_type", None) != "dpr" or model.config.projection_dim:
        return None
    names = (f"{name}.bert_model" for name in ("ctx_encoder", "question_encoder") if hasattr(model, name))
    return next(((name, module.get_submodule(name)) for name in names), None)


def embedder_of(path: Path) -> Embedder | None:
    """What a folder's ``modules.json`` says; ``None`` where it has none.

    Raises:
        CompileError: The file is damaged, or asks for what is not supported.
    """
    listing = path / LISTING
    if not listing.is_file():
        return None
    kinds = _stages(listing)
    if kinds.keys() - {"Transformer", "Pooling", "Normalize"} or not {"Transformer", "Pooling"} <= kinds.keys():
        raise CompileError(
            str(listing),
            f"sentence-embedding stages {sorted(kinds)} are not supported",
            "only Transformer, Pooling and Normalize are; remove modules.json to compile the bare encoder",
        )
    model = require_below(path, kinds["Transformer"], listing)
    _refuse_changed_text(model / TEXT)
    return Embedder(listing, model, require_below(path, kinds["Pooling"], listing), "Normalize" in kinds)


TEXT = "sentence_bert_config.json"
"""How a text is read before the tokenizer gets it."""


def _refuse_changed_text(file: Path) -> None:
    found = read_folder_json(file) if file.is_file() else None
    if isinstance(found, dict) and cast("dict[str, Any]", found).get("do_lower_case"):
        raise CompileError(
            str(file),
            "asks for texts in lower case before they are read (do_lower_case), which a bundle does not do",
            "give lower-case texts and set do_lower_case to false",
        )


def stage_pooling(embedder: Embedder) -> Pooling:
    """How the embedder's vector is made of hidden states.

    Raises:
        CompileError: In a way that is not supported.
    """
    file = embedder.pooling / CONFIG
    settings = read_folder_json(file)
    if not isinstance(settings, dict):
        raise CompileError(str(file), "is no JSON object", DOWNLOAD)
    entries = cast("dict[str, Any]", settings)
    chosen = [key for key, value in entries.items() if key.startswith("pooling_mode_") and value is True]
    mode = entries.get("pooling_mode")
    if mode is not None:
        chosen += [str(name) for name in (mode if isinstance(mode, list) else [mode])]  # pyright: ignore[reportUnknownVariableType]
    if len(chosen) != 1 or chosen[0] not in MODES:
        raise CompileError(str(file), f"pooling {chosen} is not supported", "mean, cls and last-token pooling are")
    return Pooling(MODES[chosen[0]], normalize=embedder.normalize)


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
