"""What ``verify`` does for bundles of a lower precision than float32.

Two questions are kept apart: is the compilation right (the original *with the bundle's own weights*, against the
engines multiplying in float32), and what do the lower precisions cost (the bundle as it runs, against the original)?
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt
import onnx

from twoheads.export.emit.graph_builder import DOMAIN, FLOAT32_LEVEL, QUANTISED_PRODUCT
from twoheads.export.engines.rewritten import RewrittenEngines
from twoheads.export.precision.quantised_arrays import expanded
from twoheads.export.precision.quantised_engine import rounds_operands
from twoheads.export.precision.whole_products import in_float32
from twoheads.export.verification.original_run import AnyOriginal
from twoheads.export.verification.widened_run import widened_bundle
from twoheads.graphs.errors import InputError
from twoheads.graphs.scratch import scratch_folder
from twoheads.graphs.serialization.bundle_format import FULL_PRECISION
from twoheads.runtime import LoadedBundle, load

if TYPE_CHECKING:
    from twoheads.compiler.frontend.onnx.model.graph import OnnxGraph
    from twoheads.compiler.frontend.torch.load_source import LoadedSource
    from twoheads.compiler.original.onnx_original import OnnxOriginal

__all__ = ["float32_products", "require_known", "with_bundle_weights"]


def with_bundle_weights(original: AnyOriginal, bundle: LoadedBundle) -> AnyOriginal:
    """The original with the weights that the bundle has, as float32; a caller's own module is left alone.

    Those that the bundle has in float16 are the original's own, rounded here again.

    Raises:
        InputError: A rounded weight is none of the original's.
    """
    weights = bundle.open_weights()
    found = {
        name: expanded(weights.views(entry.stored), transposed=entry.transposed)
        for name, entry in bundle.manifest.quantised.items()
    }
    half = {name: weights.view(name) for name, place in bundle.manifest.weights.items() if place.dtype == "float16"}
    if original.identity.form == "onnx":
        return _with_onnx_weights(cast("OnnxOriginal", original), found, half)
    return _with_torch_weights(cast("LoadedSource", original), found, half)


def _with_torch_weights(
    original: LoadedSource, found: Mapping[str, npt.NDArray[np.float32]], half: Collection[str]
) -> LoadedSource:
    import torch

    module = copy.deepcopy(original.module) if original.identity.form == "module" else original.module
    tensors = module.state_dict(keep_vars=True)
    require_known((*found, *half), tensors)
    with torch.no_grad():
        for name in half:
            tensors[name].copy_(tensors[name].to(torch.float16))
        for name, array in found.items():
            tensors[name].copy_(torch.from_numpy(array))
    return replace(original, module=module)


def _with_onnx_weights(
    original: OnnxOriginal, found: Mapping[str, npt.NDArray[np.float32]], half: Mapping[str, npt.NDArray[np.float16]]
) -> OnnxOriginal:
    """A weight that the compiler folded (a transposed one) takes the place of the operator that computes it."""
    graphs = (_with_constants(graph, found, half) for graph in (original.graph, original.plain))
    return replace(original, graph=next(graphs), plain=next(graphs))


def _with_constants(
    graph: OnnxGraph, found: Mapping[str, npt.NDArray[np.float32]], half: Mapping[str, npt.NDArray[np.float16]]
) -> OnnxGraph:
    own = {name: graph.weights.get(name, array) for name, array in half.items()}
    found = {**found, **{name: array.astype(np.float16).astype(np.float32) for name, array in own.items()}}
    require_known(found, {*graph.weights, *(name for node in graph.nodes for name in node.outputs)})
    nodes = tuple(node for node in graph.nodes if found.keys().isdisjoint(node.outputs))
    return replace(graph, nodes=nodes, weights={**graph.weights, **found})


def require_known(found: Collection[str], known: Collection[str]) -> None:
    """Refuses rounded weights of which the original knows nothing.

    Raises:
        InputError: There is such a one.
    """
    if missing := [name for name in found if name not in known]:
        raise InputError(
            f"weight {missing[0]}",
            "is rounded, and the original has no weight of that name that could be rounded in the same way",
            "verify the bundle compiled without --weights and --dtype; it is the same program",
        )


@contextmanager
def float32_products(bundle: LoadedBundle) -> Generator[LoadedBundle]:
    """The bundle with engines that compute with its rounded weights in float32; itself where they all do."""
    if bundle.manifest.dtype != FULL_PRECISION:
        with scratch_folder() as folder:
            yield widened_bundle(bundle, Path(folder))
        return
    if not rounds_operands(bundle.manifest):
        yield bundle
        return
    with scratch_folder() as folder:
        backend, limit = RewrittenEngines(Path(folder), _in_float32), bundle.memory_limit
        yield load(bundle.path, backend=backend, threads=bundle.threads, check="size", memory_limit=limit)


def _in_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """The engine with products that read their quantised weights as before, and multiply in float32."""
    for node in model.graph.node:
        if (node.domain, node.op_type) == (DOMAIN, QUANTISED_PRODUCT):
            level = next(attribute for attribute in node.attribute if attribute.name == "accuracy_level")
            level.i = FLOAT32_LEVEL
    made = list(in_float32(model.graph.node))
    del model.graph.node[:]
    model.graph.node.extend(made)
    return model
