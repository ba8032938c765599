"""The ``tile`` lowering: token-wise engines for regions, ``(out, lse)`` engines for (query block, key tile).

It turns a partition into a block program. Exact for any mask and any length: Lemma 3.1's decomposition of attention
over key blocks, with the partial softmaxes merged by log-sum-exp instead of recovered through a synthetic token.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from twoheads.compiler.ir.source_graph import AttentionNode, ExpertsNode, ScanNode, SequenceNode, TensorType
from twoheads.compiler.ir.source_program import Captured, TokenwiseRegion
from twoheads.compiler.lowering.experts import experts_engine
from twoheads.compiler.lowering.scans import scan_engine
from twoheads.compiler.passes.partition import Partition, Region
from twoheads.graphs.program.program import (
    TOKENS,
    AttentionEngine,
    AttentionStage,
    ExpertsEngine,
    ExpertsStage,
    Limit,
    Port,
    Program,
    RelativeBias,
    ScanEngine,
    ScanStage,
    SequenceStage,
    Stage,
    TokenwiseEngine,
    TokenwiseStage,
    Value,
)

__all__ = ["lower_tile"]


@dataclass(frozen=True, slots=True)
class Lowered:
    """A program and, for each token-wise engine by name, the region that defines it."""

    program: Program
    regions: Mapping[str, TokenwiseRegion]


def lower_tile(
    captured: Captured, parts: Partition, *, block_size: int, key_tile: int, limits: tuple[Limit, ...]
) -> Lowered:
    """Lowers a partitioned model; ``block_size`` and ``key_tile`` in tokens, the latter a multiple of the former."""
    graph = captured.graph
    builder = _Builder(captured, block_size, key_tile)
    body = tuple(builder.stages(parts))
    head = (builder.tokenwise(parts.head, "head"),) if parts.head else ()
    program = Program(
        name=graph.name,
        block_size=block_size,
        key_tile=key_tile,
        inputs=graph.inputs,
        engines=builder.engines,
        body=body,
        head=head,
        hidden=builder.names[graph.hidden],
        logits=builder.names[graph.logits] if graph.logits else None,
        pooling=captured.pooling,
        max_length=next((limit for limit in limits if limit.axis == TOKENS), None),
        other_limits=tuple(limit for limit in limits if limit.axis != TOKENS),
        # A learned table is a hard limit, so there is nothing beyond it to warn of.
        trained_length=None if limits else captured.trained_length,
    )
    return Lowered(program, builder.regions)


class _Builder:
    """Collects engines while stages are made; equal regions and equal attention geometries share an engine."""

    def __init__(self, captured: Captured, block_size: int, key_tile: int) -> None:
        self.graph = captured.graph
        self.types = self.graph.types()
        self.program = captured.program
        self.block_size = block_size
        self.key_tile = key_tile
        self.names = {entry.value.name: entry.value.name for entry in self.graph.inputs}
        self.regions: dict[str, TokenwiseRegion] = {}
        self._tokenwise: dict[str, TokenwiseEngine] = {}
        self._attention: dict[AttentionEngine, AttentionEngine] = {}
        self._scans: dict[ScanEngine, ScanEngine] = {}
        self._experts: dict[ExpertsEngine, ExpertsEngine] = {}
        self._layers: dict[str, int] = {}

    @property
    def engines(self) -> tuple[TokenwiseEngine | AttentionEngine | ScanEngine | ExpertsEngine, ...]:
        made: list[TokenwiseEngine | AttentionEngine | ScanEngine | ExpertsEngine] = [*self._tokenwise.values()]
        return (*made, *self._attention.values(), *self._scans.values(), *self._experts.values())

    def stages(self, parts: Partition) -> Iterator[Stage]:
        self._name_operands(parts)
        regions = 0
        for step in parts.body:
            if isinstance(step, Region):
                yield self.tokenwise(step, f"region_{regions}")
                regions += 1
            elif isinstance(step, AttentionNode):
                yield self._attend(step)
            elif isinstance(step, ScanNode):
                yield self._scan(step)
            elif isinstance(step, ExpertsNode):
                yield self._mixture(step)
            else:
                yield self._move(step)

    def _name_operands(self, parts: Partition) -> None:
        """Names values after what they are to an attention: ``layers.0.self_attn.query``."""
        for step in parts.body:
            if isinstance(step, AttentionNode):
                layer = self._layer_name(step)
                self.names[step.name] = f"{layer}.out"
                for role, name in zip(("query", "key", "value"), step.inputs, strict=True):
                    self.names.setdefault(name, f"{layer}.{role}")
            elif isinstance(step, ScanNode):
                self.names.setdefault(step.name, self._numbered(f"{step.layer or 'scan'}.{step.operator}"))
            elif isinstance(step, ExpertsNode):
                self._name_mixture(step)
            elif isinstance(step, SequenceNode):
                self.names.setdefault(step.name, f"{self._layer_name(step)}.{step.operator}")
        self.names.setdefault(self.graph.hidden, "hidden")
        if self.graph.logits:
            self.names.setdefault(self.graph.logits, "logits")

    def _name_mixture(self, node: ExpertsNode) -> None:
        layer = self._numbered(node.layer or "experts")
        self.names.setdefault(node.name, f"{layer}.out")
        for role, name in zip(("rows", "chosen", "shares"), node.inputs, strict=True):
            self.names.setdefault(name, f"{layer}.{role}")

    def _layer_name(self, node: AttentionNode | SequenceNode) -> str:
        """The layer's path."""
        return self._numbered(node.layer or ("attention" if isinstance(node, AttentionNode) else "sequence"))

    def _numbered(self, path: str) -> str:
        """The path; that of a module called again (ALBERT's shared layer) with a number."""
        count = self._layers[path] = self._layers.get(path, 0) + 1
        return path if count == 1 else f"{path}.call_{count}"

    def _value(self, name: str, stage: str) -> Value:
        type_ = self.types[name]
        return Value(self.names.setdefault(name, f"{stage}.{name}"), type_.dtype, type_.shape)

    def tokenwise(self, region: Region, stage: str) -> TokenwiseStage:
        engine = self._tokenwise.get(region.fingerprint)
        if engine is None:
            engine = self._tokenwise[region.fingerprint] = self._make_engine(region, len(self._tokenwise), stage)
        return TokenwiseStage(
            name=stage,
            engine=engine.name,
            inputs=tuple(self.names[name] for name in region.inputs),
            outputs=tuple(self._value(name, stage) for name in region.outputs),
            weights=region.weights,
        )

    def _make_engine(self, region: Region, number: int, stage: str) -> TokenwiseEngine:
        name = "head" if stage == "head" else f"tokenwise_{number}"
        nodes = tuple(node.name for node in region.nodes)
        lowered = self.program.region(nodes, region.inputs, region.weights, region.outputs, region.axis)
        self.regions[name] = lowered
        engine = TokenwiseEngine(
            name=name,
            inputs=tuple(self._port(f"input_{at}", self.types[name]) for at, name in enumerate(region.inputs)),
            outputs=tuple(self._port(f"output_{at}", self.types[name]) for at, name in enumerate(region.outputs)),
            weights=tuple(self._weight_ports(region)),
            flops=0,
        )
        return replace(engine, flops=lowered.flops(engine))

    def _port(self, name: str, type_: TensorType) -> Port:
        shape = tuple(self.block_size if isinstance(dim, str) else dim for dim in type_.shape)
        return Port(name, type_.dtype, shape)

    def _weight_ports(self, region: Region) -> Iterator[Port]:
        """Weight ports named by path without layer numbers, so that a template reads well for any layer."""
        taken: dict[str, int] = {}
        for name in region.weights:
            plain = re.sub(r"\.\d+(?=\.|$)", "", name)
            count = taken[plain] = taken.get(plain, 0) + 1
            yield self._port(plain if count == 1 else f"{plain}.{count}", self.types[name])

    def _attend(self, node: AttentionNode) -> AttentionStage:
        query, key, value = (self.types[name].shape for name in node.inputs)
        biased = node.bias_table is not None or node.bias_slope is not None
        engine = AttentionEngine(
            name="",
            q_num_heads=int(query[1]),
            kv_num_heads=int(key[1]),
            head_dim=int(query[3]),
            v_head_dim=int(value[3]),
            block_size=self.block_size,
            key_tile=self.key_tile,
            scale=node.scale,
            softcap=node.softcap,
            mask_heads=int(query[1]) if biased and not node.distances else 1,
            dtype=node.type.dtype,
            distances=node.distances,
        )
        return AttentionStage(
            name=self.names[node.name].removesuffix(".out"),
            engine=self._named(engine).name,
            query=self.names[node.query],
            key=self.names[node.key],
            value=self.names[node.value],
            output=Value(self.names[node.name], node.type.dtype, node.type.shape),
            mask=node.mask,
            sinks=node.sinks,
            bias=RelativeBias(node.bias_table, node.bias_slope) if biased else None,
            average=node.average,
        )

    def _scan(self, node: ScanNode) -> ScanStage:
        engine = scan_engine(node, self.types, self.block_size)
        named = self._scans.setdefault(engine, replace(engine, name=f"scan_{len(self._scans)}"))
        return ScanStage(
            name=self.names[node.name],
            engine=named.name,
            inputs=tuple(self.names[name] for name in node.inputs),
            output=Value(self.names[node.name], node.type.dtype, node.type.shape),
            weights=node.weights,
        )

    def _mixture(self, node: ExpertsNode) -> ExpertsStage:
        engine = experts_engine(node, self.types, self.block_size)
        named = self._experts.setdefault(engine, replace(engine, name=f"experts_{len(self._experts)}"))
        return ExpertsStage(
            name=self.names[node.name].removesuffix(".out"),
            engine=named.name,
            hidden=self.names[node.hidden],
            index=self.names[node.index],
            share=self.names[node.share],
            output=Value(self.names[node.name], node.type.dtype, node.type.shape),
            weights=node.weights,
        )

    def _move(self, node: SequenceNode) -> SequenceStage:
        return SequenceStage(
            name=self.names[node.name],
            operator=node.operator,
            inputs=tuple(self.names[name] for name in node.inputs),
            output=Value(self.names[node.name], node.type.dtype, node.type.shape),
            attributes=tuple(sorted(node.attributes)),
        )

    def _named(self, engine: AttentionEngine) -> AttentionEngine:
        return self._attention.setdefault(engine, replace(engine, name=f"attention_{len(self._attention)}"))
