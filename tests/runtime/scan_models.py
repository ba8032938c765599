"""Hand-made models with scans of every operator, alone and beside attention, and their reference in NumPy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from tests.runtime.axes_models import BLOCK, WIDTH, Model, Outputs, attention
from tests.runtime.tiny_bundle import Nodes, write_bundle
from tests.runtime.tiny_model import Array
from twoheads.graphs.masks.expressions import Causal, Window
from twoheads.graphs.program.engines.scan import ScanEngine, scan_chunk
from twoheads.graphs.program.engines.scan_operators import OPERATORS, ROWS
from twoheads.graphs.program.program import Dim, ScanStage, TokenwiseEngine, Value
from twoheads.runtime import load

HEADS = {"groups": 1, "heads": 2, "key_dim": 3, "value_dim": 4}
SCANS: dict[str, tuple[str, dict[str, int]]] = {
    "causal_conv": ("causal_conv", {"bias": 1, "channels": WIDTH, "kernel": 4}),
    "gated_delta_rule": ("gated_delta_rule", {"by_channel": 0, **HEADS}),
    "channels": ("gated_delta_rule", {"by_channel": 1, **HEADS}),
    "decayed_attention": ("decayed_attention", HEADS),
    "diagonal_scan": ("diagonal_scan", {"width": 5}),
    "selective_scan": ("selective_scan", {"states": 3, "width": 5}),
    "max_scan": ("max_scan", {"width": 5}),
}
"""Operators with their sizes."""

MASKS = {"attention": Causal(), "window": Causal() & Window(10, 0)}

LOGS = ("Softplus", "Neg")
ACTIVATIONS = {"decay": LOGS, "a": LOGS, "dt": ("Softplus",), "beta": ("Sigmoid",), "k": ("Tanh", "Tanh")}
"""Of ports that can't be any number, or make states grow without bound."""

FUNCTIONS: Mapping[str, Any] = {
    "Softplus": lambda x: np.log1p(np.exp(x)),
    "Neg": np.negative,
    "Tanh": np.tanh,
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
}


def _activated(port: str, array: Array) -> Array:
    for name in ACTIVATIONS.get(port, ()):
        array = FUNCTIONS[name](array)
    return array


def _split(array: Array, shape: tuple[int | str, ...]) -> Array:
    """``array [n, numbers]`` in the shape of a port."""
    axis = shape.index(ROWS)
    rest = [int(dim) for dim in (*shape[:axis], *shape[axis + 1 :])]
    return np.moveaxis(array.reshape(len(array), *rest), 0, axis)


def _joined(array: Array, shape: tuple[int | str, ...]) -> Array:
    """The opposite."""
    return np.moveaxis(array, shape.index(ROWS), 0).reshape(array.shape[shape.index(ROWS)], -1)


class ScanModel(Model):
    """Layers ``names``: scans by a key of :data:`SCANS`, or ``attention``, or ``window``, which sees few tokens."""

    def __init__(self, names: Sequence[str], key_tile: int = BLOCK) -> None:
        super().__init__(self._reference, key_tile)
        self.names = tuple(names)
        self.input("features", 1, "n", WIDTH)
        rows = "features"
        for at, name in enumerate(names):
            out = "hidden" if at == len(names) - 1 else f"h{at}"
            if name in MASKS:
                self.project(f"layer{at}", rows)
                self.attend(f"layer{at}", f"layer{at}", f"layer{at}", MASKS[name])
                self.add(out, rows, f"layer{at}")
            else:
                self._scan(at, name, rows, out)
            rows = out

    def _scan(self, at: int, name: str, rows: str, out: str) -> None:
        operator, sizes = SCANS[name]
        form = OPERATORS[operator]
        tokens, output = form.tokens(sizes), form.output(sizes)
        shapes: dict[str, tuple[Dim, ...]] = {f"{port}{at}": shape for port, shape in tokens.items()}
        numbers = {port: prod(int(d) for d in shape if d != ROWS) for port, shape in tokens.items()}

        def before(nodes: Nodes) -> None:
            normed = nodes.norm(rows)
            for port, shape in tokens.items():
                found = nodes("MatMul", normed, f"w_{port}{at}.w")
                axis = shape.index(ROWS)
                rest = [int(dim) for dim in (*shape[:axis], *shape[axis + 1 :])]
                found = nodes("Reshape", found, nodes.ints(BLOCK, *rest))
                order = [*range(1, axis + 1), 0, *range(axis + 1, len(shape))]
                for activation in ACTIVATIONS.get(port, ()):
                    found = nodes(activation, found)
                nodes("Transpose", found, output=f"{port}{at}", perm=order)

        def after(nodes: Nodes) -> None:
            axis = output.index(ROWS)
            order = [axis, *(each for each in range(len(output)) if each != axis)]
            flat = nodes("Reshape", nodes("Transpose", f"y{at}", perm=order), nodes.ints(1, BLOCK, -1))
            nodes("Add", rows, nodes("MatMul", flat, f"w_{at}.out"), output=out)

        self.region(f"{at}.in", (rows,), shapes, {f"{port}{at}.w": (WIDTH, n) for port, n in numbers.items()}, before)
        weights = tuple(f"{at}.{port}" for port in form.weights(sizes))
        for (port, shape), weight in zip(form.weights(sizes).items(), weights, strict=True):
            made = np.random.default_rng(at).standard_normal([int(dim) for dim in shape])
            self.weights[weight] = _activated(port, made).astype(np.float32)
        if all(engine.name != f"scan.{name}" for engine in self.engines):
            chunk = scan_chunk(operator, BLOCK)
            self.engines.append(ScanEngine(f"scan.{name}", operator, tuple(sorted(sizes.items())), BLOCK, chunk))
        self.values[f"y{at}"] = Value(f"y{at}", "float32", output)
        self.body.append(ScanStage(f"scan{at}", f"scan.{name}", tuple(shapes), self.values[f"y{at}"], weights))
        made_numbers = prod(int(dim) for dim in output if dim != ROWS)
        self.region(f"{at}.out", (rows, f"y{at}"), {out: (1, "n", WIDTH)}, {f"{at}.out": (made_numbers, WIDTH)}, after)

    def _reference(self, weights: Mapping[str, Array], inputs: Mapping[str, Array]) -> Outputs:
        rows = inputs["features"].astype(np.float64)
        for at, name in enumerate(self.names):
            if name in MASKS:
                rows = attention(weights, f"layer{at}", rows, rows, f"layer{at}", f"layer{at}", MASKS[name])
                continue
            operator, sizes = SCANS[name]
            form = OPERATORS[operator]
            normed = rows / np.sqrt((rows**2).mean(-1, keepdims=True))
            tokens = [
                _activated(port, _split(normed @ weights[f"{port}{at}.w"], shape))
                for port, shape in form.tokens(sizes).items()
            ]
            bound = [weights[f"{at}.{port}"] for port in form.weights(sizes)]
            y, _ = form.apply(sizes, tokens, bound, np.zeros([int(dim) for dim in form.state(sizes)]))
            rows = rows + _joined(y, form.output(sizes)) @ weights[f"{at}.out"]
        return {"hidden": rows}

    def load_lowered(self, path: Path, lowering: str, threads: int = 2, *, short: bool = False) -> Any:
        """A bundle that holds engines of the lowering, and where ``short`` that of inputs of one block."""

        def build(engine: TokenwiseEngine) -> Nodes:
            nodes = Nodes()
            self.builders[engine.name](nodes)
            return nodes

        written = write_bundle(path, self.program(), self.weights, build, lowering=lowering, with_one_block=short)
        return load(written, threads=threads)
