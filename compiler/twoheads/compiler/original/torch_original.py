"""Runs the original model over a whole sequence: what a bundle is verified against.

Two evaluations that differ only by rounding give the noise floor. The fused one runs torch's fused attention kernels,
as the library calls them; the plain one is the library's own eager code. Where that would take too much memory, the
same on bands of query rows takes the place of its attention, and of nothing else.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from twoheads.compiler.frontend.torch.hugging_face.architectures import has_own_attention, reset_rope
from twoheads.compiler.frontend.torch.hugging_face.layers.sparse_layers import keeping_sparse
from twoheads.compiler.frontend.torch.hugging_face.library_attention import (
    EAGER,
    in_place_of_eager,
    require_understood,
    using_attention,
)
from twoheads.compiler.frontend.torch.load_source import LoadedSource
from twoheads.compiler.frontend.torch.model_outputs import hugging_face_outputs, named_outputs, whole_outputs
from twoheads.compiler.frontend.torch.operators.attention_op import plain_attention
from twoheads.compiler.frontend.torch.operators.impose_attention import (
    Band,
    Imposition,
    impose,
    imposed_band,
    with_band,
)
from twoheads.compiler.frontend.torch.weights.stored_tensor import StoredTensor, keeping_last_weight, parameters_as
from twoheads.compiler.original.cut_products import CutProducts

__all__ = ["TorchOriginal"]

BAND_BYTES = 64 << 20
"""Scores of one band of query rows of the plain attention, at most."""

EAGER_BYTES = 256 << 20
"""Scores of one attention of the library's own eager code, at most; it keeps a few such arrays at a time."""

ROWS = 32
"""Rows that a plain evaluation's matrix products have at least: a shorter input runs as a batch of copies of itself (a
transformers model; other modules take a batch of 1 only).
For a row or two torch switches to matrix-vector kernels, whose rounding is better than that of the products that every
longer input (and every fixed-shape engine) uses, so a floor measured with them would not be one."""


@dataclass(frozen=True, slots=True)
class TorchOriginal:
    """A torch model as the yardstick of its bundle; :class:`.onnx_original.OnnxOriginal` is its sibling."""

    source: LoadedSource

    def hidden_and_logits(
        self,
        given: Tensor | Mapping[str, Tensor],
        positions: Tensor | None = None,
        implementation: str = "fused",
        imposition: Imposition | None = None,
        cut: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Runs the original over a whole sequence.

        Args:
            given: Arguments by name, each of batch 1; or the first alone, e.g. int64 ``[1, n]``.
            positions: int64 ``[p]``: where logits are wanted; everywhere by default. A pooled head has no positions.
            implementation: ``fused`` (torch's own attention kernels) or ``plain`` (matrix products and a softmax).
            imposition: Terms added to the scores of each attention, e.g. to hide keys; for one run.
            cut: Every matrix product is the sum of two, the first of the ``cut``-th part of its inner dimension.

        Returns:
            Last hidden states ``[n, width]`` and logits: ``[p, classes]``, ``[1, classes]`` of a pooled head, ``None``
            without a head.
        """
        named = given if isinstance(given, Mapping) else {next(iter(self.source.inputs)): given}
        return _run_original(self.source, named, positions, implementation, imposition, cut)


@torch.no_grad()
def _run_original(
    source: LoadedSource,
    given: Mapping[str, Tensor],
    positions: Tensor | None,
    implementation: str,
    imposition: Imposition | None = None,
    cut: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """See :meth:`TorchOriginal.hidden_and_logits`."""
    forward = type(source.module).forward.__code__.co_varnames
    keep = {"logits_to_keep": positions} if positions is not None and "logits_to_keep" in forward else {}
    with impose(imposition), CutProducts(cut) if cut else nullcontext(), keeping_last_weight():
        outputs = _run(source, given, keep, implementation, imposed=imposition is not None)
    if source.whole:
        outputs = whole_outputs(outputs, source.identity.name)
    hidden, logits = outputs["hidden"][0], outputs.get("logits")
    if logits is None:
        return hidden, None
    if logits.ndim == 2:
        return hidden, logits[:1]
    return hidden, logits[0] if positions is None or keep else logits[0, positions]


def _run(
    source: LoadedSource,
    given: Mapping[str, Tensor],
    keep: Mapping[str, Tensor],
    implementation: str,
    *,
    imposed: bool,
) -> dict[str, Tensor]:
    if not source.hugging_face:
        if implementation == "plain":
            with sdpa_kernel(SDPBackend.MATH), plain_attention():
                return named_outputs(source.module(**given), source.identity.name)
        return named_outputs(source.module(**given), source.identity.name)
    reset_rope(source.module)
    if implementation == "plain":
        given = {name: _repeated(tensor, _copies(source, given)) for name, tensor in given.items()}
    with (
        keeping_sparse(source.module),
        _attention(source.module, implementation, given, imposed=imposed),
        _stored_experts_one_by_one(source.module),
        _double(source.module, given, enabled=implementation == "plain") as inputs,
    ):
        outputs = hugging_face_outputs(source.module, inputs, **keep)
    return {name: tensor.float() for name, tensor in outputs.items()}


@contextmanager
def _stored_experts_one_by_one(model: Any) -> Generator[None]:
    """Within it, the library loops over experts whose weights are in their files: its other ways read whole stacks."""
    stacks = (weight for weight in model.parameters() if isinstance(weight, StoredTensor) and weight.stacked)
    if next(stacks, None) is None:
        yield
        return
    before = model.config._experts_implementation
    model.set_experts_implementation("eager")
    try:
        yield
    finally:
        model.set_experts_implementation(before)


def _repeated(tensor: Tensor, copies: int) -> Tensor:
    """A batch of copies; the batch of positions ``[3, 1, n]`` (Qwen-VL) is the second dimension."""
    batch = 0 if tensor.shape[0] == 1 else 1
    return tensor.expand(*(copies if at == batch else size for at, size in enumerate(tensor.shape)))


def _copies(source: LoadedSource, given: Mapping[str, Tensor]) -> int:
    """How many copies of the inputs make ``ROWS`` rows of the shortest."""
    config = cast("Any", source.module).config.get_text_config()
    pools_last = type(source.module).__name__.endswith("ForSequenceClassification")
    if pools_last and getattr(config, "pad_token_id", None) is None:
        return 1  # the library refuses batches where it could not tell padding
    axes = {name: source.inputs[name].token_axis for name in given}
    return max((-(-ROWS // given[name].shape[axis]) for name, axis in axes.items() if axis is not None), default=1)


@contextmanager
def _double(module: torch.nn.Module, given: Mapping[str, Tensor], *, enabled: bool) -> Generator[dict[str, Tensor]]:
    """A model whose attention has one form only is evaluated in double precision for the second opinion."""
    if not enabled or not has_own_attention(module):
        yield dict(given)
        return
    with parameters_as(module, torch.float64):
        yield {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in given.items()}


@contextmanager
def _attention(
    module: torch.nn.Module, implementation: str, given: Mapping[str, Tensor], *, imposed: bool
) -> Generator[None]:
    if imposed:
        with in_place_of_eager(module, _plain_attention if implementation == "plain" else _fused_attention):
            yield
    elif implementation == "plain":
        fits = _score_bytes(module, given) <= EAGER_BYTES
        with using_attention(module, EAGER) if fits else in_place_of_eager(module, _plain_attention):
            yield
    else:
        with using_attention(module, _fused_name(module)):
            yield


def _fused_name(module: torch.nn.Module) -> str:
    """The library's name for its fused attention; some architectures have none (softcap, learned sinks)."""
    try:
        with using_attention(module, "sdpa"):
            return "sdpa"
    except ValueError:
        return EAGER


def _score_bytes(module: torch.nn.Module, given: Mapping[str, Tensor]) -> int:
    """Bytes of the scores of one eager attention over the longest of the inputs."""
    config = cast("Any", module).config.get_text_config()
    heads: int | list[int] = getattr(config, "num_attention_heads", None) or 1
    heads = max(heads) if isinstance(heads, list) else heads  # one for every stage of a pyramid
    return max(4 * heads * tensor.shape[0] * tensor.shape[1] ** 2 for tensor in given.values())


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
    **others: Any,
) -> tuple[Tensor, None]:
    """Matrix products and a softmax over bands of query rows; ``attention_mask`` is additive ``[1, 1, n, m]``."""
    require_understood(module, others)
    groups = query.shape[1] // key.shape[1]
    keys, values = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scale = float(scaling) if scaling is not None else float(query.shape[-1]) ** -0.5
    causal = attention_mask is None and bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    length, keys_length, heads = query.shape[2], key.shape[2], query.shape[1]
    band = max(1, BAND_BYTES // (4 * heads * keys_length))
    out = query.new_empty((query.shape[0], length, heads, value.shape[-1]))
    imposed = imposed_band()
    for start in range(0, length, band):
        rows = slice(start, min(start + band, length))
        additive = _band_mask(attention_mask, causal, imposed, rows, keys_length)
        seen = slice(0, keys_length) if additive is None else _seen_keys(additive)
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
    require_understood(module, others)
    causal = attention_mask is None and bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    length, keys_length, groups = query.shape[2], key.shape[2], query.shape[1] // key.shape[1]
    keys, values = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    out = query.new_empty((query.shape[0], length, query.shape[1], value.shape[-1]))
    band = max(1, BAND_BYTES // (4 * keys_length))
    with with_band() as imposed:
        for start in range(0, length, band):
            stop = min(start + band, length)
            mask = torch.zeros((stop - start, keys_length)) if imposed is None else imposed(start, stop, keys_length)
            if attention_mask is not None:
                mask = mask + attention_mask[:, :, start:stop]
            elif causal:
                ahead = torch.arange(keys_length)[None, :] > torch.arange(start, stop)[:, None]
                mask = mask.masked_fill(ahead, float("-inf"))
            part = torch.nn.functional.scaled_dot_product_attention(
                query[:, :, start:stop], keys, values, attn_mask=mask, scale=scale
            )
            out[:, start:stop] = part.transpose(1, 2)
    return out, None
