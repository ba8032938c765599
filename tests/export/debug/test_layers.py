"""Engines layer by layer between two backends: real ones that agree, and one that computes an operator wrongly."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import onnx
import pytest

from tests.runtime.tiny_bundle import write_tiny
from tests.runtime.tiny_model import Tiny, random_tokens
from twoheads.export.cli import main
from twoheads.export.debug.evaluators import EVALUATORS, find_evaluator
from twoheads.export.debug.graph_cuts import mark_all, value_types
from twoheads.export.debug.layers import compare_layers, selected_jobs
from twoheads.export.engines.jobs import engine_jobs, engine_model, random_inputs
from twoheads.export.engines.recording import record_inputs
from twoheads.export.engines.tensor_error import relative_error
from twoheads.graphs.errors import InputError, InternalError
from twoheads.runtime.bundle.reader import read_bundle

TINY = Tiny()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("layers") / "b", TINY)


@pytest.fixture(scope="module")
def bundle(path):
    return read_bundle(path)


def wrong_tanh(model, inputs):
    """A backend whose ``Tanh`` is another function."""
    altered = onnx.ModelProto()
    altered.CopyFrom(model)
    for node in altered.graph.node:
        if node.op_type == "Tanh":
            node.op_type = "Atan"
    return find_evaluator("onnxruntime-plain")(altered, inputs)


def test_a_runs_inputs_are_those_of_each_engine_with_its_own_weights(bundle):
    tokens = random_tokens(TINY, 40, 0)
    recorded = record_inputs(bundle, length=40, tokens=tokens, calls=2)
    assert {"first", "mid.0", "mid.1", "last", "norm", "lm"} <= set(recorded)
    assert "attention.packed" not in recorded
    np.testing.assert_array_equal(recorded["first"][1]["x"], tokens[None, 16:32])
    jobs = {job.name: job for job in engine_jobs(bundle)}
    for block in (0, 1):  # what mid.1 makes of its inputs is what the next engine was given
        for name, following in (("mid.0", "mid.1"), ("mid.1", "last")):
            made = find_evaluator("onnxruntime")(engine_model(bundle, jobs[name]), recorded[name][block])
            np.testing.assert_array_equal(made["hidden"], recorded[following][block]["h"])


FEW = ("first", "mid", "attention.masked_merge", "attention.packed")


@pytest.mark.parametrize(
    ("yardstick", "backend", "names"),
    [("onnxruntime-plain", "onnxruntime", ()), ("reference", "onnxruntime-plain", FEW), ("reference", "openvino", FEW)],
)
def test_backends_agree_in_every_value_between_two_nodes(bundle, yardstick, backend, names):
    jobs = selected_jobs(bundle, names)
    evaluators = {name: find_evaluator(name) for name in (yardstick, backend)}
    recorded = record_inputs(bundle)
    found = compare_layers(bundle, jobs, evaluators, recorded=recorded)
    assert [layers.engine for layers in found] == [job.name for job in jobs]
    assert {layers.inputs for layers in found} == {"recorded", "random"}
    assert max(layers.error for layers in found) > 0
    for layers, job in zip(found, jobs, strict=True):
        assert layers.first is None
        assert layers.error < 1e-5
        assert len(layers.layers) >= layers.nodes
        assert layers.worst.error == max(layer.error for layer in layers.layers)
        assert {port.name for port in job.outputs} <= {layer.value for layer in layers.layers}


def test_the_first_wrong_value_is_named_and_those_after_it_are_worse(bundle):
    evaluators = {"right": find_evaluator("onnxruntime-plain"), "wrong": wrong_tanh}
    found = {
        layers.engine: layers
        for layers in compare_layers(bundle, selected_jobs(bundle, ["mid", "norm"]), evaluators, recorded={})
    }
    assert found["norm"].error == 0
    mid = found["mid.0"]
    assert mid.first is not None
    assert mid.first.operator == "Tanh"
    assert mid.error > 1e-3
    at = mid.layers.index(mid.first)
    assert all(layer.error == 0 for layer in mid.layers[:at])


def test_polygraphy_reads_what_is_saved(bundle, tmp_path):
    comparator: Any = import_module("polygraphy.comparator")
    load_json: Any = import_module("polygraphy.json").load_json

    (job,) = selected_jobs(bundle, ["attention.masked_merge"])
    evaluators = {"right": find_evaluator("onnxruntime-plain"), "wrong": wrong_tanh}
    compare_layers(bundle, [job], evaluators, recorded={}, save=tmp_path)
    folder = tmp_path / job.name
    (inputs,) = load_json(str(folder / "inputs.json"))
    assert {name: array.shape for name, array in inputs.items()} == {port.name: port.shape for port in job.inputs}
    results = comparator.RunResults.load(str(folder / "outputs.json"))
    model = onnx.load(folder / "model.onnx")
    assert list(results.keys()) == ["right", "wrong"]
    assert list(results["right"][0].keys()) == [value.name for value in model.graph.output]
    (report,) = json.loads((tmp_path / "report.json").read_text())
    assert report["engine"] == job.name
    assert report["nodes"] == len(model.graph.node)


def test_every_evaluator_is_found_or_says_what_to_install(bundle):
    (job,) = selected_jobs(bundle, ["norm"])
    model, inputs = engine_model(bundle, job), random_inputs(job)
    expected = find_evaluator("reference")(model, inputs)["z"]
    for name in EVALUATORS:
        if name != "tensorrt" or find_spec("tensorrt"):
            assert relative_error(find_evaluator(name)(model, inputs)["z"], expected) < 1e-6
            continue
        with pytest.raises(InputError, match="pip install"):
            find_evaluator(name)
    with pytest.raises(InputError, match="use one of: onnxruntime"):
        find_evaluator("abacus")


def test_an_engine_is_chosen_by_job_stage_or_name(bundle):
    assert [job.name for job in selected_jobs(bundle, ["mid2"])] == ["mid.1"]
    assert [job.name for job in selected_jobs(bundle, ["mid", "mid.0"])] == ["mid.0"]
    assert {"attention.full", "attention.masked"} <= {job.name for job in selected_jobs(bundle, ["attention"])}
    with pytest.raises(InputError, match=r"no 'middle'[\s\S]*use one of: first"):
        selected_jobs(bundle, ["middle"])


def test_the_error_is_a_share_and_counts_what_is_no_number():
    want = np.array([1.0, -4.0, np.inf, np.nan])
    assert relative_error(np.array([1.5, -4.0, 0, 0]), want) == 0.125
    assert relative_error(np.array([np.nan, -4.0, 0, 0]), want) == np.inf
    assert relative_error(np.array([[1.0], [-4.0], [7], [7]]), want) == 0
    assert relative_error(np.array([True, False]), np.array([True, True])) == 1


def test_a_value_without_a_shape_is_refused(bundle):
    (job,) = selected_jobs(bundle, ["norm"])
    model = engine_model(bundle, job)
    model.graph.node[0].op_type = "Unknown"
    with pytest.raises(InternalError, match="can't be inferred"):
        mark_all(model)
    model.graph.node[0].domain = "somewhere"
    with pytest.raises(InternalError, match="can't be inferred"):
        mark_all(model)
    assert "z" in value_types(engine_model(bundle, job))


def test_the_command_prints_a_table_and_fails_beyond_the_tolerance(path, capsys, tmp_path, monkeypatch):
    words = ["verify", str(path), "--polygraphy", "--engine", "mid", "--backends", "reference,onnxruntime"]
    assert main([*words, "--save", str(tmp_path / "saved")]) == 0
    shown = capsys.readouterr().out
    assert "mid.0" in shown
    assert "passed" in shown
    assert (tmp_path / "saved" / "mid.0" / "outputs.json").exists()
    assert main([*words, "--tolerance", "0"]) == 1
    assert "NOT PASSED: 1 of 1" in capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["engine"] == "mid.0"
    for wrong, said in (
        (["--backends", "openvino"], "not two backends"),
        (["--against", str(path)], "two things"),
        (["--length", "0"], "length"),
    ):
        assert main([*words, *wrong]) == 1
        assert said in capsys.readouterr().err
    assert main(["verify", str(path)]) == 1
    assert "--polygraphy" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "polygraphy", None)
    assert main(words) == 1
    assert "pip install polygraphy" in capsys.readouterr().err
