"""Token-wise engines for blocks of other sizes, from two exports instead of one a size.

A token-wise region computes every row by itself, so its files for blocks of two sizes differ in whole numbers alone:
what is the number of rows in one, or a multiple of it, is that of the other. The region is exported for a size that is
a large prime, where such numbers stand out, and they are replaced. Whether that is right is not assumed: the file for
the program's own blocks, which the exporter made, has to come out, byte for byte. A region of which it does not is
exported for every size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, numpy_helper

from twoheads.export.emit.tokenwise import emit_tokenwise
from twoheads.graphs.errors import CompileError
from twoheads.graphs.variants.stage_run import with_rows

if TYPE_CHECKING:
    from twoheads.compiler.compiled_model import CompiledModel
    from twoheads.graphs.program.program import Program, TokenwiseEngine

__all__ = ["ResizedEngines", "with_number"]

logger = logging.getLogger(__name__)

STANDING_OUT = 1009
"""Rows of the export whose numbers are replaced: a prime, which divides few sizes of models."""

WHOLE_NUMBERS = (TensorProto.INT32, TensorProto.INT64)

Models: TypeAlias = "Mapping[str, onnx.ModelProto]"
"""Engines by name, their weights being inputs."""


class ResizedEngines:
    """The token-wise engines of a model for blocks of any number of rows."""

    def __init__(self, compiled: CompiledModel, models: Models, program: Program) -> None:
        """Engines of ``program``, which has regions of ``compiled``.

        Args:
            compiled: Whose regions are exported.
            models: The engines for blocks of the program's own size.
            program: What declares them; its regions are among the compiled program's.
        """
        self._compiled = compiled
        self._models = models
        self._program = program
        self._template = cache(self._found_template)

    def of(self, rows: int) -> dict[str, onnx.ModelProto]:
        """All of them by name, for blocks of ``rows`` tokens.

        Raises:
            CompileError: An operator has no ONNX form at this size.
        """
        return {engine.name: self._model(engine, rows) for engine in with_rows(self._program, rows).tokenwise_engines}

    def _model(self, engine: TokenwiseEngine, rows: int) -> onnx.ModelProto:
        template = self._template(engine.name)
        if template is None:
            return emit_tokenwise(self._compiled.regions[engine.name], engine)
        return _with_size(template, rows)

    def _found_template(self, name: str) -> onnx.ModelProto | None:
        """The file whose sizes are replaced; ``None`` where that does not give the file that the exporter gives."""
        engines = with_rows(self._program, STANDING_OUT).tokenwise_engines
        declared = next(engine for engine in engines if engine.name == name)
        try:
            template = emit_tokenwise(self._compiled.regions[name], declared)
        except CompileError:  # at a size that is wanted it may have one
            return None
        own = self._models[name]
        if _bytes(_with_size(template, self._program.block_size)) == _bytes(own):
            return template
        logger.debug("engine %s is exported for every number of rows", name)
        return None


def _bytes(model: onnx.ModelProto) -> bytes:
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _with_size(template: onnx.ModelProto, rows: int) -> onnx.ModelProto:
    return with_number(template, STANDING_OUT, rows)


def with_number(template: onnx.ModelProto, old: int, new: int) -> onnx.ModelProto:
    """``template`` with the whole number ``new`` in place of ``old``, and as many times in place of its multiples."""
    model = onnx.ModelProto()
    model.CopyFrom(template)

    def replaced(number: int) -> int:
        times, rest = divmod(number, old)
        return number if rest else times * new

    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_value"):
                dim.dim_value = replaced(dim.dim_value)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.INT:
                attribute.i = replaced(attribute.i)
            attribute.ints[:] = [replaced(number) for number in attribute.ints]
    for tensor in _constants(graph):
        _replace(tensor, replaced)
    return model


def _constants(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        yield from (attribute.t for attribute in node.attribute if attribute.type == AttributeProto.TENSOR)


def _replace(tensor: TensorProto, replaced: Callable[[int], int]) -> None:
    """Replaces the whole numbers of a constant, and its size where all of its numbers are one."""
    shape = [replaced(size) for size in tensor.dims]
    if tensor.data_type not in WHOLE_NUMBERS and shape == list(tensor.dims):
        return
    array = numpy_helper.to_array(tensor)
    changed = array
    if shape != list(tensor.dims):
        if array.tobytes() != array.reshape(-1)[:1].tobytes() * array.size:
            return
        changed = np.full(shape, array.reshape(-1)[0], array.dtype)
    if tensor.data_type in WHOLE_NUMBERS:
        changed = np.array([replaced(int(number)) for number in changed.reshape(-1)], array.dtype).reshape(shape)
    if not np.array_equal(changed, array):
        tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
