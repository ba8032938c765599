"""The original with a bundle's rounded weights, each expanded when an operator computes with it, and forgotten."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from twoheads.compiler.frontend.torch.load_source import LoadedSource
from twoheads.compiler.frontend.torch.weights.stored_tensor import StoredTensor, read_tensor
from twoheads.export.precision.quantised_arrays import expanded
from twoheads.export.verification.lowered_run import require_known
from twoheads.graphs.serialization.bundle_format import QuantisedWeight
from twoheads.runtime import LoadedBundle
from twoheads.runtime.bundle.weights import Weights

__all__ = ["with_stored_bundle_weights"]


def with_stored_bundle_weights(original: LoadedSource, bundle: LoadedBundle) -> LoadedSource:
    """The original, whose large weights are in their files, with the bundle's rounded ones in place of its own.

    Raises:
        InputError: A rounded weight is none of the original's.
    """
    weights, module = bundle.open_weights(), original.module
    tensors: Mapping[str, Tensor] = module.state_dict(keep_vars=True)
    quantised = bundle.manifest.quantised
    half = [name for name, place in bundle.manifest.weights.items() if place.dtype == "float16"]
    require_known((*quantised, *half), tensors)
    made: dict[int, Tensor] = {}
    for name, entry in quantised.items():
        part = partial(_expanded_part, weights, entry) if tensors[name].ndim == 3 else None
        made[id(tensors[name])] = _stored(tensors[name], partial(_expanded, weights, entry), part)
    for name in half:
        made[id(tensors[name])] = _stored(tensors[name], partial(_rounded, tensors[name]))
    _put(module, made)
    return replace(original, module=module)


def _stored(like: Tensor, read: Callable[[], Tensor], part: Callable[[int], Tensor] | None = None) -> Tensor:
    return StoredTensor(like.shape, torch.float32, read, None, part)


def _expanded(weights: Weights, entry: QuantisedWeight) -> Tensor:
    found = expanded(weights.views(entry.stored), transposed=entry.transposed)
    weights.let_go(entry.stored)
    return torch.from_numpy(found)


def _expanded_part(weights: Weights, entry: QuantisedWeight, number: int) -> Tensor:
    """One expert's."""
    parts = [weights.part(name, number) for name in entry.stored]
    return torch.from_numpy(expanded(parts, transposed=entry.transposed))


def _rounded(own: Tensor) -> Tensor:
    return read_tensor(own).detach().to(torch.float16).to(torch.float32)


def _put(module: nn.Module, made: Mapping[int, Tensor]) -> None:
    """Replaces parameters and buffers, under every name that they have."""
    for owner in module.modules():
        own: dict[str, Any] = dict(owner.named_parameters(recurse=False, remove_duplicate=False))
        for name, tensor in own.items():
            if id(tensor) in made:
                setattr(owner, name, nn.Parameter(made[id(tensor)], requires_grad=False))
        for name, tensor in dict(owner.named_buffers(recurse=False, remove_duplicate=False)).items():
            if id(tensor) in made:
                owner.register_buffer(name, read_tensor(made[id(tensor)]))
