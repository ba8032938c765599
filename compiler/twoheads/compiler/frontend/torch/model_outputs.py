"""What a model returns, by the two names that a program has: last hidden states, and logits."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from twoheads.compiler.frontend.torch.hugging_face.layers.padding_masks import ones_for
from twoheads.graphs.errors import CompileError

__all__ = ["hugging_face_outputs", "named_outputs", "whole_outputs"]

CACHES = ("use_cache", "use_mems_eval")
"""Settings that make a model return what later tokens need; XLNet's memory is cut to a length, which is no limit."""


LOGITS = ("logits", "question_answering_score")
"""What library models call a head's result; LXMERT's answers to questions are classes of the whole input."""


def named_outputs(output: Any, where: str) -> dict[str, Tensor]:
    """The module's result as ``hidden`` and, from a dictionary or a second tensor, ``logits``."""
    if isinstance(output, Tensor):
        return {"hidden": output}
    if isinstance(output, Mapping) and "hidden" in output and set(output) <= {"hidden", "logits"}:
        return dict(cast("Mapping[str, Tensor]", output))
    if isinstance(output, tuple) and len(output) == 2 and all(isinstance(item, Tensor) for item in output):
        return {"hidden": output[0], "logits": output[1]}
    raise CompileError(
        where, f"returns {type(output).__name__}", "return a tensor, (hidden, logits) or those two by name"
    )


def hugging_face_outputs(module: nn.Module, inputs: Mapping[str, Tensor], **options: Any) -> dict[str, Tensor]:
    """Runs a transformers model.

    Args:
        module: The model.
        inputs: Its tensor arguments.
        options: Further arguments.

    Returns:
        ``hidden``: what the backbone (of an encoder-decoder: the decoder) returns. ``logits``, where the model has a
        head: ``[1, n, classes]``, or ``[1, classes]`` of a pooled one; a question-answering head's start and end
        logits are the two columns of ``[1, n, 2]``. Of a model with logits and no backbone: ``hidden`` is its logits.
    """
    model = cast("Any", module)
    seen: list[Tensor] = []
    # Some models' heads call the decoder inside of the base model directly; the last of them to return counts.
    hooks = [part.register_forward_hook(lambda _module, _args, out: seen.append(out[0])) for part in _backbones(model)]
    try:
        with _without_caches(model):
            # Models without a cache don't take the argument.
            caching = {"use_cache": False} if hasattr(model.config, "use_cache") else {}
            output = model(**inputs, **ones_for(model, inputs), **caching, **options)
    finally:
        for hook in hooks:
            hook.remove()
    logits = _logits(output)
    if logits is None:
        return {"hidden": output[0]}
    if not seen or seen[-1] is logits:  # no model lies below its head, or the decoder's own projection makes them
        return {"hidden": logits}
    return {"hidden": seen[-1], "logits": logits}


def whole_outputs(outputs: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The results of a model of one size, ``hidden`` as rows ``[1, rows, width]``.

    Args:
        outputs: Of :func:`hugging_face_outputs` or :func:`named_outputs`. A map ``[1, channels, height, width]`` has a
            row of channels for every place, row by row of the image (of a video frame by frame). One vector
            ``[1, width]`` is one row. A head's row of logits for every token takes the place of ``hidden``.
        where: The model's name.

    Raises:
        CompileError: The logits are neither one row of the whole input nor one of every token.
    """
    hidden, logits = outputs["hidden"], outputs.get("logits")
    if logits is not None and logits.ndim == 3:  # a head that runs where it is asked for is a part by itself
        return {"hidden": logits}
    hidden = hidden[:, None] if hidden.ndim == 2 else hidden
    rows = hidden.flatten(2).transpose(1, 2) if hidden.ndim > 3 else hidden
    if logits is None or logits is outputs["hidden"]:
        return {"hidden": rows}
    if logits.ndim != 2:
        raise CompileError(
            where,
            f"has logits of the shape {list(logits.shape)}: a whole model has [1, classes] or [1, n, classes]",
            "compile the model below its head",
        )
    return {"hidden": rows, "logits": logits}


def _backbones(model: Any) -> list[nn.Module]:
    """The modules whose result may be the last hidden states."""
    from transformers import PreTrainedModel

    for candidates in ((model.base_model, model.get_decoder()), (_encoder(model),), model.children()):
        # A language model's projection to the vocabulary may be called its decoder, and a decoder may have one itself.
        found = {part.base_model for part in candidates if part is not model and isinstance(part, PreTrainedModel)}
        if found:
            return list(found)
    return []


def _encoder(model: Any) -> Any:
    return model.get_encoder() if hasattr(model, "get_encoder") else model


@contextmanager
def _without_caches(model: Any) -> Generator[None]:
    """Within it no part of the model makes a cache, an object that can't be exported; each asks its own settings."""
    configs = {id(part.config): part.config for part in model.modules() if hasattr(part, "config")}
    caching = [(config, name) for config in configs.values() for name in CACHES if getattr(config, name, None)]
    for config, name in caching:
        setattr(config, name, False)
    try:
        yield
    finally:
        for config, name in caching:
            setattr(config, name, True)


def _logits(output: Any) -> Tensor | None:
    if "start_logits" in output and "end_logits" in output:
        return torch.stack([output["start_logits"], output["end_logits"]], -1)
    return next((cast("Tensor", output[name]) for name in LOGITS if name in output), None)
