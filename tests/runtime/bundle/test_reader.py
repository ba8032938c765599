"""A bundle is refused, with the file named, unless every byte and every name in it is as its writer left it."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.tiny_bundle import make_program, read_manifest, rehash, write_manifest, write_tiny
from tests.runtime.tiny_model import Tiny
from twoheads.graphs.errors import BundleError
from twoheads.graphs.masks.expressions import Causal
from twoheads.graphs.program.program import (
    AttentionStage,
    Input,
    Limit,
    Pooling,
    RelativeBias,
    SequenceStage,
    TokenwiseEngine,
    Value,
)
from twoheads.graphs.serialization.bundle_format import FORMAT_VERSION
from twoheads.runtime import load
from twoheads.runtime.bundle.reader import read_bundle


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("whole") / "bundle", Tiny(layers=2, trained_length=99))


@pytest.fixture
def bundle(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "bundle"))


def refused(path, *words, check="full"):
    with pytest.raises(BundleError) as caught:
        load(path, check=check)
    for word in words:
        assert word in str(caught.value)
    assert caught.value.fix
    return caught.value


def test_a_whole_bundle(bundle):
    for check in ("full", "size"):
        read = read_bundle(bundle, check=check)
        assert read.program == make_program(Tiny(layers=2, trained_length=99))
        assert read.tokenizer_file is None


@pytest.mark.parametrize(
    "program",
    [
        Tiny(layers=1, key_tile=32, masks=("causal & (window(3, 0) | sinks(2))",), sinks=True, table_reach=3),
        Tiny(layers=3, slope=True, max_length=Limit(9, "table"), pooling=Pooling("cls", False), head=False),
    ],
)
def test_programs_round_trip(tmp_path, program):
    assert read_bundle(write_tiny(tmp_path / "b", program)).program == make_program(program)


def test_no_such_folder(tmp_path):
    refused(tmp_path / "nothing", "nothing: does not exist")


def test_a_file(bundle, tmp_path):
    assert str(bundle) in refused(bundle / "program.json", "is a file").fix
    for name, fix in (("model.gguf", "compile it first"), ("README.md", "`twoheads compile` wrote")):
        (tmp_path / name).write_text("")
        assert fix in refused(tmp_path / name, "is a file").fix


def test_what_a_killed_compile_left(bundle):
    refused(bundle.rename(bundle.with_name(".bundle.partial-host-1")), "an interrupted compile")


def test_not_a_bundle(tmp_path):
    refused(tmp_path, "it has no manifest.json")
    (tmp_path / "config.json").write_text("{}")
    assert "compile it first" in refused(tmp_path, "is not a bundle").fix


@pytest.mark.parametrize("version", [0, FORMAT_VERSION - 1, FORMAT_VERSION + 1, 99])
def test_another_format_version(bundle, version):
    manifest = read_manifest(bundle)
    write_manifest(bundle, {"format_version": version, "something": "else"} | ({} if version else manifest))
    if not version:
        write_manifest(bundle, manifest | {"format_version": version})
    fix = refused(bundle, f"has format version {version}", "manifest.json").fix
    assert ("update" if version > FORMAT_VERSION else "compile") in fix


def _files(path):
    return sorted(read_manifest(path)["files"])


def test_every_file_truncated_altered_or_missing(whole, tmp_path):
    for at, name in enumerate(_files(whole)):
        path = shutil.copytree(whole, tmp_path / str(at))
        content = (path / name).read_bytes()
        (path / name).write_bytes(content[:-1])
        refused(path, name, "truncated", check="size")
        (path / name).write_bytes(content + b" ")
        refused(path, name, "altered", check="size")
        (path / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        refused(path, name, "altered: its sha256")
        (path / name).unlink()
        refused(path, name, "missing", check="size")


@pytest.mark.parametrize("name", ["extra.txt", "engines/extra.onnx", "new/extra.bin"])
def test_an_extra_file(bundle, name):
    (bundle / name).parent.mkdir(exist_ok=True)
    (bundle / name).write_text("x")
    refused(bundle, name, "not listed")


@pytest.mark.parametrize("name", ["/etc/hostname", "../other", "engines/../../x", "a\\b", "C:/x", "", "a//b", "./a"])
def test_names_that_leave_the_folder(bundle, name):
    manifest = read_manifest(bundle)
    manifest["files"][name] = {"kind": "FileEntry", "size": 0, "sha256": ""}
    write_manifest(bundle, manifest)
    refused(bundle, "not a plain path", "manifest.json")


def test_links_that_leave_the_folder(bundle, tmp_path):
    weights = bundle / "engines" / "weights.bin"
    weights.rename(tmp_path / "outside.bin")
    weights.symlink_to(tmp_path / "outside.bin")
    refused(bundle, "weights.bin", "link that leaves")
    weights.unlink()
    (tmp_path / "outside.bin").rename(weights)
    load(bundle)
    (bundle / "engines").rename(tmp_path / "engines")
    (bundle / "engines").symlink_to(tmp_path / "engines")
    refused(bundle, "leaves the bundle")


@pytest.mark.parametrize("name", ["manifest.json", "program.json", "engines/last.onnx"])
@pytest.mark.parametrize("end", ["outside", "itself", "nothing"])
def test_a_link_in_place_of_a_file(bundle, tmp_path, name, end):
    path = bundle / name
    path.rename(tmp_path / "outside")
    path.symlink_to({"outside": tmp_path / "outside", "itself": path, "nothing": tmp_path / "nothing"}[end])
    words = {"outside": "link that leaves", "itself": "can't be read", "nothing": "missing"}
    for check in ("full", "size"):
        refused(bundle, name, words[end], check=check)


def test_a_pipe_in_place_of_a_file(bundle):
    (bundle / "engines" / "last.onnx").unlink()
    os.mkfifo(bundle / "engines" / "last.onnx")
    refused(bundle, "last.onnx", "no regular file", check="size")


def test_engines_without_weights(bundle):
    """A pack lists neither; a bundle that lists engines lists their weights, even if it has none."""
    manifest = read_manifest(bundle)
    (bundle / "engines/weights.bin").unlink()
    del manifest["files"]["engines/weights.bin"]
    manifest["built_in"], manifest["weights"] = manifest["weights"], {}
    write_manifest(bundle, manifest)
    refused(bundle, "weights.bin: is not listed")


def test_a_link_to_another_file_of_the_bundle(bundle):
    (bundle / "program.json").rename(bundle / "engines" / "program.json")
    (bundle / "program.json").symlink_to("engines/program.json")
    manifest = read_manifest(bundle)
    manifest["files"]["engines/program.json"] = manifest["files"]["program.json"]
    write_manifest(bundle, manifest)
    assert load(bundle).run([1, 2]).array is not None


def _built(files, host=None):
    """A target as the manifest has it, with one artifact."""
    part = None if host is None else {"kind": "HostPart", "file": host, "weights": []}
    artifact = {"kind": "Artifact", "key": "0", "stages": ["first"], "files": files, "seconds": 1.0, "off": []}
    artifacts = {"first": artifact | {"error": None, "host": part}}
    entry = {"kind": "TargetEntry", "compiler": "c", "version": "1", "precision": "int8", "device": None}
    return entry | {"artifacts": artifacts}


@pytest.mark.parametrize(
    ("target", "entry", "words"),
    [
        ("onnxruntime", _built(["/etc/hostname"]), "not a plain path"),
        ("onnxruntime", _built(["../../../x.onnx"]), "not a plain path"),
        ("onnxruntime", _built(["first.onnx"], host="/etc/hostname"), "not a plain path"),
        ("../..", _built([]), "not a plain path"),
        ("onnxruntime", _built(["first.onnx"]), "does not list 'targets/onnxruntime/first.onnx'"),
        ("onnxruntime", _built([], host="first.host.onnx"), "does not list 'targets/onnxruntime/first.host.onnx'"),
    ],
)
def test_artifacts_that_are_no_files_of_the_bundle(bundle, target, entry, words):
    manifest = read_manifest(bundle)
    manifest["targets"][target] = entry
    write_manifest(bundle, manifest)
    refused(bundle, words, "manifest.json", check="size")


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"format_version": 3}', b"[" * 100_000, b'{"format_version": true}'],
)
def test_a_manifest_that_is_not_one(bundle, text):
    (bundle / "manifest.json").write_bytes(text)
    refused(bundle, "manifest.json")


@pytest.mark.parametrize("text", [b"{", b"{}", b"7"])
def test_a_program_that_is_not_one(bundle, text):
    (bundle / "program.json").write_bytes(text)
    rehash(bundle, "program.json")
    refused(bundle, "program.json")


def test_a_program_with_an_unknown_mask(bundle):
    path = bundle / "program.json"
    path.write_text(path.read_text().replace('"causal"', '"diagonal"'))
    rehash(bundle, "program.json")
    refused(bundle, "program.json", "diagonal")


def test_an_engine_that_is_not_onnx(bundle):
    (bundle / "engines" / "last.onnx").write_bytes(b"not onnx")
    rehash(bundle, "engines/last.onnx")
    refused(bundle, "last.onnx", "is no ONNX file")


def test_an_engine_with_other_ports(bundle):
    shutil.copy(bundle / "engines" / "attention.masked.onnx", bundle / "engines" / "attention.full.onnx")
    rehash(bundle, "engines/attention.full.onnx")
    refused(bundle, "attention.full.onnx", "has the ports")


def test_an_unreadable_file(bundle):
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    (bundle / "engines" / "last.onnx").chmod(0)
    refused(bundle, "can't be read")


# Programs that do not fit themselves or their manifest: (what is altered, what the error says).


def _stage(program, at, **changes):
    body = list(program.body)
    body[at] = dataclasses.replace(body[at], **changes)
    return dataclasses.replace(program, body=tuple(body))


def _engine(program, at, **changes):
    engines = list(program.engines)
    engines[at] = dataclasses.replace(engines[at], **changes)
    return dataclasses.replace(program, engines=tuple(engines))


BAD_PROGRAMS = {
    "other block size": (lambda p: dataclasses.replace(p, block_size=32), "manifest has others"),
    "unknown hidden": (lambda p: dataclasses.replace(p, hidden="nothing"), "hidden 'nothing'"),
    "hidden of 4 axes": (lambda p: dataclasses.replace(p, hidden="q0", head=(), logits=None), "hidden 'q0'"),
    "unknown logits": (lambda p: dataclasses.replace(p, logits="nothing"), "logits 'nothing'"),
    "logits in the body": (lambda p: dataclasses.replace(p, logits="h_last"), "logits 'h_last'"),
    "stage without engine": (lambda p: _stage(p, 0, engine="nothing"), "engine 'nothing'"),
    "stage of the wrong kind": (lambda p: _stage(p, 0, engine="attention"), "of another kind"),
    "unknown value": (lambda p: _stage(p, 0, inputs=("tokens", "nothing")), "reads 'nothing'"),
    "value of a later stage": (lambda p: _stage(p, 2, inputs=("a1", "h0")), "reads 'a1' before"),
    "too few inputs": (lambda p: _stage(p, 0, inputs=("tokens",)), "1 values for 2 ports"),
    "wrong shape": (lambda p: _stage(p, 1, query="k0"), "'k0' gives"),
    "wrong dtype": (lambda p: _stage(p, 0, inputs=("positions", "h0")), "reads 'h0' before"),
    "value twice": (lambda p: _stage(p, 1, output=Value("q0", "float32", (1, 4, "n", 5))), "defines 'q0' twice"),
    "stage twice": (lambda p: _stage(p, 1, name="first"), "two stages of one name"),
    "too few weights": (lambda p: _stage(p, 0, weights=("embed",)), "wrong number of weights"),
    "unknown weight": (lambda p: _stage(p, 2, weights=("nothing", *p.body[2].weights[1:])), "no weight 'nothing'"),
    "swapped weights": (lambda p: _stage(p, 2, weights=p.body[2].weights[::-1]), "expected float32"),
    "unknown sinks": (lambda p: _stage(p, 1, sinks="nothing"), "no weight 'nothing'"),
    "sinks of another shape": (lambda p: _stage(p, 1, sinks="0.q"), "weight '0.q'"),
    "bias without mask heads": (lambda p: _stage(p, 1, bias=RelativeBias(None, "freq")), "takes no such bias"),
    "two engines of one name": (lambda p: dataclasses.replace(p, engines=(*p.engines, p.engines[0])), "two engines"),
    "engine in another folder": (lambda p: _engine(p, 0, name="../first"), "no plain name of a file"),
    "engine without a file": (lambda p: _engine(p, 0, name="other"), "no file"),
    "engine of other tiles": (lambda p: _engine(p, 2, key_tile=32), "tiles do not fit"),
    "heads that do not divide": (lambda p: _engine(p, 2, kv_num_heads=3), "do not fit"),
    "two ports of one name": (
        lambda p: _engine(
            p, 1, weights=(p.engines[1].weights[0], *p.engines[1].weights[:1], *p.engines[1].weights[2:])
        ),
        "two ports of one name",
    ),
    "scale of 0": (lambda p: _engine(p, 2, scale=0.0), "its scale is 0"),
    "negative scale": (lambda p: _engine(p, 2, scale=-1.0), "its scale is -1"),
    "scale that is no number": (lambda p: _engine(p, 2, scale=float("nan")), "its scale is nan"),
    "endless scale": (lambda p: _engine(p, 2, scale=float("inf")), "its scale is inf"),
    "negative softcap": (lambda p: _engine(p, 2, softcap=-1.0), "its softcap is -1"),
    "softcap that is no number": (lambda p: _engine(p, 2, softcap=float("nan")), "its softcap is nan"),
    "endless softcap": (lambda p: _engine(p, 2, softcap=float("inf")), "its softcap is inf"),
    "odd dtype": (lambda p: _engine(p, 2, dtype="complex64"), "complex64"),
    "key tile": (lambda p: dataclasses.replace(p, key_tile=24), "manifest has others"),
    "odd source": (
        lambda p: dataclasses.replace(p, inputs=(Input(p.inputs[0].value, "clock", None), *p.inputs[1:])),
        "source 'clock'",
    ),
    "value without tokens": (
        lambda p: dataclasses.replace(
            p, inputs=(Input(Value("tokens", "int64", (1, 16)), "argument", 40), *p.inputs[1:])
        ),
        "no argument has the axis n",
    ),
    "head that reads the body": (
        lambda p: dataclasses.replace(p, head=(dataclasses.replace(p.head[0], inputs=("h0",)), *p.head[1:])),
        "more than the hidden states",
    ),
}


@pytest.mark.parametrize("name", sorted(BAD_PROGRAMS))
def test_programs_that_do_not_fit(bundle, name):
    from twoheads.graphs.serialization.json_codec import to_json

    alter, words = BAD_PROGRAMS[name]
    (bundle / "program.json").write_text(json.dumps(to_json(alter(make_program(Tiny(layers=2))))))
    rehash(bundle, "program.json")
    refused(bundle, "program.json", words)


def _sequence(operator: str, inputs: Any, shape: Any, dtype: Any = "int64", **attributes: int) -> Any:
    """Adds a stage that moves rows in front of the others."""
    stage = SequenceStage("moved", operator, inputs, Value("moved", dtype, shape), tuple(attributes.items()))
    return lambda p: dataclasses.replace(p, body=(stage, *p.body))


TAKE = {"axis": 1, "from_end": 0, "start": 0, "step": 1}
ROWS = ("tokens",)
BAD_SEQUENCES = {
    "operator": (_sequence("sort", ROWS, (1, "n"), axis=1), "stage moved: 'sort' is not a sequence operator"),
    "arity": (_sequence("take", ("tokens", "positions"), (1, 1), **TAKE), "take of 2 inputs"),
    "attributes": (_sequence("take", ROWS, (1, 1), axis=1), "expected ['axis', 'from_end', 'start', 'step']"),
    "attribute of two": (_sequence("add", ("tokens", "positions"), (1, "n"), value=1), "add with attributes"),
    "another axis": (_sequence("take", ROWS, (1, "n"), **(TAKE | {"axis": 0})), "whose token axis is 1"),
    "no dimension": (_sequence("take", ROWS, (1, 1), **(TAKE | {"axis": 2})), "which has 2 dimensions"),
    "from the side": (_sequence("take", ROWS, (1, 1), **(TAKE | {"from_end": 2})), "from_end=2"),
    "dtype": (_sequence("take", ROWS, (1, 1), "float32", **TAKE), "take of int64 makes no float32"),
    "cast": (_sequence("cast", ROWS, (1, "n"), "int32", to=2), "cast to 2 makes no int32"),
    "comparison": (_sequence("equal", ROWS, (1, "n"), value=1), "equal makes bool, not int64"),
    "shape": (_sequence("sum", ROWS, (1, "n"), axis=1), "sum makes [1, 1], not [1, 'n']"),
    "sum of axes": (_sequence("concat", ("tokens", "positions"), (1, "n"), axis=1), "concat makes [1, 'n+n']"),
    "no axis": (_sequence("take", ROWS, (1, "n+n//2"), **TAKE), "axis 'n+n//2' is written 'n'"),
    "foreign axis": (_sequence("take", ROWS, (1, "m"), **TAKE), "no input has the axis m"),
    "two axes": (_sequence("take", ROWS, ("n", "n"), **TAKE), "at most one axis"),
    "unknown value": (_sequence("take", ("nothing",), (1, 1), **TAKE), "reads 'nothing' before"),
    "not computed": (
        lambda p: _sequence("cumsum", ("h0",), (1, "n", 12), axis=1)(
            dataclasses.replace(p, inputs=(*p.inputs, Input(Value("h0", "float32", (1, "n", 12)), "zeros", None)))
        ),
        "whole numbers and truth values, not with float32",
    ),
    "length of nothing": (
        lambda p: dataclasses.replace(p, inputs=(*p.inputs, Input(Value("l", "int64", (1,)), "length", None))),
        "input l: is the length of nothing",
    ),
    "axis of an argument": (
        lambda p: dataclasses.replace(p, inputs=(*p.inputs, Input(Value("x", "int64", (1, "n+1")), "argument", None))),
        "an argument is on the axis n+1",
    ),
    "logits of several rows": (
        lambda p: dataclasses.replace(_sequence("take", ROWS, (2, 1), **TAKE)(p), logits="moved", head=()),
        "take makes",
    ),
}


@pytest.mark.parametrize("name", sorted(BAD_SEQUENCES))
def test_stages_that_move_rows_wrongly(bundle, name):
    from twoheads.graphs.serialization.json_codec import to_json

    alter, words = BAD_SEQUENCES[name]
    (bundle / "program.json").write_text(json.dumps(to_json(alter(make_program(Tiny(layers=2))))))
    rehash(bundle, "program.json")
    refused(bundle, "program.json", words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"offset": 1 << 40}, "ends at byte"),
        ({"offset": -64}, "negative"),
        ({"offset": 2}, "not aligned"),
        ({"dtype": "object"}, "dtype 'object'"),
        ({"dtype": "int32"}, "int32"),
        ({"shape": [12, 39]}, "expected"),
        ({"offset": 8}, "not aligned"),
        ({"offset": 0}, "lies over weight"),
    ],
)
def test_weights_that_do_not_fit(bundle, changes, words):
    manifest = read_manifest(bundle)
    manifest["weights"]["lm"] |= changes
    write_manifest(bundle, manifest)
    refused(bundle, "program.json", words)


def test_the_helpers_alter_what_they_say():
    program = make_program(Tiny(layers=2))
    assert isinstance(program.body[1], AttentionStage)
    assert program.body[1].mask == Causal()
    assert isinstance(program.engines[0], TokenwiseEngine)
