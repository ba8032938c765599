"""Hand-made models that have more than one token axis, or values without one, and their reference in NumPy.

Each is a bundle's program, weights and engines, and ``reference``: what a run must give, in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto

from tests.runtime.tiny_bundle import Nodes, write_bundle
from tests.runtime.tiny_model import Array, dense_attention
from twoheads.graphs.masks.expressions import Causal, Full, Mask
from twoheads.graphs.program.program import (
    AttentionEngine,
    AttentionStage,
    Dim,
    Engine,
    Input,
    Port,
    Program,
    SequenceStage,
    Stage,
    TokenwiseEngine,
    TokenwiseStage,
    Value,
)
from twoheads.runtime import load

BLOCK, WIDTH, HEADS, DIM, CLASSES, VOCABULARY, PAD = 8, 6, 2, 4, 5, 30, 1
QKV = ("q", "k", "v")

Outputs = dict[str, Array]


@dataclass
class Model:
    """A program under construction: stages and engines are added in order."""

    reference: Callable[[Mapping[str, Array], Mapping[str, Array]], Outputs]
    key_tile: int = BLOCK
    inputs: list[Input] = field(default_factory=list)
    engines: list[Engine] = field(default_factory=list)
    body: list[Stage] = field(default_factory=list)
    weights: dict[str, Array] = field(default_factory=dict)
    builders: dict[str, Callable[[Nodes], object]] = field(default_factory=dict)
    values: dict[str, Value] = field(default_factory=dict)
    hidden: str = "hidden"
    logits: str | None = None

    def input(self, name: str, *shape: Dim, dtype: str = "float32", source: str = "argument", axis: Any = None) -> None:
        self.values[name] = Value(name, dtype, shape)
        limit = VOCABULARY if (dtype, source) == ("int64", "argument") else None
        self.inputs.append(Input(self.values[name], source, limit, axis))

    def region(self, name: str, reads: Any, makes: Any, weights: Any, build: Callable[[Nodes], object]) -> None:
        """A stage and its engine: port names are value names, weights are made up from their shapes."""
        outputs = [Value(key, "float32", shape) for key, shape in makes.items()]
        self.values |= {value.name: value for value in outputs}
        for key, shape in weights.items():
            seed = sum(map(ord, key))
            self.weights[key] = (np.random.default_rng(seed).standard_normal(shape) / np.sqrt(WIDTH)).astype("float32")

        def ports(values: Any) -> tuple[Port, ...]:
            return tuple(Port(value.name, value.dtype, value.block_shape(BLOCK)) for value in values)

        bound = tuple(Port(f"w_{key}", "float32", shape) for key, shape in weights.items())
        read = [self.values[key] for key in reads]
        self.engines.append(TokenwiseEngine(name, ports(read), ports(outputs), bound, 1))
        self.body.append(TokenwiseStage(name, name, tuple(reads), tuple(outputs), tuple(weights)))
        self.builders[name] = build

    def move(self, name: str, operator: str, reads: Any, *shape: Dim, dtype: str = "float32", **numbers: int) -> None:
        self.values[name] = Value(name, dtype, shape)
        self.body.append(SequenceStage(name, operator, tuple(reads), self.values[name], tuple(numbers.items())))

    def project(self, name: str, rows: str, kinds: Any = QKV) -> None:
        """Queries, keys and values of ``rows [1, axis, width]``, as ``<name>_q`` and so on."""
        axis = self.values[rows].shape[1]

        def build(nodes: Nodes) -> None:
            for kind in kinds:
                flat = nodes("MatMul", rows, f"w_{name}.{kind}")
                split = nodes("Reshape", flat, nodes.ints(1, BLOCK, HEADS, DIM))
                nodes("Transpose", split, output=f"{name}_{kind}", perm=[0, 2, 1, 3])

        makes = {f"{name}_{kind}": (1, HEADS, axis, DIM) for kind in kinds}
        self.region(f"{name}.in", (rows,), makes, {f"{name}.{kind}": (WIDTH, HEADS * DIM) for kind in kinds}, build)

    def attend(self, name: str, query: str, key: str, mask: Mask) -> None:
        """Attention of ``<query>_q`` over ``<key>_k`` and ``<key>_v``."""
        output = Value(f"{name}_a", "float32", self.values[f"{query}_q"].shape)
        self.values[output.name] = output
        reads = (f"{query}_q", f"{key}_k", f"{key}_v")
        self.body.append(AttentionStage(name, "attention", *reads, output, mask, None, None))

    def add(self, name: str, rows: str, attention: str) -> None:
        """``rows`` and what was attended to, projected back."""

        def build(nodes: Nodes) -> None:
            merged = nodes("Transpose", f"{attention}_a", perm=[0, 2, 1, 3])
            merged = nodes("Reshape", merged, nodes.ints(1, BLOCK, HEADS * DIM))
            nodes("Add", rows, nodes("MatMul", merged, f"w_{attention}.o"), output=name)

        shape = (1, self.values[rows].shape[1], WIDTH)
        reads = (rows, f"{attention}_a")
        self.region(f"{attention}.out", reads, {name: shape}, {f"{attention}.o": (HEADS * DIM, WIDTH)}, build)

    def program(self) -> Program:
        engine = AttentionEngine(
            "attention", HEADS, HEADS, DIM, DIM, BLOCK, self.key_tile, DIM**-0.5, 0.0, 1, "float32"
        )
        uses = any(isinstance(stage, AttentionStage) for stage in self.body)
        return Program(
            name="axes",
            block_size=BLOCK,
            key_tile=self.key_tile,
            inputs=tuple(self.inputs),
            engines=(*self.engines, *((engine,) if uses else ())),
            body=tuple(self.body),
            head=(),
            hidden=self.hidden,
            logits=self.logits,
            pooling=None,
            max_length=None,
            trained_length=None,
        )

    def load(self, path: Path, threads: int = 1, lower: Callable[[Program], Program] = lambda program: program) -> Any:
        def build(engine: TokenwiseEngine) -> Nodes:
            nodes = Nodes()
            self.builders[engine.name](nodes)
            return nodes

        return load(write_bundle(path, lower(self.program()), self.weights, build), threads=threads)

    def expected(self, inputs: Mapping[str, Array]) -> Outputs:
        weights = {name: array.astype(np.float64) for name, array in self.weights.items()}
        return self.reference(weights, inputs)


def heads_of(rows: Array, weight: Array) -> Array:
    return (rows @ weight).reshape(len(rows), HEADS, DIM).transpose(1, 0, 2)


def attention(weights: Mapping[str, Array], name: str, rows: Array, keys: Array, q: str, k: str, mask: Mask) -> Array:
    """``rows`` after the attention ``name`` over ``keys``, all ``[tokens, width]``."""
    i, j = np.arange(len(rows))[:, None], np.arange(len(keys))[None, :]
    found = dense_attention(
        heads_of(rows, weights[f"{q}.q"]),
        heads_of(keys, weights[f"{k}.k"]),
        heads_of(keys, weights[f"{k}.v"]),
        visible=np.broadcast_to(mask.dense(i, j), (len(rows), len(keys))),
        bias=np.zeros((HEADS, len(rows), len(keys))),
        softcap=0.0,
        sinks=None,
    )
    return rows + found.transpose(1, 0, 2).reshape(len(rows), -1) @ weights[f"{name}.o"]


def _with_pooled_logits(model: Model) -> Model:
    """Adds ``logits`` from the row value ``pooled``."""
    model.region(
        "pooler",
        ("pooled",),
        {"logits": (1, CLASSES)},
        {"pooler": (WIDTH, CLASSES)},
        lambda n: n("Tanh", n("MatMul", "pooled", "w_pooler"), output="logits"),
    )
    return model


def classifier(pool: str = "first", key_tile: int = BLOCK) -> Model:
    """A CLS row before the features, attention over ``n+1`` rows, one pooled row, and classes of it."""

    def reference(weights: Mapping[str, Array], inputs: Mapping[str, Array]) -> Outputs:
        rows = np.concatenate([weights["cls"][0], inputs["features"]])
        hidden = attention(weights, "layer", rows, rows, "layer", "layer", Full())
        pooled = {"first": hidden[0], "last": hidden[-1]}.get(pool)
        if pooled is None:
            pooled = hidden[np.argmax(inputs["ids"])] if pool == "take_at" else getattr(hidden, pool)(0)
        return {"hidden": hidden, "logits": np.tanh(pooled @ weights["pooler"])}

    model = Model(reference, key_tile, logits="logits")
    model.input("features", 1, "n", WIDTH)
    if pool == "take_at":
        model.input("ids", 1, "n", dtype="int64")
    model.region(
        "cls", (), {"row": (1, 1, WIDTH)}, {"cls": (1, 1, WIDTH)}, lambda n: n("Identity", "w_cls", output="row")
    )
    model.move("rows", "concat", ("row", "features"), 1, "n+1", WIDTH, axis=1)
    model.project("layer", "rows")
    model.attend("layer", "layer", "layer", Full())
    model.add("hidden", "rows", "layer")
    if pool in ("first", "last"):
        start, from_end = (0, 0) if pool == "first" else (-1, 1)
        model.move("pooled", "take", ("hidden",), 1, WIDTH, axis=1, from_end=from_end, start=start, step=1)
    elif pool == "take_at":
        model.move("index", "argmax", ("ids",), 1, dtype="int64", axis=1)
        model.move("pooled", "take_at", ("hidden", "index"), 1, WIDTH, axis=1)
    else:
        model.move("kept", pool, ("hidden",), 1, 1, WIDTH, axis=1)
        model.move("pooled", "take", ("kept",), 1, WIDTH, axis=1, from_end=0, start=0, step=1)
    return _with_pooled_logits(model)


def convolution(key_tile: int = 2 * BLOCK) -> Model:
    """A convolution of 3 rows with stride 2 and padding 1, then attention over ``(n+1)//2`` rows."""

    def reference(weights: Mapping[str, Array], inputs: Mapping[str, Array]) -> Outputs:
        x = inputs["features"]
        padded = np.concatenate([np.zeros((1, WIDTH)), x, np.zeros((1, WIDTH))])
        count = (len(x) + 1) // 2
        taps = [padded[at : at + 2 * count : 2][:count] @ weights[f"tap{at}"] for at in range(3)]
        rows = np.sum(taps, 0)
        return {"hidden": attention(weights, "layer", rows, rows, "layer", "layer", Causal())}

    model = Model(reference, key_tile)
    model.input("features", 1, "n", WIDTH)
    axis = "(n+1)//2"
    for at in range(3):
        model.move(f"x{at}", "take", ("features",), 1, axis, WIDTH, axis=1, from_end=0, start=at - 1, step=2)

    def build(nodes: Nodes) -> None:
        taps = [nodes("MatMul", f"x{at}", f"w_tap{at}") for at in range(3)]
        nodes("Sum", *taps, output="rows")

    taps = {f"tap{at}": (WIDTH, WIDTH) for at in range(3)}
    model.region("conv", ("x0", "x1", "x2"), {"rows": (1, axis, WIDTH)}, taps, build)
    model.project("layer", "rows")
    model.attend("layer", "layer", "layer", Causal())
    model.add("hidden", "rows", "layer")
    return model


def encoder_decoder(key_tile: int = 2 * BLOCK) -> Model:
    """An encoder over ``m`` rows, a causal decoder over ``n`` rows, and attention from one to the other."""

    def reference(weights: Mapping[str, Array], inputs: Mapping[str, Array]) -> Outputs:
        source, target = inputs["source"], inputs["target"]
        memory = attention(weights, "encoder", source, source, "encoder", "encoder", Full())
        rows = attention(weights, "decoder", target, target, "decoder", "decoder", Causal())
        return {"hidden": attention(weights, "cross", rows, memory, "ask", "memory", Full())}

    model = Model(reference, key_tile)
    model.input("source", 1, "m", WIDTH)
    model.input("target", 1, "n", WIDTH)
    for name, rows, made, mask in (
        ("encoder", "source", "remembered", Full()),
        ("decoder", "target", "decoded", Causal()),
    ):
        model.project(name, rows)
        model.attend(name, name, name, mask)
        model.add(made, rows, name)
    model.project("memory", "remembered", ("k", "v"))
    model.project("ask", "decoded", ("q",))
    model.attend("cross", "ask", "memory", Full())
    model.add("hidden", "decoded", "cross")
    return model


def counted_positions() -> Model:
    """Positions that count the tokens that are no padding, and a scale that is the length: RoBERTa's and another's."""

    def reference(weights: Mapping[str, Array], inputs: Mapping[str, Array]) -> Outputs:
        ids = inputs["ids"]
        real = (ids != PAD).astype(np.int64)
        positions = np.cumsum(real) * real + PAD
        rows = weights["table"][ids] + np.sin(positions[:, None] * weights["freq"]) / len(ids)
        return {"hidden": attention(weights, "layer", rows, rows, "layer", "layer", Causal())}

    model = Model(reference)
    model.input("ids", 1, "n", dtype="int64")
    model.input("length", 1, dtype="int64", source="length", axis="n")
    model.move("real", "not_equal", ("ids",), 1, "n", dtype="bool", value=PAD)
    model.move("count", "cast", ("real",), 1, "n", dtype="int64", to=2)
    model.move("summed", "cumsum", ("count",), 1, "n", dtype="int64", axis=1)
    model.move("kept", "mul", ("summed", "count"), 1, "n", dtype="int64")
    model.move("at", "add", ("kept",), 1, "n", dtype="int64", value=PAD)

    def build(nodes: Nodes) -> None:
        phase = nodes("Unsqueeze", nodes("Cast", "at", to=TensorProto.FLOAT), nodes.ints(-1))
        wave = nodes("Sin", nodes("Mul", phase, "w_freq"))
        scaled = nodes("Div", wave, nodes("Cast", "length", to=TensorProto.FLOAT))
        nodes("Add", nodes("Gather", "w_table", "ids"), scaled, output="rows")

    model.region(
        "embed",
        ("ids", "at", "length"),
        {"rows": (1, "n", WIDTH)},
        {"table": (VOCABULARY, WIDTH), "freq": (WIDTH,)},
        build,
    )
    model.project("layer", "rows")
    model.attend("layer", "layer", "layer", Causal())
    model.add("hidden", "rows", "layer")
    return model


def image() -> Model:
    """An image of a fixed size: a stem that runs once makes 9 patches of it, a constant axis of 9 + 1 rows."""

    def reference(weights: Mapping[str, Array], inputs: Mapping[str, Array]) -> Outputs:
        patches = inputs["pixels"][0].reshape(3, 2, 3, 2).transpose(0, 2, 1, 3).reshape(9, 4)
        rows = np.concatenate([weights["cls"][0], patches @ weights["patch"]])
        hidden = attention(weights, "layer", rows, rows, "layer", "layer", Full())
        return {"hidden": hidden, "logits": np.tanh(hidden[0] @ weights["pooler"])}

    model = Model(reference, logits="logits")
    model.input("pixels", 1, 1, 6, 6)

    def stem(nodes: Nodes) -> None:
        split = nodes("Reshape", "pixels", nodes.ints(1, 3, 2, 3, 2))
        patches = nodes("Reshape", nodes("Transpose", split, perm=[0, 1, 3, 2, 4]), nodes.ints(1, 9, 4))
        nodes("Concat", "w_cls", nodes("MatMul", patches, "w_patch"), output="stem", axis=1)

    model.region("stem", ("pixels",), {"stem": (1, 10, WIDTH)}, {"cls": (1, 1, WIDTH), "patch": (4, WIDTH)}, stem)
    model.move("rows", "concat", ("stem",), 1, "10", WIDTH, axis=1)
    model.project("layer", "rows")
    model.attend("layer", "layer", "layer", Full())
    model.add("hidden", "rows", "layer")
    model.move("pooled", "take", ("hidden",), 1, WIDTH, axis=1, from_end=0, start=0, step=1)
    return _with_pooled_logits(model)
