"""Values that do not fit the device's memory, models with moved rows and two axes, and how plans share memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.runtime.axes_models import BLOCK, classifier, encoder_decoder, image
from tests.runtime.device.simulated_backend import SimulatedBackend
from tests.runtime.device.test_run import device_of, smallest_limits
from tests.runtime.open_engines import watch_open_engines
from tests.runtime.runs.test_session import assert_close
from tests.runtime.scan_models import SCANS, ScanModel
from tests.runtime.stages.test_axes import check, features
from tests.runtime.tiny_bundle import write_tiny
from tests.runtime.tiny_model import Tiny, random_tokens, reference
from twoheads.graphs.errors import InputError
from twoheads.runtime import load
from twoheads.runtime.device.executor import PLANS

MODEL = Tiny(key_tile=32, masks=("full", "causal & window(40, 0)"), sinks=True, layers=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("memory") / "tiny", MODEL)


def test_values_that_do_not_fit_are_streamed(folder):
    length = 206
    _, least = smallest_limits(folder, length, "logits")
    streamed: list[int] = []
    for limit in (least, least + 40_000, None):
        bundle = load(folder, backend=SimulatedBackend(limit or 0), device_memory_limit=limit)
        device = device_of(bundle)
        for run, tokens in enumerate(random_tokens(MODEL, length - at, at) for at in (0, 1, 13)):
            device.copied_in = 0
            assert_close(bundle.run(tokens, "logits").array, reference(MODEL, tokens)["logits"])
            assert device.replays == run
        streamed.append(device.copied_in)
        assert limit is None or device.held <= limit
    assert streamed[0] > streamed[1] > streamed[2]


def test_weights_that_do_not_fit_are_on_the_device_for_their_stage_only(tmp_path, monkeypatch):
    """The device drops work whose engine was closed; what was recorded before is recorded again afterwards."""
    tiny = Tiny(layers=4, width=64)
    path = write_tiny(tmp_path / "tiny", tiny)
    _, whole = smallest_limits(path, 206, "logits")
    opened = watch_open_engines(monkeypatch)
    bundle = load(path, backend=SimulatedBackend(5), device_memory_limit=whole - 1000)
    device = device_of(bundle)

    def check_run(length, seed=0):
        tokens = random_tokens(tiny, length, seed)
        assert_close(bundle.run(tokens, "logits").array, reference(tiny, tokens)["logits"])

    for seed in range(3):
        check_run(206, seed)
    assert device.replays == 0
    assert opened[0] <= 1 + len(bundle.program.head)
    short = 20  # whose values leave room for all weights
    for seed in range(3):
        check_run(short, seed)
    assert device.replays == 2
    assert opened[0] > 1 + len(bundle.program.head)
    check_run(206)
    for seed in range(3):
        check_run(short, seed)
    assert device.replays == 4


def test_what_does_not_fit_is_refused_with_numbers(folder):
    least, _ = smallest_limits(folder, 430, "logits")
    bundle = load(folder, backend=SimulatedBackend(), device_memory_limit=least - 1000)
    with pytest.raises(InputError, match=r"430 tokens needs .* of device memory, and .* of host memory") as refused:
        bundle.run(random_tokens(MODEL, 430))
    assert refused.value.fix.startswith("allow ")
    short = random_tokens(MODEL, 20)
    assert_close(bundle.run(short, "hidden").array, reference(MODEL, short)["hidden"])


def test_plans_share_memory_and_the_oldest_are_forgotten(folder):
    bundle = load(folder, backend=SimulatedBackend(4))
    device = device_of(bundle)
    for length in (130, *(16 * blocks for blocks in range(1, PLANS + 3)), 130, 130, 64, 64, 200, 130):
        tokens = random_tokens(MODEL, length)
        assert_close(bundle.run(tokens, "hidden").array, reference(MODEL, tokens)["hidden"])
    held = device.held
    # The second 130 in a row, and 64, which is among the last four; 200 needs more memory, and all graphs go with it.
    assert device.replays == 3
    bundle.run(random_tokens(MODEL, 16), "hidden")
    assert device.held == held


AXES = {
    "moved rows": (classifier("mean", 16), [{"features": features(length)} for length in (1, 23, 24, 23)]),
    "two axes": (
        encoder_decoder(),
        [{"source": features(m), "target": features(n)} for n, m in ((9, 30), (16, 25), (15, 31))],
    ),
    "an image": (image(), [{"pixels": np.ones((1, 6, 6), np.float32)}] * 3),
}


@pytest.mark.parametrize("seed", [1, 3])
@pytest.mark.parametrize("key_tile", [BLOCK, 2 * BLOCK])
def test_scans_hand_their_states_on(tmp_path, seed, key_tile):
    """The third run of a length is a recorded graph, and begins with zeros as the first does."""
    model = ScanModel(("gated_delta_rule", "attention", *SCANS, "causal_conv"), key_tile)
    model.load(tmp_path / "b")
    bundle = load(tmp_path / "b", backend=SimulatedBackend(seed))
    for run, length in enumerate((40, 39, 35, 1, 8, 9)):
        check(model, bundle, "hidden", features=features(length))
        assert (device_of(bundle).replays > 0) == (run > 0)
    report = bundle.run({"features": features(40)}, output="hidden").report
    assert report.engine_calls == report.formula_calls
    assert report.rounds == bundle.schedule(40, "hidden").rounds


def test_scans_whose_values_do_not_fit_are_streamed(tmp_path):
    model = ScanModel(("gated_delta_rule", "causal_conv", "selective_scan"))
    model.load(tmp_path / "b")
    given = {"features": features(400)}
    _, least = smallest_limits(tmp_path / "b", 400, given=given)
    copied: list[int] = []
    for limit in (least, None):
        bundle = load(tmp_path / "b", backend=SimulatedBackend(2), device_memory_limit=limit)
        for _ in range(2):
            device_of(bundle).copied_in = 0
            check(model, bundle, "hidden", **given)
        copied.append(device_of(bundle).copied_in)
    assert copied[0] > copied[1]


@pytest.mark.parametrize("name", sorted(AXES))
def test_moved_rows_and_two_axes(tmp_path, name):
    model, inputs = AXES[name]
    model.load(tmp_path / "b")
    bundle = load(tmp_path / "b", backend=SimulatedBackend(2))
    for given in inputs:
        check(model, bundle, "hidden", **given)
