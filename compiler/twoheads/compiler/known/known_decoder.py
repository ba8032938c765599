"""The block programs of GGUF decoders whose capture is known beforehand: torch alone takes seconds to load.

Five architectures have one shape of layer: normed attention with rotary positions, and a gated product. Files of them
differ in sizes, in biases of the projections, in norms, and in windows of some layers. Their programs are written here
as the capture finds them, to the name; tests compare the two. A file that says what is not read here is captured as
all others are.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from math import prod
from pathlib import Path

from twoheads.compiler.frontend.torch.weights.gguf_header import GgufFacts, gguf_facts
from twoheads.graphs.masks.expressions import And, Causal, Window
from twoheads.graphs.program.engines.port import Port
from twoheads.graphs.program.engines.tile_attention import AttentionEngine
from twoheads.graphs.program.engines.tokenwise import TokenwiseEngine
from twoheads.graphs.program.program import TOKENS, Engine, Input, Program
from twoheads.graphs.program.stages import AttentionStage, Stage, TokenwiseStage, Value

__all__ = ["known_decoder"]

LIBRARY, READ_BY = "transformers", "5."
"""Whose reading of a header this is, and of which versions."""

KEY_LENGTH, WINDOW = "attention.key_length", "attention.sliding_window"


@dataclass(frozen=True, slots=True)
class _Kind:
    """An architecture.

    Attributes:
        head_dim: The entry that says the width of a head, or the width that the library takes whatever the file says;
            where there is neither, the width of the hidden states is divided by the heads.
        bias: Queries, keys and values have biases.
        norms: Queries and keys are normed.
        sums: Nodes of a captured layer that are called ``add``.
        gemma: What its layers have besides, or ``None``.
    """

    head_dim: str | int | None
    bias: bool
    norms: bool
    sums: int
    gemma: _Gemma | None = None


@dataclass(frozen=True, slots=True)
class _Gemma:
    """Scaled embeddings, norms before and behind the gated product, and windows; the head's table is the tokens'.

    Attributes:
        period: Of so many layers the last sees all tokens before its own, the others a window of them.
        softcap: Of scores; 0 for none.
        frequencies: Buffers of the rotary embedding: of the layers that see all, and of the others if these differ.
    """

    period: int
    softcap: float
    frequencies: tuple[str, ...]


KINDS = {
    "llama": _Kind("rope.dimension_count", bias=False, norms=False, sums=6),
    "qwen2": _Kind(None, bias=True, norms=False, sums=6),
    "qwen3": _Kind(128, bias=False, norms=True, sums=8),
    "gemma2": _Kind(KEY_LENGTH, bias=False, norms=False, sums=12, gemma=_Gemma(2, 50.0, ("inv_freq",))),
    "gemma3": _Kind(
        KEY_LENGTH,
        bias=False,
        norms=True,
        sums=16,
        gemma=_Gemma(6, 0.0, ("full_attention_inv_freq", "sliding_attention_inv_freq")),
    ),
}

GEMMA_SCALE = 256**-0.5
"""What the library multiplies the scores of any Gemma with that is read from a header."""

SIZES = (
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
)
"""Entries of an architecture that every known file has."""

WIDTHS = (KEY_LENGTH, "attention.value_length", "rope.dimension_count")
"""Entries that say the width of a head once more."""

OTHERS = ("attention.layer_norm_rms_epsilon", "rope.freq_base", "vocab_size")
"""Entries that it may have besides; the first two change nothing in a program."""

OF_GEMMA = (WINDOW, "attn_logit_softcapping", "final_logit_softcapping", "rope.scaling.type", "rope.scaling.factor")
"""Entries that a Gemma may have; of these the library reads the first."""

ASIDE = ("general.", "tokenizer.", "quantize.")
"""How entries begin that are not about the model's graph."""


def known_decoder(path: Path, block: int, tile: int) -> Program | None:
    """The program that a capture of ``path`` would give, lowered to tiles; ``None`` where that is not known.

    Args:
        path: A source.
        block: The block size.
        tile: The key tile.
    """
    if path.suffix != ".gguf":
        return None
    try:
        known = version(LIBRARY).startswith(READ_BY)
        decoder = _decoder(gguf_facts(path), block) if known else None
    except (OSError, ValueError, KeyError, struct.error, PackageNotFoundError):  # whoever captures it says why
        return None
    return None if decoder is None else decoder.program(path.stem, tile)


def _decoder(facts: GgufFacts, block: int) -> _Decoder | None:
    """What a header says, if it is of a known kind and says nothing else."""
    architecture, name = str(facts.entries.get("general.architecture")), str(facts.entries.get("general.name"))
    kind = KINDS.get(architecture)
    if kind is None or "mistral" in name.lower():  # the library may read a Llama of that name as another model
        return None
    own = {key: value for key, value in facts.entries.items() if not key.startswith(ASIDE)}
    own = {key.removeprefix(f"{architecture}."): value for key, value in own.items()}
    found = [*map(own.get, SIZES), own.get("vocab_size", facts.tokens)]
    sizes = [size for size in found if type(size) is int and size > 0]
    allowed = {*SIZES, *WIDTHS, *OTHERS, *(OF_GEMMA if kind.gemma else ())}
    if len(sizes) < len(found) or own.keys() - allowed:
        return None
    layers, context, hidden, inner, heads, kv_heads, vocabulary = sizes
    head_dim: object = hidden // heads if kind.head_dim is None else kind.head_dim
    if isinstance(head_dim, str):
        head_dim = own.get(head_dim, hidden // heads)
    if type(head_dim) is not int or any(own.get(name, head_dim) != head_dim for name in WIDTHS):
        return None
    if layers < 2 or hidden % heads or heads % kv_heads or head_dim < 2 or head_dim % 2:
        return None
    tied = "output.weight" not in facts.tensors
    window = own.get(WINDOW, 0)
    if type(window) is not int or (kind.gemma and not (window > 0 and tied and KEY_LENGTH in own)):
        return None
    if kind.gemma and layers < kind.gemma.period:
        return None
    return _Decoder(kind, block, layers, context, hidden, inner, heads, kv_heads, head_dim, vocabulary, window, tied)


_Weights = Sequence[tuple[str, tuple[int, ...]]]
"""Names, in which ``{}`` stands for a layer, and shapes."""


@dataclass(frozen=True, slots=True)
class _Decoder:
    """A decoder: its sizes, and its program, layer by layer."""

    kind: _Kind
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
        """All of it."""
        ids, positions = Value("input_ids", "int64", (1, TOKENS)), Value("positions", "int64", (TOKENS,))
        engines: dict[str, TokenwiseEngine] = {}
        body: list[Stage] = []
        rows = self._rows("region_0.mul" if self.kind.gemma else "region_0.embedding", self.hidden)
        angles = self._angles()
        reads: list[Value] = [ids, positions]
        gives = [rows, *(angle for pair in angles for angle in pair), *self._operands(0)]
        weights: _Weights = [*self._tables(), *self._projections(0)]
        for layer in range(self.layers):
            body.append(self._region(engines, f"region_{layer}", f"tokenwise_{min(layer, 1)}", reads, gives, weights))
            attention = self._attention(layer)
            body.append(attention)
            own = angles[0] if self._sees_all(layer + 1) else angles[-1]
            reads = [*own, rows, attention.output]
            rows = self._rows(f"region_{layer + 1}.add_{self.kind.sums * (layer + 1)}", self.hidden)
            gives = [rows, *self._operands(layer + 1)]
            weights = [*self._feed_forward(layer), *self._projections(layer + 1)]
        last, norm = [self._rows("hidden", self.hidden)], ("model.norm.weight", (self.hidden,))
        weights = [*self._feed_forward(self.layers - 1), norm]
        body.append(self._region(engines, f"region_{self.layers}", "tokenwise_2", reads[2:], last, weights))
        logits = [self._rows("logits", self.vocabulary)]
        head = self._region(engines, "head", "head", last, logits, [("lm_head.weight", self._table)])
        inputs = (Input(positions, "positions", None), Input(ids, "argument", self.vocabulary))
        made: tuple[Engine, ...] = (*engines.values(), self._attention_engine(tile))
        return Program(
            name, self.block, tile, inputs, made, tuple(body), (head,), "hidden", "logits", None, None, self.context
        )

    def _tables(self) -> _Weights:
        """The weights of embeddings and positions."""
        gemma = self.kind.gemma
        frequencies = gemma.frequencies if gemma else ("inv_freq",)
        scale: _Weights = [("model.embed_tokens.embed_scale", ())] if gemma else []
        return [
            ("lm_head.weight" if self.tied else "model.embed_tokens.weight", self._table),
            *scale,
            *((f"model.rotary_emb.{name}", (self.head_dim // 2,)) for name in frequencies),
        ]

    def _angles(self) -> list[list[Value]]:
        """Cosines and sines: of the layers that see all tokens, and of the others where theirs differ."""
        gemma = self.kind.gemma
        first = 2 if gemma else 1
        pairs = len(gemma.frequencies) if gemma else 1
        return [
            [self._rows(f"region_0.mul_{first + 3 * pair + at}", self.head_dim) for at in range(2)]
            for pair in range(pairs)
        ]

    def _sees_all(self, layer: int) -> bool:
        return self.kind.gemma is None or (layer + 1) % self.kind.gemma.period == 0

    @property
    def _table(self) -> tuple[int, int]:
        return self.vocabulary, self.hidden

    def _rows(self, name: str, width: int) -> Value:
        return Value(name, "float32", (1, TOKENS, width))

    def _heads(self, layer: int, name: str, heads: int) -> Value:
        return Value(f"model.layers.{layer}.self_attn.{name}", "float32", (1, heads, TOKENS, self.head_dim))

    def _operands(self, layer: int) -> list[Value]:
        heads = (("value", self.kv_heads), ("query", self.heads), ("key", self.kv_heads))
        return [self._heads(layer, name, number) for name, number in heads]

    def _attention(self, layer: int) -> AttentionStage:
        value, query, key = (operand.name for operand in self._operands(layer))
        result = self._heads(layer, "out", self.heads)
        stage = f"model.layers.{layer}.self_attn"
        mask = Causal() if self._sees_all(layer) else And((Window(self.window - 1, -1), Causal()))
        return AttentionStage(stage, "attention_0", query, key, value, result, mask, None, None)

    def _attention_engine(self, tile: int) -> AttentionEngine:
        return AttentionEngine(
            name="attention_0",
            q_num_heads=self.heads,
            kv_num_heads=self.kv_heads,
            head_dim=self.head_dim,
            v_head_dim=self.head_dim,
            block_size=self.block,
            key_tile=tile,
            scale=GEMMA_SCALE if self.kind.gemma else self.head_dim**-0.5,
            softcap=self.kind.gemma.softcap if self.kind.gemma else 0.0,
            mask_heads=1,
            dtype="float32",
        )

    def _projections(self, layer: int) -> _Weights:
        """The weights from a layer's input to its queries, keys and values."""
        start = f"model.layers.{layer}."
        found: list[tuple[str, tuple[int, ...]]] = [(f"{start}input_layernorm.weight", (self.hidden,))]
        norms: list[tuple[str, tuple[int, ...]]] = []
        for name, heads in (("q", self.heads), ("k", self.kv_heads), ("v", self.kv_heads)):
            width = heads * self.head_dim
            found.append((f"{start}self_attn.{name}_proj.weight", (width, self.hidden)))
            if self.kind.bias:
                found.append((f"{start}self_attn.{name}_proj.bias", (width,)))
            if self.kind.norms and name != "v":
                (norms if self.kind.gemma else found).append((f"{start}self_attn.{name}_norm.weight", (self.head_dim,)))
        return [*found, *norms]

    def _feed_forward(self, layer: int) -> _Weights:
        """The weights from a layer's attention to its output."""
        start = f"model.layers.{layer}."

        def norm(name: str, *, there: bool = True) -> _Weights:
            return [(f"{start}{name}_layernorm.weight", (self.hidden,))] if there else []

        gemma = self.kind.gemma is not None
        return [
            (f"{start}self_attn.o_proj.weight", (self.hidden, self.heads * self.head_dim)),
            *norm("post_attention"),
            *norm("pre_feedforward", there=gemma),
            (f"{start}mlp.gate_proj.weight", (self.inner, self.hidden)),
            (f"{start}mlp.up_proj.weight", (self.inner, self.hidden)),
            (f"{start}mlp.down_proj.weight", (self.hidden, self.inner)),
            *norm("post_feedforward", there=gemma),
        ]

    def _region(
        self,
        engines: dict[str, TokenwiseEngine],
        stage: str,
        engine: str,
        reads: Sequence[Value],
        gives: Sequence[Value],
        weights: _Weights,
    ) -> TokenwiseStage:
        """A stage; its engine is added where it is the first of it. The table of tokens, which is first, is read."""
        multiplied = weights[1:] if engine == "tokenwise_0" else weights
        flops = 2 * self.block * sum(prod(shape) for _, shape in multiplied if len(shape) == 2)
        named = [(_without_layer(name), "float32", shape) for name, shape in weights]
        ports = tuple(Port(*weight) for weight in named)
        engines.setdefault(
            engine, TokenwiseEngine(engine, self._ports("input", reads), self._ports("output", gives), ports, flops)
        )
        names = tuple(value.name for value in reads), tuple(gives), tuple(name for name, _ in weights)
        return TokenwiseStage(stage, engine, *names)

    def _ports(self, name: str, values: Sequence[Value]) -> tuple[Port, ...]:
        shapes = [tuple(self.block if dim == TOKENS else int(dim) for dim in value.shape) for value in values]
        dtypes = [value.dtype for value in values]
        return tuple(Port(f"{name}_{at}", *found) for at, found in enumerate(zip(dtypes, shapes, strict=True)))


def _without_layer(name: str) -> str:
    return ".".join(part for part in name.split(".") if not part.isdigit())
