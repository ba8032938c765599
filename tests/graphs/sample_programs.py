"""Block programs for tests: a small decoder, a small encoder, and a strategy for random ones."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from tests.graphs.sample_masks import masks
from twoheads.graphs.masks.expressions import Causal, Full, Mask
from twoheads.graphs.masks.sampling import Average
from twoheads.graphs.program.program import (
    AttentionEngine,
    AttentionStage,
    Engine,
    Input,
    Limit,
    Pooling,
    Port,
    Program,
    RelativeBias,
    ScanEngine,
    ScanStage,
    SequenceStage,
    TokenwiseEngine,
    TokenwiseStage,
    Value,
)

WIDTH, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 32, 4, 2, 8, 100


def port(name: str, *shape: int, dtype: str = "float32") -> Port:
    """A port of an engine."""
    return Port(name, dtype, shape)


def value(name: str, *shape: int | str, dtype: str = "float32") -> Value:
    """A token value."""
    return Value(name, dtype, shape)


def decoder(*layer_masks: Mask, block_size: int = 16, key_tile: int = 16, sinks: bool = False) -> Program:
    """A causal language model, ``[1, n, 32]`` wide, with one layer for every mask (two causal ones by default).

    Three token-wise engines (first, middle, last), one attention geometry, and a head of ``[32, 100]``.
    """
    chosen = layer_masks or (Causal(), Causal())
    names = [f"layers.{layer}" for layer in range(len(chosen))]
    body: list[TokenwiseStage | AttentionStage] = []
    reads: tuple[str, ...] = ("input_ids", "position_ids")
    for layer, (name, mask) in enumerate(zip(names, chosen, strict=True)):
        outputs = (
            value(f"h{layer}", 1, "n", WIDTH),
            value(f"q{layer}", 1, HEADS, "n", HEAD_DIM),
            value(f"k{layer}", 1, KV_HEADS, "n", HEAD_DIM),
            value(f"v{layer}", 1, KV_HEADS, "n", HEAD_DIM),
        )
        engine, weights = ("middle", (f"{name}.mlp", f"{name}.qkv")) if layer else ("first", ("embed", f"{name}.qkv"))
        body.append(TokenwiseStage(f"{name}.in", engine, reads, outputs, weights))
        body.append(
            AttentionStage(
                name=f"{name}.attention",
                engine="attention",
                query=f"q{layer}",
                key=f"k{layer}",
                value=f"v{layer}",
                output=value(f"a{layer}", 1, HEADS, "n", HEAD_DIM),
                mask=mask,
                sinks=f"{name}.sinks" if sinks else None,
                bias=None,
            )
        )
        reads = (f"h{layer}", f"a{layer}")
    body.append(TokenwiseStage("norm", "last", reads, (value("hidden", 1, "n", WIDTH),), ("norm.weight",)))
    head = TokenwiseStage("lm_head", "head", ("hidden",), (value("logits", 1, "n", VOCABULARY),), ("embed",))
    return Program(
        name="tiny-decoder",
        block_size=block_size,
        key_tile=key_tile,
        inputs=(
            Input(value("input_ids", 1, "n", dtype="int64"), "argument", VOCABULARY),
            Input(value("position_ids", 1, "n", dtype="int64"), "positions", None),
        ),
        engines=_decoder_engines(block_size, key_tile),
        body=tuple(body),
        head=(head,),
        hidden="hidden",
        logits="logits",
        pooling=None,
        max_length=None,
        trained_length=2048,
    )


def _decoder_engines(block: int, tile: int) -> tuple[Engine, ...]:
    ids = (port("input_ids", 1, block, dtype="int64"), port("position_ids", 1, block, dtype="int64"))
    state = (port("h", 1, block, WIDTH), port("a", 1, HEADS, block, HEAD_DIM))
    qkv = (
        port("h_out", 1, block, WIDTH),
        port("q", 1, HEADS, block, HEAD_DIM),
        port("k", 1, KV_HEADS, block, HEAD_DIM),
        port("v", 1, KV_HEADS, block, HEAD_DIM),
    )
    hidden, logits = port("hidden", 1, block, WIDTH), port("logits", 1, block, VOCABULARY)
    table, projection = port("w0", VOCABULARY, WIDTH), port("w1", WIDTH, 64)
    return (
        TokenwiseEngine("first", ids, qkv, (table, projection), 1000),
        TokenwiseEngine("middle", state, qkv, (port("w0", WIDTH, WIDTH), projection), 2000),
        TokenwiseEngine("last", state, (hidden,), (port("w0", WIDTH),), 300),
        TokenwiseEngine("head", (hidden,), (logits,), (table,), 6400),
        AttentionEngine(
            name="attention",
            q_num_heads=HEADS,
            kv_num_heads=KV_HEADS,
            head_dim=HEAD_DIM,
            v_head_dim=HEAD_DIM,
            block_size=block,
            key_tile=tile,
            scale=HEAD_DIM**-0.5,
            softcap=0.0,
            mask_heads=1,
            dtype="float32",
        ),
    )


def encoder(block_size: int = 16) -> Program:
    """A bidirectional embedder of one layer with a relative bias, mean pooling and a position table of 64."""
    base = decoder(Full(), block_size=block_size, key_tile=block_size)
    first, attention, last = base.body
    assert isinstance(attention, AttentionStage)
    biased = AttentionStage(
        attention.name,
        attention.engine,
        attention.query,
        attention.key,
        attention.value,
        attention.output,
        attention.mask,
        None,
        RelativeBias("bias.table", None),
    )
    return Program(
        name="tiny encoder",
        block_size=block_size,
        key_tile=block_size,
        inputs=base.inputs,
        engines=tuple(engine for engine in base.engines if engine.name not in ("middle", "head")),
        body=(first, biased, last),
        head=(),
        hidden="hidden",
        logits=None,
        pooling=Pooling("mean", True),
        max_length=Limit(64, 'the position table "embeddings.position"'),
        trained_length=64,
    )


def classifier(block_size: int = 16) -> Program:
    """A vision-like encoder: a CLS row before the tokens, one layer over ``n+1`` rows, a head on the first row."""
    base = encoder(block_size)
    first, attention, last = base.body
    assert isinstance(first, TokenwiseStage)
    assert isinstance(attention, AttentionStage)
    assert isinstance(last, TokenwiseStage)

    def longer(old: Value) -> Value:
        return Value(old.name, old.dtype, tuple("n+1" if dim == "n" else dim for dim in old.shape))

    rows = value("rows", 1, "n+1", WIDTH)
    cls = value("cls", 1, 1, WIDTH)
    pooled, logits = value("pooled", 1, 1, WIDTH), value("logits", 1, 5)
    spread = (port("x", 1, block_size, WIDTH), port("length", 1, dtype="int64"))
    state = tuple(e for e in base.engines if e.name in ("last", "attention"))
    return Program(
        name="tiny-classifier",
        block_size=block_size,
        key_tile=block_size,
        inputs=(
            Input(value("features", 1, "n", WIDTH), "argument", None),
            Input(value("length", 1, dtype="int64"), "length", None, "n"),
        ),
        engines=(
            TokenwiseEngine("cls", (), (port("cls", 1, 1, WIDTH),), (port("w0", 1, 1, WIDTH),), 0),
            TokenwiseEngine("first", spread, _decoder_engines(block_size, block_size)[0].outputs, (), 1000),  # type: ignore[union-attr]
            *state,
            TokenwiseEngine("pooler", (port("x", 1, 1, WIDTH),), (port("y", 1, 5),), (port("w0", WIDTH, 5),), 320),
        ),
        body=(
            TokenwiseStage("cls", "cls", (), (cls,), ("cls_token",)),
            SequenceStage("cls.concat", "concat", ("cls", "features"), rows, (("axis", 1),)),
            TokenwiseStage(first.name, "first", ("rows", "length"), tuple(map(longer, first.outputs)), ()),
            replace(attention, output=longer(attention.output), bias=None),
            replace(last, outputs=tuple(map(longer, last.outputs))),
            SequenceStage(
                "pool", "take", ("hidden",), pooled, (("axis", 1), ("from_end", 0), ("start", 0), ("step", 1))
            ),
            TokenwiseStage("pooler", "pooler", ("pooled",), (logits,), ("pooler.weight",)),
        ),
        head=(),
        hidden="hidden",
        logits="logits",
        pooling=None,
        max_length=None,
        trained_length=None,
        other_limits=(Limit(1024, "its table positions of 1024 rows", "m"),),
    )


def hybrid(block_size: int = 16) -> Program:
    """The decoder with a short convolution over the hidden states before its first attention and after its last."""
    base = decoder(block_size=block_size, key_tile=block_size)
    engine = ScanEngine(
        "conv", "causal_conv", (("bias", 1), ("channels", WIDTH), ("kernel", 3)), block_size, block_size
    )
    first, *middle, last = base.body
    assert isinstance(last, TokenwiseStage)
    before = ScanStage("layers.0.conv", "conv", ("h0",), value("c0", 1, "n", WIDTH), ("conv.0", "conv.bias"))
    after = ScanStage("layers.1.conv", "conv", ("h1",), value("c1", 1, "n", WIDTH), ("conv.1", "conv.bias"))
    changed = [replace(stage, inputs=("c0", "a0")) if isinstance(stage, TokenwiseStage) else stage for stage in middle]
    return replace(
        base,
        name="tiny-hybrid",
        engines=(*base.engines, engine),
        body=(first, before, *changed, after, replace(last, inputs=("c1", "a1"))),
    )


names = st.one_of(
    st.sampled_from(["a", "mask", "n", "weights", "sinks", "normalize", "256", "-", "->", "a->b", "layers.0.q_proj"]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
)
_sizes = st.integers(0, 1 << 40)
_floats = st.floats(allow_nan=False)
_dtypes = st.sampled_from(["float32", "int64", "bool"])


def _tuples(items: st.SearchStrategy) -> st.SearchStrategy:
    return st.lists(items, max_size=3).map(tuple)


_ports = _tuples(st.builds(Port, names, _dtypes, _tuples(_sizes)))
_values = st.builds(Value, names, _dtypes, _tuples(st.one_of(_sizes, names)))
_biases = st.one_of(st.none(), st.builds(RelativeBias, st.one_of(st.none(), names), st.one_of(st.none(), names)))
_tokenwise = st.builds(TokenwiseStage, names, names, _tuples(names), _tuples(_values), _tuples(names))
_attention = st.builds(
    AttentionStage,
    names,
    names,
    names,
    names,
    names,
    _values,
    masks,
    st.one_of(st.none(), names),
    _biases,
    st.one_of(st.none(), st.builds(Average, _sizes, st.one_of(st.none(), _sizes), _sizes, _sizes)),
)
_sequence = st.builds(
    SequenceStage, names, names, _tuples(names), _values, _tuples(st.tuples(names, st.integers(-(1 << 40), 1 << 40)))
)
_numbers = _tuples(st.tuples(names, st.integers(-(1 << 40), 1 << 40)))
_scan = st.builds(ScanStage, names, names, _tuples(names), _values, _tuples(names))
_engines = st.one_of(
    st.builds(ScanEngine, names, names, _numbers, _sizes, _sizes),
    st.builds(TokenwiseEngine, names, _ports, _ports, _ports, _sizes),
    st.builds(
        AttentionEngine, names, _sizes, _sizes, _sizes, _sizes, _sizes, _sizes, _floats, _floats, _sizes, _dtypes
    ),
)

programs: st.SearchStrategy[Program] = st.builds(
    Program,
    names,
    _sizes,
    _sizes,
    _tuples(st.builds(Input, _values, names, st.one_of(st.none(), _sizes), st.one_of(st.none(), names))),
    _tuples(_engines),
    _tuples(st.one_of(_tokenwise, _attention, _sequence, _scan)),
    _tuples(_tokenwise),
    names,
    st.one_of(st.none(), names),
    st.one_of(st.none(), st.builds(Pooling, names, st.booleans())),
    st.one_of(st.none(), st.builds(Limit, _sizes, names)),
    st.one_of(st.none(), _sizes),
)
"""Programs of any form, sensible or not: for round trips."""
