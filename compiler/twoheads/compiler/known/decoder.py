"""A decoder of known sizes as a block program, layer by layer, named as a capture names it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

from twoheads.compiler.known.kinds import GEMMA_SCALE, Kind
from twoheads.graphs.masks.expressions import And, Causal, Window
from twoheads.graphs.program.engines.port import Port
from twoheads.graphs.program.engines.tile_attention import AttentionEngine
from twoheads.graphs.program.engines.tokenwise import TokenwiseEngine
from twoheads.graphs.program.program import TOKENS, Engine, Input, Limit, Program
from twoheads.graphs.program.stages import AttentionStage, RelativeBias, Stage, TokenwiseStage, Value

__all__ = ["Decoder"]

Weights = Sequence[tuple[str, tuple[int, ...]]]
"""Names and shapes."""

TABLE, PLACES, SLOPE = "lm_head.weight", "transformer.wpe.weight", "to.slope"


@dataclass(frozen=True, slots=True)
class Decoder:
    """A decoder: its sizes, and its program.

    Attributes:
        kind: Its architecture.
        block: Tokens of a block.
        layers, context, hidden, inner, heads, kv_heads, head_dim, vocabulary: Its sizes.
        window: Tokens that layers under a window see.
        tied: The head's table is the tokens'.
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
    window: int
    tied: bool

    def program(self, name: str, tile: int) -> Program:
        """All of it.

        Args:
            name: The source's.
            tile: Tokens of a key tile.
        """
        ids, positions = Value("input_ids", "int64", (1, TOKENS)), Value("positions", "int64", (TOKENS,))
        regions, kind = _Regions(self.block), self.kind
        body: list[Stage] = []
        angles, tables = self._angles(), self._tables()
        rows, beside = self._rows(f"region_0.{kind.begins}", self.hidden), None
        reads = [ids, *([positions] if kind.turned or kind.places else [])]
        gives, weights = [rows, *(angle for pair in angles for angle in pair)], tables
        for layer in range(self.layers):
            beside = self._beside(layer)
            gives = [*gives, *self._operands(layer), *([beside] if beside is not None else [])]
            weights = [*weights, *self._weights(kind.before, layer)]
            role = "first" if not layer else "second" if layer == 1 and kind.first_reads else "rest"
            looked_up = len(tables) if not layer else 0
            body.append(regions.add(role, f"region_{layer}", reads, gives, weights, looked_up))
            attention = self._attention(layer)
            body.append(attention)
            own = angles[0] if self._sees_all(layer + 1) else angles[-1]
            parts = {"a": own, "r": [rows], "o": [attention.output], "p": [] if beside is None else [beside]}
            order = kind.first_reads if kind.first_reads and not layer and self.layers > 1 else kind.reads
            reads = [value for letter in order for value in parts[letter]]
            rows = self._rows(f"region_{layer + 1}.add_{kind.begins_with + kind.sums * (layer + 1)}", self.hidden)
            gives, weights = [rows], self._weights(kind.after, layer)
        angle_names = {angle.name for pair in angles for angle in pair}
        last = [self._rows("hidden", self.hidden)]
        reads = [value for value in reads if value.name not in angle_names]
        weights = [*weights, *self._weights(kind.last)]
        body.append(regions.add("last", f"region_{self.layers}", reads, last, weights))
        logits = [self._rows("logits", self.vocabulary)]
        head = regions.add("head", "head", last, logits, [(TABLE, self._table)])
        inputs = (Input(positions, "positions", None), Input(ids, "argument", self.vocabulary))
        engines: tuple[Engine, ...] = (*regions.engines.values(), self._attention_engine(tile))
        limit = Limit(kind.places, f"its table {PLACES} of {kind.places} rows") if kind.places else None
        context = self.context if kind.context else None
        return Program(
            name, self.block, tile, inputs, engines, tuple(body), (head,), "hidden", "logits", None, limit, context
        )

    def _tables(self) -> Weights:
        """The weights of embeddings and positions."""
        kind = self.kind
        frequencies = kind.gemma.frequencies if kind.gemma else ("inv_freq",) if kind.turned else ()
        scale: Weights = [("model.embed_tokens.embed_scale", ())] if kind.gemma else []
        places: Weights = [(PLACES, (kind.places, self.hidden))] if kind.places else []
        return [
            (TABLE if self.tied else kind.naming.table, self._table),
            *places,
            *scale,
            *((kind.naming.angles + name, (self._turned // 2,)) for name in frequencies),
            *self._weights(kind.tables),
        ]

    @property
    def _turned(self) -> int:
        """The width of a head that rotary positions turn."""
        return int(self.head_dim * self.kind.turned)

    def _angles(self) -> list[list[Value]]:
        """Cosines and sines: of the layers that see all tokens, and of the others where theirs differ."""
        kind = self.kind
        if not kind.turned:
            return [[]]
        first, pairs = (2, len(kind.gemma.frequencies)) if kind.gemma else (1, 1)
        return [
            [self._rows(f"region_0.mul_{first + 3 * pair + at}", self._turned) for at in range(2)]
            for pair in range(pairs)
        ]

    def _sees_all(self, layer: int) -> bool:
        return self.kind.gemma is None or (layer + 1) % self.kind.gemma.period == 0

    @property
    def _table(self) -> tuple[int, int]:
        return self.vocabulary, self.hidden

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

    def _beside(self, layer: int) -> Value | None:
        """What a layer computes beside its attention."""
        if self.kind.beside is None:
            return None
        number, which = self.kind.beside
        return self._rows(f"region_{layer}.linear_{number * layer + which}", self.hidden)

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
            scale=GEMMA_SCALE if gemma else self.head_dim**-0.5,
            softcap=gemma.softcap if gemma else 0.0,
            mask_heads=self.heads if self.kind.slope else 1,
            dtype="float32",
        )

    def _weights(self, written: Sequence[str], layer: int | None = None) -> Weights:
        """What is written as names and letters: of a layer, or of the model."""
        sizes = {"h": self.hidden, "i": self.inner, "j": 4 * self.hidden, "d": self.head_dim, "g": 2 * self.inner}
        sizes |= {"q": self.heads * self.head_dim, "k": self.kv_heads * self.head_dim}
        sizes["f"] = sizes["q"] + 2 * sizes["k"]
        start = "" if layer is None else self.kind.naming.layer.format(layer)
        pairs = (weight.split() for weight in written)
        return [(start + name, tuple(sizes[letter] for letter in shape)) for name, shape in pairs]


@dataclass(frozen=True, slots=True)
class _Regions:
    """Token-wise stages and their engines, one for each role that a region has.

    Attributes:
        block: Tokens of a block.
        engines: By role.
    """

    block: int
    engines: dict[str, TokenwiseEngine] = field(default_factory=dict[str, TokenwiseEngine])

    def add(
        self,
        role: str,
        stage: str,
        reads: Sequence[Value],
        gives: Sequence[Value],
        weights: Weights,
        looked_up: int = 0,
    ) -> TokenwiseStage:
        """A stage; its engine is added where it is the first of its role. Of weights the first are ``looked_up``."""
        if role not in self.engines:
            name = role if role == "head" else f"tokenwise_{len(self.engines)}"
            flops = 2 * self.block * sum(prod(shape) for _, shape in weights[looked_up:] if len(shape) == 2)
            ports = tuple(Port(_without_layer(name), "float32", shape) for name, shape in weights)
            self.engines[role] = TokenwiseEngine(
                name, self._ports("input", reads), self._ports("output", gives), ports, flops
            )
        named = tuple(value.name for value in reads), tuple(gives), tuple(name for name, _ in weights)
        return TokenwiseStage(stage, self.engines[role].name, *named)

    def _ports(self, name: str, values: Sequence[Value]) -> tuple[Port, ...]:
        shapes = [tuple(self.block if dim == TOKENS else int(dim) for dim in value.shape) for value in values]
        dtypes = [value.dtype for value in values]
        return tuple(Port(f"{name}_{at}", *found) for at, found in enumerate(zip(dtypes, shapes, strict=True)))


def _without_layer(name: str) -> str:
    return ".".join(part for part in name.split(".") if not part.isdigit())
