"""Token-wise regions of torch programs to ONNX, with weights as graph inputs named after the engine's ports."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import onnx
import torch
from onnxscript import opset20

from twoheads.compiler.frontend.torch.export_source import without_stack_traces
from twoheads.compiler.frontend.torch.fx.fx_program import FxRegion
from twoheads.export.emit.decomposed import decomposed_program, undecomposed
from twoheads.export.emit.rewrites_by_operator import rewrites_by_operator
from twoheads.export.emit.torchlib_registry import kept_registry, kept_signatures
from twoheads.graphs.errors import CompileError
from twoheads.graphs.program.program import TokenwiseEngine

op: Any = opset20  # its operators have no usable types

__all__ = ["OPSET", "tokenwise_model"]

OPSET = 20
"""ONNX operator set of every engine: the newest one that all the runtimes and vendor compilers we target read."""


def tokenwise_model(region: FxRegion, engine: TokenwiseEngine) -> onnx.ModelProto:
    """The region as a fixed-shape ONNX model.

    Args:
        region: What to compute.
        engine: Its ports; the block size is that of their shapes.

    Returns:
        A model whose inputs are the engine's inputs followed by its weights, all by port name.

    Raises:
        CompileError: An operator has no ONNX form.
    """
    names = [port.name for port in (*engine.inputs, *engine.weights)]
    with _quiet_exporter(), without_stack_traces():
        program = decomposed_program(region, engine, OPSET)
    try:
        with (
            warnings.catch_warnings(),
            _quiet_exporter(),
            without_stack_traces(),
            kept_registry(OPSET),
            kept_signatures(),
            undecomposed(program is not None),
            rewrites_by_operator(),
        ):
            warnings.simplefilter("ignore")
            exported: Any = torch.onnx.export(
                region.module(region.block_size(engine)) if program is None else program,
                tuple(region.port_arguments(engine)),
                dynamo=True,
                opset_version=OPSET,
                input_names=names,
                output_names=[port.name for port in engine.outputs],
                custom_translation_table={torch.ops.aten.linear.default: _linear},
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter raises nearly every type for an operator it can't translate
        message = " ".join(str(_first_cause(error)).split())[:400]
        raise CompileError(
            f"engine {engine.name}", f"has no ONNX form: {message}", "avoid the operator it names"
        ) from error
    return _tidy(exported.model_proto, engine)


def _first_cause(error: BaseException) -> BaseException:
    """What all the others came of; it names the operator."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _linear(x: Any, weight: Any, bias: Any = None) -> Any:
    """``aten.linear`` as Gemm on rows; the weight stays ``[out, in]`` as stored, so a tied embedding is one array."""
    rows = op.Reshape(x, op.Constant(value_ints=[-1, int(x.shape[-1])]))
    product = op.Gemm(rows, weight, transB=1) if bias is None else op.Gemm(rows, weight, bias, transB=1)
    return op.Reshape(product, op.Constant(value_ints=[*(int(dim) for dim in x.shape[:-1]), int(weight.shape[0])]))


def _tidy(model: onnx.ModelProto, engine: TokenwiseEngine) -> onnx.ModelProto:
    """Removes what would name this machine or bloat the file: stack traces, paths and intermediate shapes."""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del model.graph.value_info[:]
    for part in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del part.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    model.graph.name = engine.name
    model.doc_string = ""
    model.producer_name, model.producer_version = "twoheads", ""
    return model


class _quiet_exporter:  # noqa: N801 - reads as a context manager
    """The exporter logs its progress at warning level; only errors concern our user."""

    def __enter__(self) -> None:
        self._levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "torch.export", "onnxscript")}
        for name in self._levels:
            logging.getLogger(name).setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        for name, level in self._levels.items():
            logging.getLogger(name).setLevel(level)
