"""Runs on a simulated device, whose streams race each other, against runs on the host and the whole model."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.runtime.device.simulated_backend import SimulatedBackend
from tests.runtime.device.simulated_device import SimulatedDevice
from tests.runtime.runs.test_session import MODELS, assert_close
from tests.runtime.tiny_bundle import write_tiny
from tests.runtime.tiny_model import Tiny, random_tokens, reference
from tests.tiers import cases
from twoheads.graphs.errors import InputError
from twoheads.graphs.program.program import Pooling
from twoheads.runtime import LoadedBundle, load
from twoheads.runtime.backends.cuda_driver import DeviceError
from twoheads.runtime.device.lanes import Desk, Team
from twoheads.runtime.device.plan import Sizing
from twoheads.runtime.device.tile_buffers import KeyTiles

EXTRA = {
    "wide, deep": Tiny(key_tile=32, masks=("full", "causal & window(40, 0)"), pooling=Pooling("cls", False)),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tiny, Path]]:
    root = tmp_path_factory.mktemp("device")
    models = MODELS | EXTRA
    return {name: (tiny, write_tiny(root / str(at), tiny)) for at, (name, tiny) in enumerate(models.items())}


@pytest.fixture(scope="module")
def bundles(folders):
    """A loaded bundle by name, seed and device memory: later runs of a shape replay graphs."""

    @cache
    def get(name: str, seed: int, limit: int | None) -> LoadedBundle:
        return load(folders[name][1], backend=SimulatedBackend(seed), device_memory_limit=limit)

    return get


def device_of(bundle: LoadedBundle) -> SimulatedDevice:
    device = getattr(bundle.executor, "_device", None)
    assert isinstance(device, SimulatedDevice)
    return device


def smallest_limits(folder: Path, length: int, output: str = "hidden", given: Any = None) -> tuple[int, int]:
    """The least device memory with which a run is taken, as the refusal says; and with which all weights stay there."""
    inputs = np.ones(length, np.int64) if given is None else given
    bundle = load(folder, backend=SimulatedBackend(), device_memory_limit=1)
    with pytest.raises(InputError) as refused:
        bundle.run(inputs, output)
    number, unit = refused.value.fix.removeprefix("allow ").split(",")[0].split()
    least = round(float(number) * {"kB": 1e3, "MB": 1e6}[unit])
    sizing = Sizing(bundle.schedule(length, output), bundle._engines, 3)
    return least, least + sizing.engine_bytes(streamed=False) - sizing.engine_bytes(streamed=True)


@pytest.mark.repeated
@settings(max_examples=cases(12, 30), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(sorted(MODELS | EXTRA)),
    length=st.one_of(st.integers(1, 80), st.sampled_from((150, 192))),
    seed=st.integers(0, 1),
)
def test_any_length_equals_the_whole_model(folders, bundles, name, length, seed):
    tiny, bundle = folders[name][0], bundles(name, seed, None)
    tokens = random_tokens(tiny, length, seed)
    want = reference(tiny, tokens)
    result = bundle.run(tokens, output="hidden")
    assert_close(result.array, want["hidden"])
    assert result.report.engine_calls == result.report.formula_calls
    assert result.report.rounds == bundle.schedule(length, "hidden").rounds


def test_a_graph_serves_every_length_of_as_many_blocks(folders):
    for name in ("encoder", "wide tiles", "both, wide", "chunks"):
        tiny, folder = folders[name]
        bundle = load(folder, backend=SimulatedBackend(7))
        device = device_of(bundle)
        for at, length in enumerate((70, 80, 65, 79, 80, 66)):
            tokens = random_tokens(tiny, length, at)
            result = bundle.run(tokens, output="hidden")
            assert_close(result.array, reference(tiny, tokens)["hidden"])
            assert result.report.engine_calls == result.report.formula_calls
            assert device.replays == at


def test_a_backend_that_no_graph_can_hold_is_queued(folders, monkeypatch, caplog):
    tiny, folder = folders["causal"]
    bundle = load(folder, backend=SimulatedBackend(2))
    device = device_of(bundle)
    launch = type(device).end_capture

    def fail(self, stream):
        launch(self, stream)
        raise DeviceError("CUDA", "cuStreamEndCapture failed")

    monkeypatch.setattr(type(device), "end_capture", fail)
    for seed in range(3):
        tokens = random_tokens(tiny, 70, seed)
        assert_close(bundle.run(tokens, output="hidden").array, reference(tiny, tokens)["hidden"])
    assert device.replays == 0
    assert caplog.text.count("recording one failed") == 1


def test_only_inputs_and_wanted_rows_cross(folders):
    tiny, folder = folders["causal"]
    bundle = load(folder, backend=SimulatedBackend(3))
    device, length = device_of(bundle), 100
    for run in range(3):
        device.copied_in = device.copied_out = 0
        tokens = random_tokens(tiny, length, run)
        assert_close(bundle.run(tokens, output="last").array, reference(tiny, tokens)["logits"][-1:])
        assert device.copied_out == tiny.vocabulary * 4
        if run:  # the first run copies masks as well
            assert device.copied_in == 2 * 112 * 8  # tokens and positions, of whole blocks


def test_every_output_and_any_rows(folders):
    tiny, folder = folders["encoder"]
    bundle = load(folder, backend=SimulatedBackend(5))
    tokens = random_tokens(tiny, 61)
    want = reference(tiny, tokens)
    rows = [60, 3, 4, 5, 0, 60, -1]

    class Kept:
        def __init__(self):
            self.parts = []

        def write(self, start_row, rows):
            assert start_row == sum(map(len, self.parts))
            self.parts.append(rows.copy())

    for output in ("hidden", "logits"):
        assert_close(bundle.run(tokens, output).array, want[output])
        assert_close(bundle.run(tokens, output, positions=rows).array, want[output][rows])
        for positions in (None, rows):
            sink = Kept()
            bundle.run(tokens, output, positions=positions, sink=sink)
            assert_close(np.concatenate(sink.parts), want[output] if positions is None else want[output][rows])
    assert_close(bundle.run(tokens, "embedding").array, want["embedding"])
    several = bundle.run([tokens, tokens[:7]], "embedding")
    assert_close(several[1].array, reference(tiny, tokens[:7])["embedding"])


def test_it_refuses_what_only_the_host_does(folders, tmp_path):
    folder = folders["causal"][1]
    with pytest.raises(InputError, match="takes no memory limit"):
        load(folder, backend=SimulatedBackend(), memory_limit=1 << 30)
    with pytest.raises(InputError, match="computes in the host's memory"):
        load(folder, device_memory_limit=1 << 30)
    with pytest.raises(InputError, match="is 0"):
        load(folder, backend=SimulatedBackend(), device_memory_limit=0)


@pytest.mark.parametrize(
    ("owner", "method"),
    [(Team, "join"), (Team, "fork"), (Desk, "loaded"), (KeyTiles, "give")],
    ids=lambda part: part if isinstance(part, str) else part.__name__,
)
def test_a_missing_event_shows(folders, monkeypatch, owner, method):
    """The simulated device would be of no use if the streams' order were always the lucky one."""
    tiny, folder = folders["wide, deep"]
    _, limit = smallest_limits(folder, 150)
    monkeypatch.setattr(owner, method, lambda *_: None)
    tokens = random_tokens(tiny, 150)
    want = reference(tiny, tokens)["hidden"]

    def differs(seed: int) -> bool:
        bundle = load(folder, backend=SimulatedBackend(seed), device_memory_limit=limit)
        try:
            assert_close(bundle.run(tokens, "hidden").array, want)
        except AssertionError:  # of the numbers, or of a rule
            return True
        return False

    assert any(differs(seed) for seed in range(4))
