"""Engines as local functions of the file, in its operator set."""

from __future__ import annotations

import onnx
from onnx import helper

from twoheads.export.accelerators.rewrites.opset import opset, prepare_model
from twoheads.export.emit.scans.scan import scan_model
from twoheads.export.emit.tile_attention import attention_model
from twoheads.export.one_file.emit.graph import DOMAIN, OPSET, Function, Shared
from twoheads.graphs.errors import CompileError
from twoheads.graphs.program.program import AttentionEngine, ScanEngine, TokenwiseEngine
from twoheads.graphs.serialization.bundle_format import ENGINES
from twoheads.runtime.bundle.reader import Bundle

__all__ = ["Engines"]

LARGEST_CONSTANT = 64 << 10
"""Bytes of a constant that stays inside of a function; a larger one becomes an initializer of the file, stored once."""


class Engines:
    """The functions that a file has so far; each engine's is made when it is first called.

    Args:
        bundle: Whose token-wise engines; their files are read, their weights are not.
        shared: Of the file.
    """

    def __init__(self, bundle: Bundle, shared: Shared) -> None:
        self._bundle = bundle
        self._shared = shared
        self._functions: dict[str, Function] = {}

    def tokenwise(self, engine: TokenwiseEngine) -> Function:
        """The function of a token-wise engine: its inputs, then its weights, by port.

        Raises:
            CompileError: An operator of it has no form in the file's operator set.
        """
        if engine.name not in self._functions:
            file = self._bundle.file(self._bundle.engine_file(engine.name))
            model = onnx.load(file, load_external_data=False)
            ports = [port.name for port in (*engine.inputs, *engine.weights)]
            self._functions[engine.name] = self._make(engine.name, model, ports)
        return self._functions[engine.name]

    def attention(self, engine: AttentionEngine, variant: str) -> Function:
        """The function of a variant of an attention engine, of whatever width of key tiles."""
        name = f"{engine.name}.{variant}"
        if name not in self._functions:
            inputs, _ = engine.ports(variant)
            self._functions[name] = self._make(name, attention_model(engine, variant), [port.name for port in inputs])
        return self._functions[name]

    def scan(self, engine: ScanEngine, variant: str = "block") -> Function:
        """The function of a scan's engine: its token values, weights and state, by port; of a step a count, too."""
        if engine.name not in self._functions:
            inputs, _ = engine.ports(variant)
            model = scan_model(engine, variant)
            self._functions[engine.name] = self._make(engine.name, model, [port.name for port in inputs])
        return self._functions[engine.name]

    def _make(self, name: str, model: onnx.ModelProto, ports: list[str]) -> Function:
        _unbind(model, ports)
        graph = _in_opset(model, name).graph
        nodes: list[onnx.NodeProto] = []
        lifted: list[str] = []
        inputs = list(ports)
        for tensor in graph.initializer:
            if tensor.ByteSize() <= LARGEST_CONSTANT:
                nodes.append(helper.make_node("Constant", [], [tensor.name], value=tensor))
                continue
            inputs.append(tensor.name)
            lifted.append(f"{name}/{tensor.name}")
            kept = self._shared.initializers[lifted[-1]] = onnx.TensorProto()
            kept.CopyFrom(tensor)
            kept.name = lifted[-1]
        for node in graph.node:
            plain = onnx.NodeProto()
            plain.CopyFrom(node)
            plain.doc_string = ""
            del plain.metadata_props[:]
            nodes.append(plain)
        domains = sorted({node.domain for node in nodes} - {""})
        versions = {entry.domain: int(entry.version) for entry in model.opset_import}
        imports = {"": OPSET, **{domain: versions[domain] for domain in domains}}
        self._shared.opsets |= imports
        outputs = [value.name for value in graph.output]
        self._shared.functions[name] = helper.make_function(
            DOMAIN, name, inputs, outputs, nodes, [helper.make_opsetid(*entry) for entry in imports.items()]
        )
        return Function(name, len(outputs), tuple(lifted))


def _unbind(model: onnx.ModelProto, ports: list[str]) -> None:
    """Makes inputs of the initializers that stand for weights, in place, in the order of ``ports``."""
    inputs = {value.name: value for value in model.graph.input}
    kept: list[onnx.TensorProto] = []
    for tensor in model.graph.initializer:
        if tensor.name in ports:
            inputs[tensor.name] = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        else:
            kept.append(tensor)
    del model.graph.input[:], model.graph.initializer[:]
    model.graph.input.extend(inputs[name] for name in ports)
    model.graph.initializer.extend(kept)


def _in_opset(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The same arithmetic in the file's operator set."""
    found = opset(model)
    try:
        if found == OPSET:
            return model
        if found > OPSET:
            return prepare_model(model, OPSET)
        return onnx.version_converter.convert_version(model, OPSET)
    except RuntimeError as error:  # what the converter raises for an operator that it can't express
        message = " ".join(str(error).split())[-300:]
        raise CompileError(
            f"{ENGINES}/{name}.onnx",
            f"uses operators of version {found} that version {OPSET} can't express: {message}",
            "run the bundle by the runtime instead; no host needs the model in one file",
        ) from error
