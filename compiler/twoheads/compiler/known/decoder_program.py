"""A decoder of known sizes as a block program, layer by layer, named as a capture names it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from twoheads.compiler.frontend.torch.weights.gguf_entries import gemma_width
from twoheads.compiler.known.kind import Kind
from twoheads.compiler.known.tokenwise_regions import Body, Regions, Weights
from twoheads.graphs.costs.expert_costs import dense_is_cheaper
from twoheads.graphs.masks.expressions import And, Causal, Window
from twoheads.graphs.program.engines.experts import ExpertsEngine
from twoheads.graphs.program.engines.port import Port
from twoheads.graphs.program.engines.scan import ScanEngine
from twoheads.graphs.program.engines.tile_attention import AttentionEngine
from twoheads.graphs.program.program import TOKENS, Engine, Input, Limit, Program
from twoheads.graphs.program.stages import (
    AttentionStage,
    ExpertsStage,
    RelativeBias,
    ScanStage,
    Value,
)

__all__ = ["Decoder", "Experts"]

_Parts: TypeAlias = Mapping[str, Sequence[Value]]
"""What a region may read, by letter."""


TABLE, PLACES, SLOPE = "lm_head.weight", "transformer.wpe.weight", "to.slope"
ROWS, CHOSEN, SHARES = "mlp.experts.rows", "mlp.experts.chosen", "mlp.experts.shares"
EXPERTS = "mlp.experts."
"""In front of the names of what belongs to the experts of a layer."""


@dataclass(frozen=True, slots=True)
class Experts:
    """Sizes of a mixture.

    Attributes:
        experts: Of a layer.
        chosen: By a token.
        inner: The width between the two products of one.
        shared: The same of what all tokens share; 0 without it.
    """

    experts: int
    chosen: int
    inner: int
    shared: int


@dataclass(frozen=True, slots=True)
class Decoder:
    """A decoder: its sizes, and its program.

    Attributes:
        kind: Its architecture.
        block: Tokens of a block.
        layers, context, hidden, inner, heads, kv_heads, head_dim, vocabulary: Its sizes.
        turned: The width of a head that rotary positions turn.
        window: Tokens that layers under a window see.
        tied: The head's table is the tokens'.
        mixed: The sizes of its experts, or ``None``.
        convolved: The layers that convolve in place of attention.
        taps: The tokens of a convolution.
    """

    kind: Kind
    block: int
    layers: int
    context: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    turned: int
    window: int
    tied: bool
    mixed: Experts | None
    convolved: frozenset[int] = frozenset()
    taps: int = 0

    def program(self, name: str, tile: int) -> Program:
        """All of it.

        Args:
            name: The source's.
            tile: Tokens of a key tile.
        """
        ids, positions = Value("input_ids", "int64", (1, TOKENS)), Value("positions", "int64", (TOKENS,))
        body = Body(Regions(self.block))
        last = self._body(body, [ids, *([positions] if self.kind.turned or self.kind.places else [])])
        logits = [self._rows("logits", self.vocabulary)]
        head = body.regions.add("head", "head", [last], logits, [self._table(TABLE)])
        inputs = (Input(positions, "positions", None), Input(ids, "argument", self.vocabulary))
        others = [engine for engine in (self._scan_engine, self._gathered) if engine is not None]
        engines: tuple[Engine, ...] = (*body.regions.engines.values(), self._attention_engine(tile), *others)
        places = self.kind.places
        limit = Limit(places, f"its table {PLACES} of {places} rows") if places else None
        context = self.context if self.kind.context else None
        stages = tuple(body.stages)
        return Program(
            name, self.block, tile, inputs, engines, stages, (head,), "hidden", "logits", None, limit, context
        )

    def _body(self, body: Body, reads: Sequence[Value]) -> Value:
        """Adds all stages of the body, whose first reads ``reads``; the last hidden states."""
        kind, angles, tables = self.kind, self._angles(), self._tables()
        rows = self._rows(f"region_0.{kind.begins}", self.hidden)
        gives, weights = [rows, *(angle for pair in angles for angle in pair)], tables
        for layer in range(self.layers):
            conv = kind.convolution if layer in self.convolved else None
            beside = self._beside(body, layer) if conv is None else self._gate(body, layer)
            operands = [*self._operands(layer), *beside] if conv is None else [*beside, self._convolved(body, layer)]
            gives, weights = [*gives, *operands], [*weights, *self._weights((conv or kind).before, layer)]
            role = "first" if not layer else "second" if layer == 1 and kind.first_reads else "rest"
            role += f" {layer - 1 in self.convolved} {layer in self.convolved}"
            body.region(role, reads, gives, weights, looked_up=len(tables) if not layer else 0)
            stage = self._attention(layer) if conv is None else self._convolution(layer, operands[-1])
            body.stages.append(stage)
            own = angles[0] if self._sees_all(layer + 1) else angles[-1]
            own = [] if layer + 1 in self.convolved else own
            parts: _Parts = {"a": own, "r": [rows], "o": [stage.output], "p": beside}
            order = kind.first_reads if kind.first_reads and not layer and self.layers > 1 else kind.reads
            order = order if conv is None else "arop"
            behind = self._weights((conv or kind).after, layer)
            if self._gathered is not None:
                parts, behind = self._mix(body, layer, parts, behind)
                order = "arop"
            reads = [value for letter in order for value in parts[letter]]
            rows = self._rows(f"{body.next}.add_{self._added(layer + 1)}", self.hidden)
            gives, weights = [rows], behind
        angle_names = {angle.name for pair in angles for angle in pair}
        last = self._rows("hidden", self.hidden)
        reads = [value for value in reads if value.name not in angle_names]
        body.region("last", reads, [last], [*weights, *self._weights(kind.last)])
        return last

    def _mix(self, body: Body, layer: int, parts: _Parts, weights: Weights) -> tuple[_Parts, Weights]:
        """Adds the region up to the experts of a layer, and these; what the region behind them reads and multiplies."""
        kind, mixture, mixed = self.kind, self.kind.mixture, self.mixed
        assert mixture is not None
        assert mixed is not None
        start = kind.naming.layer.format(layer)
        rows = self._rows(f"{body.next}.add_{mixture.sums * layer + mixture.before}", self.hidden)
        hidden = Value(start + ROWS, "float32", (TOKENS, self.hidden))
        index = Value(start + CHOSEN, "int64", (TOKENS, mixed.chosen))
        share = Value(start + SHARES, "float32", (TOKENS, mixed.chosen))
        beside: list[Value] = []
        if mixture.beside is not None:
            number, which = mixture.beside
            beside = [Value(f"{body.next}.mul_{number * layer + which}", "float32", (TOKENS, self.hidden))]
        reads = [value for letter in kind.reads.replace("a", "") for value in parts[letter]]
        own = [weight for weight in weights if not weight.name.startswith(start + EXPERTS)]
        body.region("mixed", reads, [rows, hidden, index, share, *beside], own)
        result = Value(f"{start}{EXPERTS}out", "float32", (TOKENS, self.hidden))
        stacks = tuple(weight.name for weight in weights if weight not in own)
        path = start + EXPERTS.removesuffix(".")
        body.stages.append(ExpertsStage(path, "experts_0", hidden.name, index.name, share.name, result, stacks))
        return {"a": parts["a"], "r": [rows], "o": [result], "p": beside}, ()

    def _added(self, layers: int) -> int:
        """Nodes that are called ``add`` in the first ``layers``, and before them."""
        kind = self.kind
        dense = self.mixed.experts if self.mixed is not None and self._gathered is None else 0
        convolved, less = self._before(layers), kind.sums - kind.convolution.sums if kind.convolution else 0
        return kind.begins_with + (kind.sums + dense) * layers - less * convolved

    def _before(self, layer: int) -> int:
        """How many of the layers before this one convolve."""
        return sum(other < layer for other in self.convolved)

    def _gate(self, body: Body, layer: int) -> list[Value]:
        """What the result of a convolution is multiplied by."""
        number = 3 * self._before(layer) + 1
        return [Value(f"{body.next}.getitem_{number}", "float32", (1, self.hidden, TOKENS))]

    def _convolved(self, body: Body, layer: int) -> Value:
        """What is convolved."""
        return self._rows(f"{body.next}.transpose_{4 * layer + 1}", self.hidden)

    def _convolution(self, layer: int, operand: Value) -> ScanStage:
        start, before = self.kind.naming.layer.format(layer), self._before(layer)
        name = f"{start}conv.causal_conv"
        weight = f"{start}conv.conv.weight.squeeze{f'_{before}' if before else ''}"
        return ScanStage(name, "scan_0", (operand.name,), self._rows(name, self.hidden), (weight,))

    @property
    def _scan_engine(self) -> ScanEngine | None:
        sizes = ("bias", 0), ("channels", self.hidden), ("kernel", self.taps)
        return ScanEngine("scan_0", "causal_conv", sizes, self.block, 1) if self.convolved else None

    @property
    def _gathered(self) -> ExpertsEngine | None:
        """The engine of experts, unless all of them on all tokens cost less, or there are none."""
        if self.mixed is None:
            return None
        sizes = self.mixed.experts, self.mixed.chosen, self.hidden, self.mixed.inner
        engine = ExpertsEngine("experts_0", *sizes, "silu", "halves", 0.0, 0.0, 0, 0, self.block, "float32")
        return None if dense_is_cheaper(engine) else engine

    def _tables(self) -> Weights:
        """The weights of embeddings and positions."""
        kind = self.kind
        frequencies = kind.gemma.frequencies if kind.gemma else ("inv_freq",) if kind.turned else ()
        scale = [Port("model.embed_tokens.embed_scale", "float32", ())] if kind.gemma else []
        places = [Port(PLACES, "float32", (kind.places, self.hidden))] if kind.places else []
        return [
            self._table(TABLE if self.tied else kind.naming.table),
            *places,
            *scale,
            *(Port(kind.naming.angles + name, "float32", (self.turned // 2,)) for name in frequencies),
            *self._weights(kind.tables),
        ]

    def _angles(self) -> list[list[Value]]:
        """Cosines and sines: of the layers that see all tokens, and of the others where theirs differ."""
        kind = self.kind
        if not kind.turned:
            return [[]]
        first, pairs = (2, len(kind.gemma.frequencies)) if kind.gemma else (1, 1)
        return [
            [self._rows(f"region_0.mul_{first + 3 * pair + at}", self.turned) for at in range(2)]
            for pair in range(pairs)
        ]

    def _sees_all(self, layer: int) -> bool:
        if self.kind.gemma is not None:
            return (layer + 1) % self.kind.gemma.period == 0
        return not self.window

    def _scores_by(self) -> int:
        """By the root of what scores are divided."""
        if self.kind.gemma is None:
            return self.head_dim
        return gemma_width(self.kind.gemma.name, self.layers, self.hidden // self.heads, self.head_dim)

    def _table(self, name: str) -> Port:
        return Port(name, "float32", (self.vocabulary, self.hidden))

    def _rows(self, name: str, width: int) -> Value:
        return Value(name, "float32", (1, TOKENS, width))

    def _module(self, layer: int) -> str:
        """The attention of a layer."""
        return self.kind.naming.layer.format(layer) + self.kind.naming.attention

    def _heads(self, layer: int, name: str, heads: int) -> Value:
        return Value(f"{self._module(layer)}.{name}", "float32", (1, heads, TOKENS, self.head_dim))

    def _operands(self, layer: int) -> list[Value]:
        found = {
            "q": self._heads(layer, "query", self.heads),
            "k": self._heads(layer, "key", self.kv_heads),
            "v": self._heads(layer, "value", self.kv_heads),
        }
        return [found[letter] for letter in self.kind.operands]

    def _beside(self, body: Body, layer: int) -> list[Value]:
        """What a layer computes beside its attention."""
        if self.kind.beside is None:
            return []
        node, number, which = self.kind.beside
        return [self._rows(f"{body.next}.{node}_{number * layer + which}", self.hidden)]

    def _attention(self, layer: int) -> AttentionStage:
        module = self._module(layer)
        query, key, value = (f"{module}.{name}" for name in ("query", "key", "value"))
        result = self._heads(layer, "out", self.heads)
        mask = Causal() if self._sees_all(layer) else And((Window(self.window - 1, -1), Causal()))
        bias = RelativeBias(None, SLOPE) if self.kind.slope else None
        return AttentionStage(module, "attention_0", query, key, value, result, mask, None, bias)

    def _attention_engine(self, tile: int) -> AttentionEngine:
        gemma = self.kind.gemma
        return AttentionEngine(
            name="attention_0",
            q_num_heads=self.heads,
            kv_num_heads=self.kv_heads,
            head_dim=self.head_dim,
            v_head_dim=self.head_dim,
            block_size=self.block,
            key_tile=tile,
            scale=self._scores_by() ** -0.5,
            softcap=gemma.softcap if gemma else 0.0,
            mask_heads=self.heads if self.kind.slope else 1,
            dtype="float32",
        )

    def _weights(self, written: Sequence[str], layer: int | None = None) -> Weights:
        """What is written as names and letters: of a layer, or of the model."""
        start = "" if layer is None else self.kind.naming.layer.format(layer)
        counted = (layer or 0) * sum("{}" in weight for weight in written)
        found: list[Port] = []
        for name, letters, dtype in ((*weight.split(), "float32")[:3] for weight in written):
            if "{}" in name:
                name, counted = name.format(counted), counted + 1
            found.append(Port(start + name, dtype, tuple(self._letters[letter] for letter in letters)))
        return found

    @property
    def _letters(self) -> Mapping[str, int]:
        """The sizes by the letters of :mod:`~twoheads.compiler.known.kind`."""
        sizes = {
            "1": 1,
            "t": 3 * self.hidden,
            "h": self.hidden,
            "i": self.inner,
            "j": 4 * self.hidden,
            "d": self.head_dim,
        }
        sizes |= {"g": 2 * self.inner, "q": self.heads * self.head_dim, "k": self.kv_heads * self.head_dim}
        if (mixed := self.mixed) is not None:
            sizes |= {"e": mixed.experts, "x": mixed.inner, "y": 2 * mixed.inner, "s": mixed.shared}
        return sizes | {"f": sizes["q"] + 2 * sizes["k"]}
