"""Every input that was a fault once, as the change that makes it of a good one, with what must become of it.

They are replayed before every run. A new fault is mended where its cause is, and gets a line here.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tools.fuzz.kinds import mend_manifest
from tools.fuzz.mutate.sealed import seal, sealed_again, unseal

__all__ = ["CORPUS", "Case"]

Change = Callable[[Path], None]
REFUSED, SAME, DIFFERENT = "refused", "same", "different"
MANY = 10**9
LAYERS = b".block_count"
TOKENIZER = "tokenizer/tokenizer.json"
FACTS = "tokenizer/generation.json"


@dataclass(frozen=True, slots=True)
class Case:
    """One input.

    Attributes:
        kind: Of :data:`tools.fuzz.kinds.KINDS`: the good input, and what is done with it.
        name: What is wrong with it.
        change: Makes it of a copy of the good one.
        outcome: What becomes of it.
    """

    kind: str
    name: str
    change: Change
    outcome: str = REFUSED


def _put(tree: Any, path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        tree = tree[key]
    tree[path[-1]] = value


def _set(file: str, *path: Any, to: Any, mend: bool = False) -> Change:
    """A field of a JSON file."""

    def change(folder: Path) -> None:
        tree = json.loads((folder / file).read_bytes())
        _put(tree, path, to)
        (folder / file).write_text(json.dumps(tree))
        if mend:
            mend_manifest(folder, folder / file)

    return change


def _sealed(file: str, *path: Any, to: Any) -> Change:
    """A field of a file of a job, with its checksum; without a path all of it."""

    def change(folder: Path) -> None:
        target = folder / "work" / file
        tree = unseal(target.read_bytes())
        if path:
            _put(tree, path, to)
        target.write_bytes(seal(tree if path else to))
        if target.name == "job.json":
            sealed_again(target.parent)

    return change


def _counted_less(file: str, *path: Any) -> Change:
    """A number of a file of a job that is one less."""

    def change(folder: Path) -> None:
        found = unseal((folder / "work" / file).read_bytes())
        for key in path:
            found = found[key]
        _sealed(file, *path, to=found - 1)(folder)

    return change


def _write(file: str, data: bytes, *, mend: bool = False) -> Change:
    """All bytes of a file."""

    def change(folder: Path) -> None:
        (folder / file).write_bytes(data)
        if mend:
            mend_manifest(folder, folder / file)

    return change


def _bytes(file: str, edit: Callable[[bytes], bytes]) -> Change:
    def change(folder: Path) -> None:
        (folder / file).write_bytes(edit((folder / file).read_bytes()))

    return change


def _instead(file: str, make: Callable[[Path], object]) -> Change:
    """Something else in the place of a file."""

    def change(folder: Path) -> None:
        (folder / file).unlink()
        make(folder / file)

    return change


def _onnx(edit: Callable[[Any], object], file: str = "model.onnx", *, mend: bool = False) -> Change:
    """An ONNX file, by its fields."""

    def change(folder: Path) -> None:
        import onnx

        model = onnx.load(str(folder / file), load_external_data=False)
        edit(model)
        (folder / file).write_bytes(model.SerializeToString())
        if mend:
            mend_manifest(folder, folder / file)

    return change


def _first(operator: str, **attributes: Any) -> Callable[[Any], object]:
    """Another operator, whose result is added to the first sum of a graph."""

    def edit(model: Any) -> None:
        from onnx import helper, numpy_helper

        graph = model.graph
        made = [
            ("size", np.array([MANY], np.int64)),
            ("end", np.array(MANY)),
            ("zero", np.array(0)),
            ("one", np.array(1)),
        ]
        graph.initializer.extend(numpy_helper.from_array(array, f"odd.{name}") for name, array in made)
        operands = ["odd.zero", "odd.end", "odd.one"] if operator == "Range" else ["odd.size"]
        nodes = [
            helper.make_node(operator, operands, ["odd"], **attributes),
            helper.make_node("ReduceSum", ["odd"], ["odd.sum"], keepdims=0),
            helper.make_node("Cast", ["odd.sum"], ["odd.float"], to=1),
        ]
        read = next(node for node in graph.node if node.op_type in ("Add", "MatMul", "Mul"))
        nodes.append(helper.make_node("Add", [read.input[0], "odd.float"], ["odd.read"]))
        read.input[0] = "odd.read"
        for node in reversed(nodes):
            graph.node.insert(0, node)

    return edit


def _functions(model: Any) -> None:
    from onnx import helper

    for at in range(40):
        inner = "Identity" if not at else f"f{at - 1}"
        body = [
            helper.make_node(inner, ["x"], ["y"], domain="bomb" if at else ""),
            helper.make_node(inner, ["y"], ["z"], domain="bomb" if at else ""),
        ]
        model.functions.append(helper.make_function("bomb", f"f{at}", ["x"], ["z"], body, model.opset_import))
    model.opset_import.append(helper.make_opsetid("bomb", 1))
    model.graph.node.insert(0, helper.make_node("f39", ["x"], ["deep"], domain="bomb"))


def _external(key: str, value: str) -> Callable[[Any], object]:
    def edit(model: Any) -> None:
        entries = model.graph.initializer[0].external_data
        for entry in [entry for entry in entries if entry.key == key]:
            entries.remove(entry)
        entries.add(key=key, value=value)

    return edit


def _loop(model: Any) -> None:
    model.graph.node[0].op_type = "Loop"


def _npy(shape: str) -> bytes:
    header = f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(16)


def _counted(field: int, value: int) -> Callable[[bytes], bytes]:
    """A GGUF file with another number of tensors or entries."""
    return lambda data: data[: 8 + 8 * field] + struct.pack("<Q", value) + data[16 + 8 * field :]


def _layers(count: int) -> Callable[[bytes], bytes]:
    """A GGUF file that says that it has so many layers."""

    def edit(data: bytes) -> bytes:
        at = data.index(LAYERS) + len(LAYERS) + 4
        return data[:at] + struct.pack("<I", count) + data[at + 4 :]

    return edit


def _long_list(kind: int) -> Callable[[bytes], bytes]:
    """A GGUF file with one more entry, a list that says that it is long, in front of the others."""

    def edit(data: bytes) -> bytes:
        entries = struct.unpack_from("<Q", data, 16)[0]
        name = b"x.y"
        entry = struct.pack("<Q", len(name)) + name + struct.pack("<IIQ", 9, kind, 2**40)
        return data[:16] + struct.pack("<Q", entries + 1) + entry + data[24:]

    return edit


def _encrypted(data: bytes) -> bytes:
    """An archive whose members say that they are encrypted: a bit behind the marks of their entries."""
    made = bytearray(data)
    for mark, distance in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.find(mark)
        while at >= 0:
            made[at + distance] |= 1
            at = data.find(mark, at + 1)
    return bytes(made)


DEEP = b"[" * 100_000

QUERY = "model.layers.0.self_attn.query"

BUNDLES = (
    *(
        Case("program", f"a {name} of {value}", _set("program.json", "engines", 3, name, to=value, mend=True))
        for name in ("scale", "softcap")
        for value in (-1.0, float("nan"), float("inf"), 0.5)
    ),
    Case("program", "a scale of 0", _set("program.json", "engines", 3, "scale", to=0.0, mend=True)),
    *(
        Case("program", f"the mask {mask}", _set("program.json", "body", 1, "mask", to=mask, mend=True))
        for mask in ("full", "causal & window(3, 0)")
    ),
    Case("program", "keys that are queries", _set("program.json", "body", 1, "key", to=QUERY, mend=True)),
    Case("program, generating", "keys that are queries", _set("program.json", "body", 1, "key", to=QUERY, mend=True)),
    Case("facts", "settings that are deep", _write(FACTS, DEEP, mend=True)),
    Case("tokenizer", "no token for other words", _set(TOKENIZER, "model", "vocab", to={"the": 0}, mend=True)),
    Case("manifest", "a manifest that is deep", _write("manifest.json", DEEP)),
    Case("manifest", "a weight off its alignment", _set("manifest.json", "weights", "lm_head.weight", "offset", to=1)),
    Case("manifest", "a weight over another", _set("manifest.json", "weights", "lm_head.weight", "offset", to=0)),
    Case("manifest", "files as a list", _set("manifest.json", "files", to=[])),
    Case(
        "manifest", "a link to a manifest elsewhere", _instead("manifest.json", lambda at: at.symlink_to("/etc/passwd"))
    ),
    Case("manifest", "a link to itself", _instead("program.json", lambda at: at.symlink_to("program.json"))),
    Case("manifest", "a pipe", _instead("program.json", os.mkfifo)),
    Case("manifest", "a pipe for a manifest", _instead("manifest.json", os.mkfifo)),
    Case("engines", "control flow", _onnx(_loop, "engines/one_block.onnx", mend=True)),
    Case("engines", "a large constant", _onnx(_first("ConstantOfShape"), "engines/tokenwise_1.onnx", mend=True)),
)

_ARCHITECTURES: tuple[Any, ...] = (["LlamaConfig"], ["LlamaTokenizer"], [5], [["x"]], "x", {})

SOURCES = (
    *(
        Case("config", f"architectures {value}", _set("config.json", "architectures", to=value))
        for value in _ARCHITECTURES
    ),
    Case("config", "a kernel from elsewhere", _set("config.json", "attn_implementation", to="evil/kernel")),
    Case(
        "config",
        "code of its own",
        _bytes("config.json", lambda _: b'{"model_type": "x", "auto_map": {"AutoConfig": "a.B"}}'),
    ),
    *(Case(k, "10^9 layers", _set("config.json", "num_hidden_layers", to=10**9)) for k in ("config", "folder")),
    Case("config", "a configuration that is deep", _write("config.json", DEEP)),
    Case(
        "index",
        "weights elsewhere",
        _set("model.safetensors.index.json", "weight_map", "lm_head.weight", to="../outside/model.safetensors"),
    ),
    *(
        Case("embedder", f"modules.json {data!r}", _write("modules.json", data))
        for data in (b"[{}]", b"x", b"\xff", b"[[]]", b"{}", b"[null]", DEEP)
    ),
    Case("embedder", "a pooling that is a list", _write("1_Pooling/config.json", b"[]")),
    *(Case("gguf, planned", f"{2**62} of field {at}", _bytes("model.gguf", _counted(at, 2**62))) for at in (0, 1)),
    *(Case("gguf", f"a list of {2**40}, type {kind}", _bytes("model.gguf", _long_list(kind))) for kind in (4, 6, 8)),
    *(Case(kind, "a million layers", _bytes("model.gguf", _layers(10**6))) for kind in ("gguf", "gguf, planned")),
    Case("gguf", "more layers than tensors", _bytes("model.gguf", _layers(204))),
    Case("config", "a pipe for a tokenizer's file", _instead("tokenizer_config.json", os.mkfifo)),
    Case("onnx", "a large constant", _onnx(_first("ConstantOfShape"))),
    Case("onnx", "a large range", _onnx(_first("Range"))),
    Case("onnx", "functions within functions", _onnx(_functions)),
    Case(
        "onnx",
        "a constant without a value",
        _onnx(lambda model: setattr(model.graph.node.add(op_type="Constant", output=["c"]), "name", "c")),
    ),
    Case(
        "onnx",
        "an element type that is none",
        _onnx(lambda model: setattr(model.graph.initializer[0], "data_type", 99)),
    ),
    *(
        Case("onnx, external", f"{key} {text!r:.20}", _onnx(_external(key, text)))
        for key, text in (
            ("offset", "-64"),
            ("offset", "abc"),
            ("length", "abc"),
            ("length", "-5"),
            ("location", "a\0b"),
        )
    ),
    Case("onnx, external", "numbers elsewhere", _onnx(_external("location", "../outside/weights.bin"))),
)

WORK = (
    *(
        Case("job", f"job.json holds {to!r:.20}", _sealed("job.json", to=to))
        for to in ("[]", "null", "1", "{}", DEEP.decode())
    ),
    *(
        Case("job", f"the journal holds {to!r:.20}", _sealed("journal.json", to=to))
        for to in ("[]", "{}", DEEP.decode())
    ),
    *(Case("job", f"progress holds {to!r:.20}", _sealed("progress.json", to=to), SAME) for to in ("[]", DEEP.decode())),
    Case("job", "progress of no seconds", _sealed("progress.json", "seconds", to=10**400), SAME),
    Case("job", "a stage that is none", _sealed("journal.json", "finished_stages", to=["x"])),
    Case("job", "calls of another stage", _sealed("journal.json", "counters", to={"x": [1, 0, 0.1]})),
    Case("job", "a part without items", _sealed("journal.json", "part", "pieces", to=[]), SAME),
    Case("job", "a part as a text", _sealed("journal.json", "part", to="x")),
    Case("job", "an input whose name has a NUL", _sealed("job.json", "request", "input", "path", to="/a\0b")),
    Case("job", "an input without a path", _sealed("job.json", "request", "input", to={})),
    Case("job", "a result whose name has a NUL", _sealed("job.json", "request", "out", to="/a\0b")),
    Case("job", "positions that no input has", _sealed("job.json", "request", "positions", to=[10**30])),
    Case("results", "an index with a byte less", _counted_less(".job/journal.json", "totals", "index_bytes")),
    Case("results", "a document less", _counted_less(".job/journal.json", "totals", "documents")),
    Case("results", "a part less", _counted_less(".job/journal.json", "totals", "parts")),
    Case("results", "an index of another text", _bytes("work/index.jsonl", lambda data: data.replace(b"d0", b"d9"))),
    Case("results", "documents below none", _sealed(".job/journal.json", "totals", "documents", to=-1)),
    Case("results", "more parts than any", _sealed(".job/journal.json", "totals", "parts", to=10**30)),
    Case("results", "a backend as a number", _sealed(".job/job.json", "identity", "backend", to=5)),
    Case("results", "documents whose name has a NUL", _sealed(".job/job.json", "request", "source", to="/a\0b")),
)


def _link(file: str) -> Change:
    """A link to a file elsewhere in the place of one that is written."""

    def change(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        (folder / file).symlink_to("../../outside/weights.bin")

    return change


LINKS = (
    *(
        Case("job", f"a link for {name}", _link(f"work/{name}"))
        for name in ("progress.json", "lock", "job.partial", "x")
    ),
    Case("job", "a link for a value", lambda folder: _link(f"work/values/{_value(folder)}")(folder)),
    Case("job", "a link for the result so far", lambda folder: _link(next(folder.glob(".*.partial")).name)(folder)),
    *(
        Case("results", f"a link for {name}", _link(f"work/{name}"))
        for name in ("index.jsonl", "run.json", "part-00000.npy")
    ),
    Case("pages", "a pipe for a page", lambda folder: _instead(_page(folder), os.mkfifo)(folder)),
    Case("pages", "a page of a terabyte", lambda folder: os.truncate(folder / _page(folder), 1 << 40)),
)


def _value(folder: Path) -> str:
    return min((folder / "work" / "values").iterdir()).name


def _page(folder: Path) -> str:
    return min(folder.glob("*.page")).name


INPUTS = (
    *(
        Case("requests", f"a prompt {value!r}", _set("greedy.json", "prompt", to=value))
        for value in (1.5, 7, None, {"role": "user"}, [1, [2]], [10**30])
    ),
    *(Case("requests", f"seed {value!r}", _set("sampled.json", "seed", to=value)) for value in (-1, "x", [1])),
    Case("requests", "endless tokens", _set("greedy.json", "max_new_tokens", to=float("inf"))),
    Case("requests", "a token of 10^30", _set("sampled.json", "bad_words_ids", to=[[10**30]])),
    Case("requests", "a token of -2^63", _set("sampled.json", "sequence_bias", to=[[[-(2**63)], 1.5]])),
    Case("requests", "10^308 tokens", _set("greedy.json", "max_new_tokens", to=1e308), DIFFERENT),
    Case("requests", "a chat that is a list", _set("chat.json", "chat", to=[1])),
    Case("arrays", "an array of 10^12", _write("tokens.npy", _npy("(1000000000000,)"))),
    Case("arrays", "an array of a number of numbers", _write("tokens.npy", _npy("(" + "9" * 30 + ",)"))),
    Case("arrays", "a header without an end", _write("tokens.npy", _npy("'x"))),
    Case("arrays", "half an archive", _bytes("arrays.npz", lambda data: data[: len(data) // 2])),
    Case("arrays", "an encrypted member", _bytes("arrays.npz", _encrypted)),
    Case("lines", "lines that are deep", _write("lines.jsonl", DEEP), DIFFERENT),
    Case("lines", "a text that is no text", _write("lines.jsonl", b'{"text": "\\ud800"}\n'), DIFFERENT),
)

CORPUS: tuple[Case, ...] = (*BUNDLES, *SOURCES, *WORK, *LINKS, *INPUTS)
