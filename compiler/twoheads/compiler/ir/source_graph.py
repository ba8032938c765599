"""The captured model: token-wise nodes, and the attentions, scans and sequence operators, as frozen data.

Both front doors produce it (torch and ONNX), and every pass reads it; none of them needs either. A node's ``op`` text
holds its operator and all constant arguments, with ``%0, %1, ...`` where its inputs go, so that equal texts mean equal
computations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from twoheads.graphs.masks.expressions import Mask
from twoheads.graphs.masks.sampling import Average
from twoheads.graphs.program.program import Dim, Input, Limit

__all__ = [
    "AttentionNode",
    "Cut",
    "ExpertsNode",
    "Node",
    "ScanNode",
    "SequenceNode",
    "SourceGraph",
    "TensorType",
    "TokenwiseNode",
    "needed_nodes",
    "place_of",
]


@dataclass(frozen=True, slots=True)
class TensorType:
    """A NumPy dtype name and a shape, of whose dimensions at most one is a token axis such as ``n`` or ``n+1``.

    A graph may hold other texts where sizes depend on a length in other ways (``2*n``) or twice; no region may.
    """

    dtype: str
    shape: tuple[Dim, ...]

    @property
    def axis(self) -> str | None:
        """The token axis; ``None`` without one."""
        return next((dim for dim in self.shape if isinstance(dim, str)), None)

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class TokenwiseNode:
    """One operator.

    Attributes:
        name: Of its result, unique in the graph.
        op: Operator and constant arguments, e.g. ``aten.mean.dim(%0, [-1], True)``.
        inputs: Names of inputs, weights or earlier results.
        type: Of its result; ``None`` for results that are no single tensor (the parts of a ``split``).
        layer: Path of the module it belongs to, for messages.
        uses_length: Whether the number of tokens enters as a number, not as a shape; a block doesn't know it.
        is_view: Whether it moves no information: a region that reads the result of one in another region recomputes it.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    type: TensorType | None
    layer: str
    uses_length: bool = False
    is_view: bool = False


@dataclass(frozen=True, slots=True)
class AttentionNode:
    """Softmax attention with a symbolic mask; the maths are those of ``AttentionStage``.

    ``query [1, q_num_heads, n, head_dim]``, ``key [1, kv_num_heads, n, head_dim]``,
    ``value [1, kv_num_heads, n, v_head_dim]`` give ``name [1, q_num_heads, n, v_head_dim]``. Keys and values may lie on
    another axis than queries (cross attention). ``sinks``, ``bias_table`` and ``bias_slope`` name weights or are
    ``None``. ``distances`` is that of :class:`~twoheads.graphs.program.program.AttentionEngine`.
    """

    name: str
    query: str
    key: str
    value: str
    type: TensorType
    mask: Mask
    scale: float
    softcap: float
    sinks: str | None
    bias_table: str | None
    bias_slope: str | None
    layer: str
    average: Average | None = None
    distances: int = 0

    @property
    def inputs(self) -> tuple[str, ...]:
        """Queries, keys and values."""
        return self.query, self.key, self.value


@dataclass(frozen=True, slots=True)
class SequenceNode:
    """Rows moved, or reduced over all tokens, by an operator of :mod:`twoheads.graphs.program.sequence_operators`.

    Attributes:
        name: Of its result.
        operator: Its name there.
        inputs: Results or inputs, never weights.
        type: Of its result.
        attributes: Its whole numbers by name.
        layer: Path of the module it belongs to.
    """

    name: str
    operator: str
    inputs: tuple[str, ...]
    type: TensorType
    attributes: tuple[tuple[str, int], ...]
    layer: str


@dataclass(frozen=True, slots=True)
class ScanNode:
    """A recurrence over tokens by an operator of :mod:`twoheads.graphs.program.engines.scan_operators`.

    Attributes:
        name: Of its result.
        operator: Its name there.
        inputs: Token values on one axis, in the order of the operator's input ports.
        weights: Names of weights, in the order of its weight ports; those that it lacks are left out at the end.
        type: Of its result.
        layer: Path of the module it belongs to.
    """

    name: str
    operator: str
    inputs: tuple[str, ...]
    weights: tuple[str, ...]
    type: TensorType
    layer: str


@dataclass(frozen=True, slots=True)
class ExpertsNode:
    """A mixture of experts whose tokens are gathered by expert; the maths are those of ``ExpertsEngine``.

    Attributes:
        name: Of its result.
        hidden, index, share: Token values: rows, the experts that they chose, and their weights in the sum.
        weights: Names of the weights of all experts, in the order of the engine's ports.
        gate, layout, limit, alpha, transposed: As of the engine.
        type: Of its result.
        layer: Path of the module it belongs to.
    """

    name: str
    hidden: str
    index: str
    share: str
    weights: tuple[str, ...]
    gate: str
    layout: str
    limit: float
    alpha: float
    transposed: bool
    type: TensorType
    layer: str

    operator = "experts"

    @property
    def inputs(self) -> tuple[str, ...]:
        """Rows, chosen experts and shares."""
        return self.hidden, self.index, self.share


Cut: TypeAlias = AttentionNode | ScanNode | SequenceNode | ExpertsNode
"""What one token's result is made of other tokens by, or together with them; all else is token-wise."""

Node: TypeAlias = TokenwiseNode | Cut


def place_of(layer: str, name: str) -> str:
    """A node and its layer, for error messages."""
    return f'{layer or "model"} (node "{name}")'


def needed_nodes(nodes: Iterable[Node], outputs: Iterable[str]) -> tuple[Node, ...]:
    """Those of ``nodes`` that ``outputs`` need, in their order."""
    wanted = set(outputs)
    kept: list[Node] = []
    for node in reversed(tuple(nodes)):
        if node.name in wanted:
            kept.append(node)
            wanted.update(node.inputs)
    return tuple(reversed(kept))


@dataclass(frozen=True, slots=True)
class SourceGraph:
    """A whole model.

    Attributes:
        name: The model's name.
        inputs: What a run supplies.
        weights: Types of parameters, buffers and constants by name.
        nodes: In topological order.
        hidden: Name of the last hidden states.
        logits: Name of the head's result, or ``None``.
        max_length: Longest input that the graph's own shapes allow (a sliced table), or ``None``.
        limits: Longest inputs for which the graph is the model, where it is another for longer ones.
    """

    name: str
    inputs: tuple[Input, ...]
    weights: Mapping[str, TensorType]
    nodes: tuple[Node, ...]
    hidden: str
    logits: str | None
    max_length: int | None = field(default=None)
    limits: tuple[Limit, ...] = field(default=())

    @property
    def attentions(self) -> Iterator[AttentionNode]:
        """The attention nodes, in order."""
        return (node for node in self.nodes if isinstance(node, AttentionNode))

    @property
    def cuts(self) -> Iterator[Cut]:
        """The nodes through which tokens meet, in order."""
        return (node for node in self.nodes if not isinstance(node, TokenwiseNode))

    def types(self) -> dict[str, TensorType]:
        """The type of every input, weight and single-tensor result."""
        types = {entry.value.name: TensorType(entry.value.dtype, entry.value.shape) for entry in self.inputs}
        types.update(self.weights)
        types.update({node.name: node.type for node in self.nodes if node.type is not None})
        return types

    def __str__(self) -> str:
        lines = [f"graph {self.name}"]
        lines += [
            f"  input %{e.value.name}: {TensorType(e.value.dtype, e.value.shape)} = {e.source}" for e in self.inputs
        ]
        for node in self.nodes:
            if isinstance(node, TokenwiseNode):
                arguments = node.op
                for at in reversed(range(len(node.inputs))):
                    arguments = arguments.replace(f"%{at}", f"%{node.inputs[at]}")
                lines.append(f"  %{node.name}: {node.type or 'tuple'} = {arguments}")
            elif isinstance(node, ExpertsNode):
                operands = ", ".join(f"%{name}" for name in (*node.inputs, *node.weights))
                gate = f"gate={node.gate} layout={node.layout} limit={node.limit:g} alpha={node.alpha:g}"
                lines.append(f"  %{node.name}: {node.type} = experts({operands}) {gate} transposed={node.transposed}")
            elif isinstance(node, ScanNode):
                operands = ", ".join(f"%{name}" for name in (*node.inputs, *node.weights))
                lines.append(f"  %{node.name}: {node.type} = {node.operator}({operands})")
            elif isinstance(node, SequenceNode):
                operands = ", ".join(f"%{name}" for name in node.inputs)
                words = "".join(f" {key}={value}" for key, value in node.attributes)
                lines.append(f"  %{node.name}: {node.type} = {node.operator}({operands}){words}")
            else:
                extras = "".join(
                    f", {key}={value}"
                    for key, value in (
                        ("softcap", node.softcap or None),
                        ("sinks", node.sinks),
                        ("bias_table", node.bias_table),
                        ("bias_slope", node.bias_slope),
                        ("average", node.average),
                        ("distances", node.distances or None),
                    )
                    if value is not None
                )
                operands = ", ".join(f"%{name}" for name in node.inputs)
                lines.append(
                    f"  %{node.name}: {node.type} = attention({operands}, mask={node.mask}, scale={node.scale}{extras})"
                )
        lines.append(f"  output hidden = %{self.hidden}" + (f", logits = %{self.logits}" if self.logits else ""))
        return "\n".join(lines) + "\n"
