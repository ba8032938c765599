"""Hand-made bundles of the tiny transformer, written with ``onnx.helper``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from tests.runtime.tiny_model import Tiny, make_weights
from twoheads.export.bundle.engine_files import bind_weights
from twoheads.export.emit.experts import experts_model
from twoheads.export.emit.fused.emit import fused_model
from twoheads.export.emit.oracle import oracle_model
from twoheads.export.emit.scans.scan import scan_model
from twoheads.export.emit.stock_attention import stock_model
from twoheads.export.emit.tile_attention import attention_model
from twoheads.graphs.masks.expressions import parse_mask
from twoheads.graphs.program.engines.fused import FusedEngine
from twoheads.graphs.program.program import (
    AttentionEngine,
    AttentionStage,
    ExpertsEngine,
    Input,
    Port,
    Program,
    RelativeBias,
    ScanEngine,
    Stage,
    StockEngine,
    TokenwiseEngine,
    TokenwiseStage,
    Value,
)
from twoheads.graphs.serialization.bundle_format import (
    ALIGNMENT,
    FORMAT_VERSION,
    FileEntry,
    Manifest,
    SourceIdentity,
    WeightEntry,
    tiles_folder,
)
from twoheads.graphs.serialization.json_codec import to_json
from twoheads.graphs.serialization.relative_path import RelativePath
from twoheads.graphs.variants.choose import fused_steps
from twoheads.graphs.variants.key_tiles import with_key_tile


def make_program(tiny: Tiny) -> Program:
    m, d, big = tiny.block_size, tiny.width, tiny.layers - 1
    f = "float32"
    qkv = _values(tiny, 0)
    first_inputs = (Port("x", f, (1, m, d)),) if tiny.features else (Port("x", "int64", (1, m)),)
    ports = {
        "first": (*first_inputs, Port("at", "int64", (1, m))),
        "mid": (Port("a", f, (1, tiny.q_heads, m, tiny.head_dim)), Port("h", f, (1, m, d))),
    }
    outputs = (Port("hidden", f, (1, m, d)), *(Port(name[0], f, value.block_shape(m)) for name, value in qkv.items()))
    shapes = {name: array.shape for name, array in make_weights(tiny).items()}

    def weight_ports(names: tuple[str, ...], layer: str) -> tuple[Port, ...]:
        return tuple(Port(f"w_{name}", f, shapes[name if name in shapes else f"{layer}.{name}"]) for name in names)

    engines: list[TokenwiseEngine | AttentionEngine] = [
        TokenwiseEngine(
            "first", ports["first"], outputs, weight_ports(FIRST if not tiny.features else FIRST[1:], "0"), 1
        ),
        TokenwiseEngine("last", ports["mid"], outputs[:1], weight_ports(TAIL, "0"), 1),
        AttentionEngine(
            "attention",
            tiny.q_heads,
            tiny.kv_heads,
            tiny.head_dim,
            tiny.head_dim,
            m,
            tiny.key_tile,
            tiny.head_dim**-0.5,
            tiny.softcap,
            tiny.q_heads if tiny.biased else 1,
            f,
        ),
    ]
    if tiny.layers > 1:
        engines.append(TokenwiseEngine("mid", ports["mid"], outputs, weight_ports((*TAIL, *QKV), "0"), 1))
    head: tuple[TokenwiseStage, ...] = ()
    if tiny.head:
        row, scores = Port("h", f, (1, m, d)), Port("logits", f, (1, m, tiny.vocabulary))
        engines.append(TokenwiseEngine("norm", (row,), (Port("z", f, (1, m, d)),), weight_ports(("norm",), ""), 1))
        engines.append(TokenwiseEngine("lm", (Port("z", f, (1, m, d)),), (scores,), weight_ports(("lm",), ""), 1))
        head = (
            TokenwiseStage("norm", "norm", ("h_last",), (Value("z", f, (1, "n", d)),), ("norm",)),
            TokenwiseStage("lm", "lm", ("z",), (Value("logits", f, (1, "n", tiny.vocabulary)),), ("lm",)),
        )
    token_value = Value("tokens", f, (1, "n", d)) if tiny.features else Value("tokens", "int64", (1, "n"))
    return Program(
        name="tiny",
        block_size=m,
        key_tile=tiny.key_tile,
        inputs=(
            Input(token_value, "argument", None if tiny.features else tiny.vocabulary),
            Input(Value("positions", "int64", (1, "n")), "positions", None),
        ),
        engines=tuple(engines),
        body=tuple(stage for layer in range(big + 1) for stage in _layer(tiny, layer)),
        head=head,
        hidden="h_last",
        logits="logits" if tiny.head else None,
        pooling=tiny.pooling,
        max_length=tiny.max_length,
        trained_length=tiny.trained_length,
    )


FIRST = ("embed", "freq", "q", "k", "v")
TAIL = ("o", "up", "down")
QKV = ("q", "k", "v")


def _values(tiny: Tiny, layer: int) -> dict[str, Value]:
    heads = {"q": tiny.q_heads, "k": tiny.kv_heads, "v": tiny.kv_heads}
    return {name: Value(f"{name}{layer}", "float32", (1, h, "n", tiny.head_dim)) for name, h in heads.items()}


def _layer(tiny: Tiny, layer: int) -> tuple[Stage, ...]:
    """The region before layer ``layer``'s attention, the attention, and at the end the last region."""
    d = tiny.width
    qkv = _values(tiny, layer)
    h = Value(f"h{layer}", "float32", (1, "n", d))
    outputs = (h, *qkv.values())
    if layer == 0:
        names = tuple(n if n in ("embed", "freq") else f"0.{n}" for n in (FIRST if not tiny.features else FIRST[1:]))
        region = TokenwiseStage("first", "first", ("tokens", "positions"), outputs, names)
    else:
        names = (*(f"{layer - 1}.{n}" for n in TAIL), *(f"{layer}.{n}" for n in QKV))
        region = TokenwiseStage(f"mid{layer}", "mid", (f"a{layer - 1}", f"h{layer - 1}"), outputs, names)
    bias = RelativeBias(
        f"{layer}.table" if tiny.table_reach else None,
        f"{layer}.slope" if tiny.slope else None,
    )
    attention = AttentionStage(
        f"attention{layer}",
        "attention",
        f"q{layer}",
        f"k{layer}",
        f"v{layer}",
        Value(f"a{layer}", "float32", (1, tiny.q_heads, "n", tiny.head_dim)),
        parse_mask(tiny.masks[layer % len(tiny.masks)]),
        f"{layer}.sinks" if tiny.sinks else None,
        bias if tiny.biased else None,
    )
    if layer < tiny.layers - 1:
        return region, attention
    tail = tuple(f"{layer}.{n}" for n in TAIL)
    last = TokenwiseStage("last", "last", (f"a{layer}", f"h{layer}"), (Value("h_last", "float32", (1, "n", d)),), tail)
    return region, attention, last


# ---------------------------------------------------------------------------------------------------- engines


class Nodes:
    """ONNX nodes and constants of an engine, one call an operator."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def __call__(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        name = output or f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def ints(self, *numbers: int) -> str:
        name = f"ints_{len(self.constants)}"
        self.constants.append(helper.make_tensor(name, TensorProto.INT64, [len(numbers)], numbers))
        return name

    def norm(self, x: str) -> str:
        mean = self("ReduceMean", self("Mul", x, x), self.ints(-1))
        return self("Div", x, self("Sqrt", mean))

    def heads(self, tiny: Tiny, x: str) -> None:
        normed = self.norm(x)
        for name, heads in (("q", tiny.q_heads), ("k", tiny.kv_heads), ("v", tiny.kv_heads)):
            flat = self("MatMul", normed, f"w_{name}")
            split = self("Reshape", flat, self.ints(1, tiny.block_size, heads, tiny.head_dim))
            self("Transpose", split, output=name, perm=[0, 2, 1, 3])

    def tail(self, tiny: Tiny) -> str:
        rows = self("Transpose", "a", perm=[0, 2, 1, 3])
        rows = self("Reshape", rows, self.ints(1, tiny.block_size, tiny.q_heads * tiny.head_dim))
        h = self("Add", "h", self("MatMul", rows, "w_o"))
        inner = self("Tanh", self("MatMul", self.norm(h), "w_up"))
        return self("Add", h, self("MatMul", inner, "w_down"), output="hidden")


def _first(nodes: Nodes, tiny: Tiny) -> None:
    base = "x" if tiny.features else nodes("Gather", "w_embed", "x")
    at = nodes("Unsqueeze", nodes("Cast", "at", to=TensorProto.FLOAT), nodes.ints(-1))
    nodes("Add", base, nodes("Sin", nodes("Mul", at, "w_freq")), output="hidden")
    nodes.heads(tiny, "hidden")


def _mid(nodes: Nodes, tiny: Tiny) -> None:
    nodes.heads(tiny, nodes.tail(tiny))


def _last(nodes: Nodes, tiny: Tiny) -> None:
    nodes.tail(tiny)


def _head_norm(nodes: Nodes, _: Tiny) -> None:
    nodes("Mul", nodes.norm("h"), "w_norm", output="z")


def _head_lm(nodes: Nodes, _: Tiny) -> None:
    nodes("MatMul", "z", "w_lm", output="logits")


BUILDERS: dict[str, Callable[[Nodes, Tiny], None]] = {
    "first": _first,
    "mid": _mid,
    "last": _last,
    "norm": _head_norm,
    "lm": _head_lm,
}
ONNX_TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "bool": TensorProto.BOOL}


def tokenwise_model(nodes: Nodes, engine: TokenwiseEngine, weights: list[WeightEntry] | None) -> onnx.ModelProto:
    """The engine that computes ``nodes``, its weights at the given places of ``weights.bin``, or inputs."""
    external = []
    for port, entry in zip(engine.weights, weights, strict=True) if weights is not None else ():
        tensor = TensorProto(name=port.name, data_type=ONNX_TYPES[port.dtype], dims=port.shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, text in (("location", "weights.bin"), ("offset", entry.offset), ("length", port.nbytes)):
            tensor.external_data.add(key=key, value=str(text))
        external.append(tensor)

    def infos(ports: tuple[Port, ...]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(p.name, ONNX_TYPES[p.dtype], p.shape) for p in ports]

    inputs = (*engine.inputs, *(engine.weights if weights is None else ()))
    graph = helper.make_graph(
        nodes.nodes, engine.name, infos(inputs), infos(engine.outputs), [*nodes.constants, *external]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


# ---------------------------------------------------------------------------------------------------- bundle


def write_tiny(
    path: Path,
    tiny: Tiny,
    *,
    program: Program | None = None,
    tokenizer: str | None = None,
    with_one_block: bool = False,
    lowering: str = "tile",
    other_key_tiles: tuple[int, ...] = (),
) -> Path:
    """Writes the bundle of ``tiny`` (or of an altered ``program``) into the new folder ``path``."""

    def build(engine: TokenwiseEngine) -> Nodes:
        nodes = Nodes()
        BUILDERS[engine.name](nodes, tiny)
        return nodes

    program = program or make_program(tiny)
    return write_bundle(
        path,
        program,
        make_weights(tiny),
        build,
        tokenizer=tokenizer,
        approximations=tiny.approximations,
        with_one_block=with_one_block,
        lowering=lowering,
        other_key_tiles=other_key_tiles,
    )


def write_bundle(
    path: Path,
    program: Program,
    arrays: dict[str, Any],
    build: Callable[[TokenwiseEngine], Nodes],
    *,
    tokenizer: str | None = None,
    approximations: tuple[str, ...] = (),
    with_one_block: bool = False,
    lowering: str = "tile",
    other_key_tiles: tuple[int, ...] = (),
) -> Path:
    """Writes a bundle of ``program`` with the weights ``arrays``; ``build`` makes the nodes of token-wise engines.

    The engine for short inputs is there only if asked for, so that most tests see every stage at any length.
    """
    (path / "engines").mkdir(parents=True)
    entries: dict[str, WeightEntry] = {}
    data = bytearray()
    for name in program.weights():
        data += bytes(-len(data) % ALIGNMENT)
        entries[name] = WeightEntry(len(data), arrays[name].dtype.name, arrays[name].shape)
        data += arrays[name].tobytes()
    files = {"engines/weights.bin": bytes(data), "program.json": json.dumps(to_json(program)).encode()}
    if tokenizer is not None:
        files["tokenizer/tokenizer.json"] = tokenizer.encode()
    files |= _engine_files(program, build, entries)
    for width in other_key_tiles:
        for engine in with_key_tile(program, width).engines:
            for variant in engine.variants if isinstance(engine, AttentionEngine) else ():
                files[f"{tiles_folder(width)}/{engine.name}.{variant}.onnx"] = _attention_bytes(engine, variant)
    for steps, engine in fused_steps(program, lowering, short=with_one_block):
        files[f"engines/{engine.name}.onnx"] = _fused_bytes(program, steps, engine, build, arrays, entries)
    for name, content in files.items():
        (path / name).parent.mkdir(exist_ok=True, parents=True)
        (path / name).write_bytes(content)
    manifest = Manifest(
        FORMAT_VERSION,
        "tests",
        SourceIdentity("tiny", "module", "Tiny", "0" * 64),
        program.block_size,
        program.key_tile,
        lowering,
        "float32",
        approximations,
        entries,
        {
            RelativePath(name): FileEntry(len(content), hashlib.sha256(content).hexdigest())
            for name, content in files.items()
        },
        other_key_tiles=other_key_tiles,
    )
    write_manifest(path, to_json(manifest))
    return path


def _engine_files(
    program: Program, build: Callable[[TokenwiseEngine], Nodes], entries: dict[str, WeightEntry]
) -> dict[str, bytes]:
    """A file for every engine and variant that the program calls, by name."""
    files: dict[str, bytes] = {}
    stages = [stage for stage in (*program.body, *program.head) if isinstance(stage, TokenwiseStage)]
    for engine in program.engines:
        if isinstance(engine, TokenwiseEngine):
            stage = next(stage for stage in stages if stage.engine == engine.name)
            model = tokenwise_model(build(engine), engine, [entries[name] for name in stage.weights])
            files[f"engines/{engine.name}.onnx"] = model.SerializeToString()
        elif isinstance(engine, AttentionEngine):
            for variant in engine.variants:
                files[f"engines/{engine.name}.{variant}.onnx"] = _attention_bytes(engine, variant)
        elif isinstance(engine, StockEngine):
            for variant in engine.VARIANTS:
                files[f"engines/{engine.name}.{variant}.onnx"] = stock_model(engine, variant).SerializeToString()
        elif isinstance(engine, ScanEngine):
            files[f"engines/{engine.name}.block.onnx"] = scan_model(engine).SerializeToString()
        elif isinstance(engine, ExpertsEngine):
            for variant in engine.variants:
                files[f"engines/{engine.name}.{variant}.onnx"] = experts_model(engine, variant).SerializeToString()
        else:
            files[f"engines/{engine.name}.{engine.mask}.onnx"] = oracle_model(engine, engine.mask).SerializeToString()
    return files


def _unbound(program: Program, build: Callable[[TokenwiseEngine], Nodes]) -> dict[str, onnx.ModelProto]:
    """The token-wise engines with their weights as inputs."""
    tokenwise = [engine for engine in program.engines if isinstance(engine, TokenwiseEngine)]
    return {engine.name: tokenwise_model(build(engine), engine, None) for engine in tokenwise}


def _fused_bytes(
    program: Program,
    steps: Program,
    engine: FusedEngine,
    build: Callable[[TokenwiseEngine], Nodes],
    arrays: dict[str, Any],
    entries: dict[str, WeightEntry],
) -> bytes:
    stage = next(s for s in steps.body if isinstance(s, TokenwiseStage) and s.engine == engine.name)
    model = fused_model(program, steps, engine, _unbound(program, build), arrays.__getitem__)
    assert model is not None
    names = zip(engine.weights, stage.weights, strict=True)
    bind_weights(model, {port.name: entries[name] for port, name in names})
    return model.SerializeToString()


@lru_cache(maxsize=64)
def _attention_bytes(engine: AttentionEngine, variant: str) -> bytes:
    return attention_model(engine, variant).SerializeToString()


def write_manifest(path: Path, data: Any) -> None:
    (path / "manifest.json").write_text(json.dumps(data), encoding="utf-8")


def read_manifest(path: Path) -> Any:
    return json.loads((path / "manifest.json").read_text(encoding="utf-8"))


def rehash(path: Path, name: str) -> None:
    """Makes the manifest agree with a file that a test altered."""
    manifest = read_manifest(path)
    content = (path / name).read_bytes()
    manifest["files"][name] |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    write_manifest(path, manifest)
