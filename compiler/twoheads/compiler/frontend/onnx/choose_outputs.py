"""Which results of an ONNX file are its last hidden states and its logits.

Caches (``present...``) and attention weights are no results. Of what is left:

* an output that is computed from another one is the logits, that other the last hidden states;
* an output called logits, scores or prediction, of one row a token, is the logits; the last hidden states are what its
  last product with a weight reads, if the logits of a token need nothing else;
* start and end of an answer, a number a token each, are the logits: the two columns that they were cut from;
* one row for the whole input (a classifier, a sentence embedding) is the logits; the last hidden states are the token
  values that it was reduced from;
* otherwise the first output of one row a token is the last hidden states, and there are no logits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from twoheads.compiler.frontend.onnx.model.read_file import OnnxFile
from twoheads.compiler.frontend.onnx.onnx_program import OnnxProgram
from twoheads.compiler.ir.source_graph import Node, SequenceNode, TensorType, TokenwiseNode
from twoheads.graphs.errors import CompileError

__all__ = ["Outputs", "choose_outputs", "model_outputs"]

NO_RESULT = re.compile(r"^(present|past|presents|new_|attentions?\b|cross_attentions?\b|hidden_states[._]\d)", re.I)
LOGITS = re.compile(r"logits|scores|prediction|probabilit", re.I)
PRODUCTS = ("MatMul(", "Gemm(", "FusedMatMul(", "com.microsoft.FusedMatMul(")


@dataclass(frozen=True, slots=True)
class Outputs:
    """Names of the last hidden states and of the logits, or ``None``; and the file's names of results beside them."""

    hidden: str
    logits: str | None
    left_out: tuple[str, ...] = ()


def model_outputs(file: OnnxFile, chosen: Sequence[str]) -> dict[str, str]:
    """The results that count, by safe name, with the file's own; those called ``chosen`` if there are any.

    Raises:
        CompileError: The file has no output of such a name, or none that counts.
    """
    own = {name: safe for safe, name in file.outputs.items()}
    for name in chosen:
        if name not in own:
            raise CompileError(str(file.path), f"has no output {name!r}", f"choose of {', '.join(own)}")
    made = {name for node in file.nodes for name in node.output}
    for name in chosen:
        if own[name] not in made:
            raise CompileError(
                f"output {name}", "is an input or a weight, which nothing computes", "choose another one"
            )
    if chosen:
        return {own[name]: name for name in chosen}
    found = {safe: name for safe, name in file.outputs.items() if not NO_RESULT.match(name) and safe in made}
    if not found:
        others = f" but {', '.join(own)}" if own else ""
        raise CompileError(str(file.path), f"has no outputs{others}", "export the model with its result")
    return found


def choose_outputs(
    names: Mapping[str, str], program: OnnxProgram, nodes: Sequence[Node], chosen: Sequence[str]
) -> Outputs:
    """The last hidden states and the logits among ``names``.

    Raises:
        CompileError: None of them has one row a token, nor is computed from such a value.
    """
    by_name = {node.name: node for node in nodes}
    types = program.types
    arguments = {entry.value.name for entry in program.inputs if entry.source == "argument"}
    if len(chosen) == 2:
        hidden, logits = (next(safe for safe, name in names.items() if name == one) for one in chosen)
        return Outputs(hidden, logits)
    names = _uncut(names, by_name, types)
    found = _chosen(names, by_name, types, arguments)
    left_out = (own for safe, own in names.items() if safe not in (found.hidden, found.logits))
    return replace(found, left_out=tuple(left_out))


def _chosen(
    names: Mapping[str, str], by_name: Mapping[str, Node], types: Mapping[str, TensorType], arguments: set[str]
) -> Outputs:
    """Of results by name; ``arguments`` are the inputs that a run supplies."""
    rows = [name for name in names if types[name].axis is None]
    tokens = [name for name in names if types[name].axis is not None and len(types[name].shape) == 3]
    for name in tokens:
        others = [other for other in (*tokens, *_called_logits(rows, names)) if other != name]
        for other in others:
            if name in _upstream(by_name, other):
                return Outputs(name, other)
    for name in _called_logits(tokens, names) or tokens[:1]:
        before = _before_product(by_name, types, name) if LOGITS.search(names[name]) else None
        alone = before is not None and not _upstream(by_name, name, without=before) & arguments
        return Outputs(before, name) if before and alone else Outputs(name, None)
    for name in rows:
        if source := _reduced_from(by_name, types, name):
            return Outputs(source, name)
    raise CompileError(
        ", ".join(names.values()),
        "has no output of one row a token, nor one made of such rows",
        "export the model with its last hidden states or logits",
    )


def _uncut(names: Mapping[str, str], nodes: Mapping[str, Node], types: Mapping[str, TensorType]) -> Mapping[str, str]:
    """The results; those of a number a token, ``[1, n]``, as the one value of three dimensions they are cut from."""
    found: dict[str, str] = {}
    for name, own in names.items():
        source: str | None = name
        while source is not None and (len(types[source].shape) != 3 or not _is_result_of_product(nodes, source)):
            node = nodes.get(source)
            wide = [each for each in node.inputs if types[each].axis is not None] if node is not None else []
            source = wide[0] if len(wide) == 1 and types[wide[0]].axis == types[name].axis else None
        cut = len(types[name].shape) == 2 and types[name].axis is not None and source is not None
        found[source if cut and source else name] = "logits" if cut else own
    return found


def _is_result_of_product(nodes: Mapping[str, Node], name: str) -> bool:
    """Whether the value is a product, or a product to which something was added."""
    node = nodes.get(name)
    return isinstance(node, TokenwiseNode) and node.op.startswith((*PRODUCTS, "Add("))


def _called_logits(candidates: Iterable[str], names: Mapping[str, str]) -> list[str]:
    return [name for name in candidates if LOGITS.search(names[name])]


def _upstream(nodes: Mapping[str, Node], name: str, without: str = "") -> set[str]:
    """Names of everything that a value is computed from, on ways that do not go through ``without``."""
    seen = {without}
    stack = list(nodes[name].inputs) if name in nodes else []
    while stack:
        at = stack.pop()
        if at not in seen:
            seen.add(at)
            stack.extend(nodes[at].inputs if at in nodes else ())
    return seen


def _before_product(nodes: Mapping[str, Node], types: Mapping[str, TensorType], name: str) -> str | None:
    """What the last product with a weight reads, if it is of the shape ``[1, tokens, width]``."""
    while isinstance(node := nodes.get(name), TokenwiseNode):
        values = [each for each in node.inputs if each in types and types[each].axis is not None]
        if len(values) != 1:
            return None
        if node.op.startswith(PRODUCTS):
            return _of_three(nodes, types, values[0])
        name = values[0]
    return None


def _of_three(nodes: Mapping[str, Node], types: Mapping[str, TensorType], name: str) -> str | None:
    """The value, or what it is a view of, with three dimensions."""
    while len(types[name].shape) != 3 or types[name].shape[0] != 1:
        node = nodes.get(name)
        if not isinstance(node, TokenwiseNode) or not node.is_view:
            return None
        name = node.inputs[0]
    return name if name in nodes else None


def _reduced_from(nodes: Mapping[str, Node], types: Mapping[str, TensorType], name: str) -> str | None:
    """The last token values of three dimensions, of which rows were taken or reduced."""
    stack = [name]
    while stack:
        node = nodes.get(stack.pop(0))
        if node is None:
            continue
        wide = [each for each in node.inputs if each in types and types[each].axis is not None]
        if isinstance(node, SequenceNode) and wide and len(types[wide[0]].shape) == 3 and wide[0] in nodes:
            return wide[0]
        stack.extend(node.inputs)
    return None
