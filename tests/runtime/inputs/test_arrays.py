"""Every bad input has its own clear error, before anything runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.runtime.tiny_bundle import write_tiny
from tests.runtime.tiny_model import Tiny
from twoheads.graphs.errors import InputError
from twoheads.graphs.program.program import Limit, Pooling
from twoheads.runtime import load


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return load(write_tiny(tmp_path_factory.mktemp("b") / "b", Tiny(layers=1, max_length=Limit(30, "position table"))))


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    return load(write_tiny(tmp_path_factory.mktemp("b") / "b", Tiny(layers=1, features=True, head=False)))


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ([], "empty"),
        (np.zeros(0, np.int64), "empty"),
        (np.zeros((1, 0), np.int64), "empty"),
        ([[]], "empty"),
        ({}, "missing"),
        (np.array([1, 2], np.float32), "float32, expected integers"),
        ([1.5, 2], "float64, expected integers"),
        ([True, False], "bool, expected integers"),
        (["a", "b"], "expected integers"),
        ("text", "expected integers"),
        (None, "expected integers"),
        (3, "has shape []"),
        ([np.ones((2, 3), np.int64)], "has shape [2, 3], expected [1, n]"),
        ({"tokens": np.ones((2, 3), np.int64), "positions": np.ones((3, 3), np.int64)}, "has 3 rows, tokens has 2"),
        (np.ones((1, 1, 3), np.int64), "has shape [1, 1, 3]"),
        ([[[1, 2], [3]]], "not an array"),
        ([3, -1, 4], "position 1 has the value -1, and the model knows 0 to 39"),
        ([3, 4, 40], "position 2 has the value 40, and the model knows 0 to 39"),
        (np.array([2**63 + 5], np.uint64), "do not fit int64"),
        (np.ones(31, np.int64), "model tiny itself can take: position table ends at 30"),
        ({"tokens": [1, 2], "mask": [1, 1]}, "no such input"),
        ({"positions": [1, 2]}, "missing"),
        ({"tokens": [1, 2], "positions": [1]}, "has 1 tokens, tokens has 2"),
        ({"tokens": [1, 2], "positions": [0, 30]}, "token 1 has the position 30, and the model's end before 30"),
        ({"tokens": [1, 2], "positions": [-(10**9), 0]}, "token 0 has the position -1000000000"),
        ({"tokens": [1, 2], "positions": [0, 2**62]}, "token 1 has the position 4611686018427387904"),
    ],
)
def test_bad_inputs(bundle, tokens, words):
    with pytest.raises(InputError) as caught:
        bundle.run(tokens)
    assert words in str(caught.value)
    assert caught.value.fix


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((3, 11), np.float32), "has shape [3, 11], expected [1, n, 12]"),
        (np.zeros(12, np.float32), "has shape [12]"),
        (np.zeros((2, 3, 11), np.float32), "has shape [1, 3, 11]"),
        ([np.zeros((2, 3, 12), np.float32)], "has shape [2, 3, 12]"),
        (np.zeros((0, 12), np.float32), "empty"),
        (np.zeros((3, 12), np.complex64), "expected numbers"),
        (np.full((3, 12), 1e39), "NaN or infinity, first at token 0"),
    ],
)
def test_bad_features(features, array, words):
    with pytest.raises(InputError) as caught:
        features.run(array)
    assert words in str(caught.value)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64])
def test_features_of_other_dtypes(features, dtype):
    array = np.arange(36).reshape(1, 3, 12).astype(dtype)
    want = features.run(array[0].astype(np.float32)).array
    np.testing.assert_array_equal(features.run(array).array, want)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"output": "scores"}, "hidden, logits, last"),
        ({"output": "embedding"}, "does not give 'embedding'"),
        ({"positions": [3]}, "3 is outside of an input of 3 tokens"),
        ({"positions": [-4]}, "-4 is outside"),
        ({"positions": np.array([0, 200], np.uint8)}, "200 is outside"),
        ({"positions": []}, "positions"),
        ({"positions": [0.5]}, "positions"),
        ({"positions": [[1]]}, "positions"),
        ({"positions": [1], "output": "last"}, "can't be chosen for 'last'"),
    ],
)
def test_bad_outputs_and_positions(bundle, options, words):
    with pytest.raises(InputError) as caught:
        bundle.run([1, 2, 3], **options)
    assert words in str(caught.value)


class NoRows:
    def write(self, start_row, rows):
        pytest.fail("written")


def test_a_sink_needs_rows_of_one_input(tmp_path, bundle):
    sink = NoRows()
    with pytest.raises(InputError, match="2 inputs"):
        bundle.run([[1], [2]], sink=sink)
    encoder = load(write_tiny(tmp_path / "b", Tiny(layers=1, masks=("full",), pooling=Pooling("mean", True))))
    with pytest.raises(InputError, match="one vector"):
        encoder.run([1], sink=sink)


def test_an_output_the_program_does_not_have(features):
    with pytest.raises(InputError, match="ask for one of: hidden"):
        features.run(np.zeros((3, 12)), output="logits")


def test_the_model_limit_itself_is_fine(bundle):
    assert bundle.run(np.ones(30, np.int64)).report.length == 30


def test_positions_of_a_model_without_a_table(tmp_path):
    bundle = load(write_tiny(tmp_path / "b", Tiny(layers=1)))
    far: Any = bundle.run({"tokens": [1, 2], "positions": [5, 10**6]})
    assert np.isfinite(far.array).all()
    for position in (-1, 2**31, 2**62):
        with pytest.raises(InputError, match=f"token 1 has the position {position}"):
            bundle.run({"tokens": [1, 2], "positions": [5, position]})


def test_bad_arguments_of_load(bundle):
    with pytest.raises(InputError, match="onnxruntime"):
        load(bundle.path, backend="abacus")
    with pytest.raises(InputError, match="threads"):
        load(bundle.path, threads=0)
    with pytest.raises(InputError, match="full"):
        load(bundle.path, check="none")


def test_nothing_runs_on_a_bad_input(bundle, monkeypatch):
    from twoheads.runtime.backends.onnxruntime_cpu import OnnxRuntimeCall

    monkeypatch.setattr(OnnxRuntimeCall, "run", lambda _: pytest.fail("ran"))
    with pytest.raises(InputError):
        bundle.run([1, 99])
