"""Engines with planted faults, reduced to the nodes that fail: on backends, on a made-up compiler, on a real one."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys

import numpy as np
import onnx
import pytest

from tests.runtime.tiny_bundle import write_tiny
from tests.runtime.tiny_model import Tiny
from twoheads.export.accelerators.target import Target, load_target, target_names
from twoheads.export.cli import main
from twoheads.export.debug import cases, isolated
from twoheads.export.debug.cases import Against, engine_case, find_against
from twoheads.export.debug.evaluators import find_evaluator
from twoheads.export.debug.find_fault import find_fault
from twoheads.export.debug.graph_cuts import cut_nodes, graph_ports, mark_all, value_types
from twoheads.export.debug.layers import selected_jobs
from twoheads.export.debug.oracles import evaluator_oracle
from twoheads.export.engines.jobs import engine_model, random_inputs
from twoheads.export.engines.recording import record_inputs
from twoheads.graphs.errors import InputError
from twoheads.runtime.bundle.reader import read_bundle

PLAIN = find_evaluator("onnxruntime-plain")

FAKE = r"""
import os
from pathlib import Path

def identify():
    return {"name": "fake", "version": "1.0"}

def build(request):
    content, behaviour = Path(request["onnx"]).read_bytes(), os.environ["FAKE"]
    # Importing onnx would take longer than all else: this is how a node's operator is written in a file.
    count = {name: content.count(b'"' + bytes([len(name)]) + name.encode()) for name in ("Tanh", "Sqrt", "Transpose")}
    if behaviour == "refuse" and count["Tanh"]:
        raise ValueError("Tanh is not supported")
    if behaviour == "kill" and count["Tanh"]:
        os._exit(9)
    if behaviour == "host":
        print("host: Transpose\n" * count["Transpose"])
    if behaviour == "wrong":
        import numpy
        with numpy.load(request["inputs"].replace(".inputs.", ".expected.")) as expected:
            outputs = {name: expected[name] * (1.5 if count["Sqrt"] else 1) for name in expected.files}
        numpy.savez(request["outputs"], **outputs)

def off_accelerator(log):
    return [line[6:] for line in log.splitlines() if line.startswith("host: ")]
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("debug") / "b", Tiny())


@pytest.fixture(scope="module")
def bundle(path):
    return read_bundle(path)


@pytest.fixture(scope="module")
def recorded(bundle):
    return record_inputs(bundle)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A Python that has a compiler ``fake``, and the target of it, with an emulator where it is wrong."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "build_fake.py").write_text(FAKE)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}/site" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)

    def load(name):
        emulator = "itself" if os.environ["FAKE"] == "wrong" else None
        fake = Target(
            "fake",
            "",
            "build_fake",
            ("fake",),
            ("fp32", "fp16"),
            False,
            (),
            emulator,
            "tile",
            None,
            None,
            None,
            "1.0",
            (),
        )
        return fake if name == "fake" else load_target(name)

    monkeypatch.setattr(cases, "load_target", load)
    monkeypatch.setattr(cases, "target_names", lambda: (*target_names(), "fake"))
    return python


def altered(change):
    """A backend that computes another model than it is given."""

    def evaluate(model, inputs):
        other = onnx.ModelProto()
        other.CopyFrom(model)
        for node in other.graph.node:
            change(node, other.graph)
        return PLAIN(other, inputs)

    return evaluate


def wrong_tanh(node, _graph):
    node.op_type = {"Tanh": "Atan"}.get(node.op_type, node.op_type)


def refused_sqrt(node, _graph):
    if node.op_type == "Sqrt":
        raise ValueError("no square roots here")


def wrong_scores(node, graph):
    """A fusion gone wrong: only a product of a transposed value is."""
    made = {name: other.op_type for other in graph.node for name in other.output}
    if node.op_type == "Reshape" and made.get(node.input[0]) == "Transpose":
        node.input[0] = next(other.input[0] for other in graph.node if node.input[0] in other.output)


def against(evaluate, tolerance=1e-4):
    return Against("b", "b", None, "fp32", evaluator_oracle(evaluate, tolerance), PLAIN)


def fault_of(bundle, recorded, engine, evaluate, **options):
    (job,) = selected_jobs(bundle, [engine])
    tried = against(evaluate)
    case = engine_case(bundle, job, tried, recorded)
    assert case is not None
    return find_fault(case, tried, **options)


@pytest.mark.parametrize(
    ("change", "kind", "operators"),
    [
        (wrong_tanh, "differs", ["Tanh"]),
        (refused_sqrt, "refused", ["Sqrt"]),
        (wrong_scores, "differs", ["Transpose", "Reshape"]),
    ],
)
def test_a_fault_of_a_backend_is_reduced_to_its_nodes(bundle, recorded, change, kind, operators):
    evaluate = altered(change)
    found = fault_of(bundle, recorded, "mid.1", evaluate)
    assert found is not None
    fault, reduction = found
    assert (fault.kind, [node.operator for node in fault.nodes]) == (kind, operators)
    assert fault.engine == "mid.1"
    assert fault.callers == ("mid2",)
    assert fault.inputs == "recorded"
    assert fault.nodes_before == 25
    assert fault.checks < 15
    assert (fault.error is None) == (kind == "refused")
    # The reduced model fails alone, and is right where nothing is planted.
    assert evaluator_oracle(evaluate, 1e-4)(reduction.model, reduction.inputs, reduction.expected) is not None
    assert evaluator_oracle(PLAIN, 0)(reduction.model, reduction.inputs, reduction.expected) is None
    onnx.checker.check_model(reduction.model, full_check=True)


def test_what_does_not_fail_is_not_reduced(bundle, recorded):
    assert fault_of(bundle, recorded, "mid.0", find_evaluator("onnxruntime")) is None
    assert fault_of(bundle, recorded, "lm", altered(wrong_tanh)) is None


def test_only_failures_of_the_given_message_count(bundle, recorded):
    def refused(node, graph):
        refused_sqrt(node, graph)
        if node.op_type == "MatMul":
            raise ValueError("no products here")

    first = fault_of(bundle, recorded, "mid.0", altered(refused))
    assert first is not None
    assert [node.operator for node in first[0].nodes] == ["MatMul"]
    assert fault_of(bundle, recorded, "mid.0", altered(refused), message="no additions") is None


def test_any_nodes_cut_out_of_an_engine_compute_what_the_engine_does(bundle):
    """Every prefix, suffix and comb of the nodes, fed with the engine's own values."""
    (job,) = selected_jobs(bundle, ["attention.masked_merge"])
    model = engine_model(bundle, job)
    inputs = random_inputs(job)
    values = {**inputs, **PLAIN(mark_all(model), inputs)}
    types, count = value_types(model), len(model.graph.node)
    cuts = [*(range(stop) for stop in range(1, count + 1, 5)), *(range(start, count) for start in range(1, count, 5))]
    for kept in (*cuts, range(0, count, 2), range(1, count, 3)):
        part = cut_nodes(model, list(kept), types)
        given, made = graph_ports(part)
        onnx.checker.check_model(part, full_check=True)
        assert made
        results = PLAIN(part, {port.name: values[port.name] for port in given})
        for port in made:
            assert (port.dtype, port.shape) == (values[port.name].dtype.name, values[port.name].shape)
            np.testing.assert_array_equal(results[port.name], values[port.name])


@pytest.mark.parametrize(
    ("behaviour", "engine", "kind", "operators", "said"),
    [
        ("refuse", "last", "refused", ["Tanh"], "Tanh is not supported"),
        ("kill", "last", "crashed", ["Tanh"], "ended with 9"),
        ("wrong", "norm", "differs", ["Sqrt"], ""),
        ("host", "last", "off", ["Transpose"], "Transpose"),
    ],
)
def test_a_compiler_is_asked_about_ever_fewer_nodes(
    path, fake, tmp_path, monkeypatch, capsys, behaviour, engine, kind, operators, said
):
    monkeypatch.setenv("FAKE", behaviour)
    out = tmp_path / "fault"
    words = ["debug", str(path), "--engine", engine, "--against", "fake", "--python", str(fake), "-o", str(out)]
    assert main([*words, "--json"]) == 1
    fault = json.loads(capsys.readouterr().out)
    assert (fault["kind"], [node["operator"] for node in fault["nodes"]]) == (kind, operators)
    assert said in fault["reduced_message"]
    assert fault["against"] == "fake (fake 1.0, fp32)"
    if behaviour != "refuse":
        return
    report = json.loads((out / "report.json").read_text())
    assert report["nodes"] == fault["nodes"]
    assert main(shlex.split(report["command"])[1:]) == 1
    shown = capsys.readouterr().out
    assert "refused by fake (fake 1.0, fp32)" in shown
    assert "Tanh is not supported" in shown
    assert "1 of 1 nodes, given inputs" in shown


def test_engines_are_tried_one_by_one_until_one_fails(path, fake, monkeypatch, capsys):
    monkeypatch.setenv("FAKE", "refuse")
    words = ["debug", str(path), "--against", "fake", "--python", str(fake)]
    assert main([*words, "--engine", "norm", "--engine", "last"]) == 1
    shown = capsys.readouterr().out
    assert re.search(r"last, 1 of \d+ nodes, recorded inputs", shown)
    assert re.search(r"called by +last", shown)
    assert "-o DIR" in shown
    assert main([*words, "--engine", "norm", "--engine", "lm"]) == 0
    assert "nothing fails on fake (fake 1.0, fp32): norm, lm" in capsys.readouterr().out


def test_a_backend_that_takes_its_process_down_has_crashed(monkeypatch):
    monkeypatch.setattr(isolated, "_evaluate", sys.exit)  # which takes no two arguments, so that its process ends
    oracle = evaluator_oracle(isolated.isolated_evaluator("onnxruntime"), 1e-4)
    failure = oracle(onnx.ModelProto(), {}, {})
    assert failure is not None
    assert failure.kind == "crashed"
    assert "ended with 1" in failure.message


def test_backends_run_in_processes_of_their_own(bundle, recorded):
    (job,) = selected_jobs(bundle, ["norm"])
    inputs = recorded[job.name][0]
    evaluate = isolated.isolated_evaluator("reference")
    expected = find_evaluator("reference")(engine_model(bundle, job), inputs)
    np.testing.assert_array_equal(evaluate(engine_model(bundle, job), inputs)["z"], expected["z"])
    failure = evaluator_oracle(evaluate, 0)(engine_model(bundle, job), {}, {})
    assert failure is not None
    assert (failure.kind, failure.message) == ("refused", "KeyError: 'h'")


def test_what_is_wrong_on_the_command_line_is_said(path, tmp_path, capsys):
    model = tmp_path / "m.onnx"
    onnx.save(engine_model(read_bundle(path), selected_jobs(read_bundle(path), ["norm"])[0]), model)
    np.savez(tmp_path / "i.npz", h=np.zeros((1, 2, 3), np.float32))
    (tmp_path / "bad.onnx").write_bytes(b"\x01bad")
    for words, said in (
        ([path, "--against", "abacus"], "use one of: onnxruntime"),
        ([path, "--against", "reference", "--precision", "fp16"], "is a backend"),
        ([path, "--against", "qnn", "--precision", "fp64"], "use one of: fp16"),
        ([path, "--against", "qnn", "--precision", "w8a16"], "ranges of runs over a text"),
        ([path, "--against", "reference", "--engine", "x"], "there is no 'x'"),
        ([model, "--against", "reference", "--engine", "norm"], "--engine"),
        ([path, "--against", "reference", "--inputs", tmp_path / "i.npz"], "--inputs"),
        ([model, "--against", "reference", "--inputs", tmp_path / "i.npz"], "of shape [1, 16, 12]"),
        ([tmp_path / "bad.onnx", "--against", "reference"], "can't be read"),
        ([tmp_path / "none.onnx", "--against", "reference"], "no such file"),
        ([model, "--against", "reference", "--message", "("], "regular expression"),
    ):
        assert main(["debug", *map(str, words)]) == 1, words
        assert said in capsys.readouterr().err, words
    with pytest.raises(InputError, match="has no fp64"):
        find_against("qnn", precision="fp64")
