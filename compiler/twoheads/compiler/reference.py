"""Runs the original model over a whole sequence: what a bundle is verified against.

Two evaluations that differ only by rounding give the noise floor: torch's fused attention kernels, and plain matrix
products with a softmax. The plain one works on bands of query rows, so that long inputs fit into memory.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from twoheads.compiler.attention_op import plain_attention
from twoheads.compiler.impose_attention import Band, Imposition, impose, imposed_band, with_band
from twoheads.graphs.errors import CompileError

if TYPE_CHECKING:
    from twoheads.compiler.sources import LoadedSource

__all__ = ["run_original"]

PLAIN = "twoheads_plain"
FUSED = "twoheads_fused"
BAND_BYTES = 64 << 20
"""Scores of one band of query rows of the plain attention, at most."""

ROWS = 32
"""Rows that a plain evaluation's matrix products have at least: a shorter input runs as a batch of copies of itself (a
transformers model; other modules take a batch of 1 only).
For a row or two torch switches to matrix-vector kernels, whose rounding is better than that of the products that every
longer input (and every fixed-shape engine) uses, so a floor measured with them would not be one."""


@torch.no_grad()
def run_original(
    source: LoadedSource,
    tokens: Tensor,
    positions: Tensor | None,
    implementation: str,
    imposition: Imposition | None = None,
) -> tuple[Tensor, Tensor | None]:
    """See :meth:`LoadedSource.hidden_and_logits`."""
    with impose(imposition):
        return _run(source, tokens, positions, implementation, imposed=imposition is not None)


def _run(
    source: LoadedSource, tokens: Tensor, positions: Tensor | None, implementation: str, *, imposed: bool
) -> tuple[Tensor, Tensor | None]:
    if not source.hugging_face:
        if implementation == "plain":
            with sdpa_kernel(SDPBackend.MATH), plain_attention():
                return _run_module(source, tokens, positions)
        return _run_module(source, tokens, positions)
    if implementation == "plain":
        tokens = tokens.expand(-(-ROWS // tokens.shape[1]), *tokens.shape[1:])
    with _attention(source.module, implementation, imposed=imposed):
        return _run_hugging_face(source, tokens, positions)


def _run_module(source: LoadedSource, tokens: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor | None]:
    from twoheads.compiler.capture import named_outputs

    if len(source.inputs) != 1:
        raise CompileError(source.identity.name, f"takes {len(source.inputs)} inputs", "verify modules of one input")
    outputs = named_outputs(source.module(**{next(iter(source.inputs)): tokens}), source.identity.name)
    logits = outputs.get("logits")
    if logits is not None:
        logits = logits[0] if positions is None else logits[0, positions]
    return outputs["hidden"][0], logits


def _run_hugging_face(source: LoadedSource, tokens: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor | None]:
    model = cast("Any", source.module)
    base = model.base_model
    caching = {"use_cache": False} if hasattr(model.config, "use_cache") else {}
    if base is model:
        return model(input_ids=tokens, **caching)[0][0], None
    seen: list[Tensor] = []
    backbones = {base, *([model.get_decoder()] if hasattr(model, "get_decoder") else [])}
    hooks = [part.register_forward_hook(lambda _module, _args, output: seen.append(output[0])) for part in backbones]
    keep: dict[str, Any] = {}
    if positions is not None and "logits_to_keep" in type(model).forward.__code__.co_varnames:
        keep = {"logits_to_keep": positions}
    try:
        logits = model(input_ids=tokens, **caching, **keep)["logits"][0]
    finally:
        for hook in hooks:
            hook.remove()
    return seen[-1][0], logits if positions is None or keep else logits[positions]


@contextmanager
def _attention(module: torch.nn.Module, implementation: str, *, imposed: bool) -> Generator[None]:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(PLAIN, _plain_attention)
    AttentionMaskInterface.register(PLAIN, eager_mask)
    AttentionInterface.register(FUSED, _fused_attention)
    AttentionMaskInterface.register(FUSED, eager_mask)
    model = cast("Any", module)
    previous = model.config._attn_implementation
    try:
        if implementation == "plain":
            model.set_attn_implementation(PLAIN)
        elif imposed:
            model.set_attn_implementation(FUSED)
        else:
            try:
                model.set_attn_implementation("sdpa")
            except ValueError:  # the architecture has no fused form (softcap, learned sinks)
                model.set_attn_implementation("eager")
        yield
    finally:
        model.set_attn_implementation(previous)


def _plain_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    is_causal: bool | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Matrix products and a softmax over bands of query rows; ``attention_mask`` is additive ``[1, 1, n, n]``."""
    groups = query.shape[1] // key.shape[1]
    keys, values = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scale = float(scaling) if scaling is not None else float(query.shape[-1]) ** -0.5
    causal = attention_mask is None and bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    length, heads = query.shape[2], query.shape[1]
    band = max(1, BAND_BYTES // (4 * heads * length))
    out = query.new_empty((query.shape[0], length, heads, value.shape[-1]))
    imposed = imposed_band()
    for start in range(0, length, band):
        rows = slice(start, min(start + band, length))
        additive = _band_mask(attention_mask, causal, imposed, rows, length)
        seen = slice(0, length) if additive is None else _seen_keys(additive)
        scores = torch.matmul(query[:, :, rows], keys[:, :, seen].transpose(2, 3)) * scale
        if softcap:
            scores = torch.tanh(scores / softcap) * softcap
        if position_bias is not None:
            scores = scores + position_bias[:, :, rows, seen]
        if additive is not None:
            scores = scores + additive[..., seen]
        if s_aux is not None:
            column = s_aux.reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
            probabilities = torch.cat([scores, column], -1).softmax(-1)[..., :-1]
        else:
            probabilities = scores.softmax(-1)
        out[:, rows] = torch.matmul(probabilities, values[:, :, seen]).transpose(1, 2)
    return out, None


def _band_mask(
    attention_mask: Tensor | None, causal: bool, imposed: Band | None, rows: slice, length: int
) -> Tensor | None:
    """Everything that is added to the scores of a band of rows to hide keys, ``[.., rows, length]``."""
    additive = None if attention_mask is None else attention_mask[:, :, rows]
    if causal:
        ahead = torch.arange(length)[None, :] > torch.arange(rows.start, rows.stop)[:, None]
        additive = torch.zeros(ahead.shape).masked_fill(ahead, float("-inf"))
    if imposed is None:
        return additive
    term = imposed(rows.start, rows.stop, length)
    return term if additive is None else additive + term


def _seen_keys(additive: Tensor) -> slice:
    """The range of keys that some row sees; the others weigh exactly 0, and there is no need to compute that."""
    seen = torch.nonzero((additive > torch.finfo(additive.dtype).min).flatten(0, -2).any(0)).flatten()
    return slice(int(seen[0]), int(seen[-1]) + 1) if seen.numel() else slice(0, additive.shape[-1])


def _fused_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Torch's fused attention over bands of query rows, with the imposed terms added to its mask.

    Where there is no fused form (softcap, learned sinks, a bias) the plain one, with the scale applied to the queries.
    """
    scale = float(scaling) if scaling is not None else float(query.shape[-1]) ** -0.5
    if any(others.get(name) is not None for name in ("softcap", "s_aux", "position_bias")):
        return _plain_attention(
            module, query * scale, key, value, attention_mask, scaling=1.0, is_causal=is_causal, **others
        )
    causal = attention_mask is None and bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    length, groups = query.shape[2], query.shape[1] // key.shape[1]
    keys, values = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    out = query.new_empty((query.shape[0], length, query.shape[1], value.shape[-1]))
    band = max(1, BAND_BYTES // (4 * length))
    with with_band() as imposed:
        for start in range(0, length, band):
            stop = min(start + band, length)
            mask = torch.zeros((stop - start, length)) if imposed is None else imposed(start, stop, length)
            if attention_mask is not None:
                mask = mask + attention_mask[:, :, start:stop]
            elif causal:
                ahead = torch.arange(length)[None, :] > torch.arange(start, stop)[:, None]
                mask = mask.masked_fill(ahead, float("-inf"))
            part = torch.nn.functional.scaled_dot_product_attention(
                query[:, :, start:stop], keys, values, attn_mask=mask, scale=scale
            )
            out[:, start:stop] = part.transpose(1, 2)
    return out, None
