"""The promises of the executor: counted calls, bounded memory, order, and a prompt stop."""

from __future__ import annotations

import itertools
import threading
import time
import weakref

import numpy as np
import pytest

from tests.runtime.tiny_bundle import make_program, write_tiny
from tests.runtime.tiny_model import Tiny, random_tokens
from twoheads.graphs.program.program import AttentionStage
from twoheads.runtime import LoadedBundle, load
from twoheads.runtime.backends.onnxruntime_cpu import OnnxRuntimeCall
from twoheads.runtime.execution.crew import Crew
from twoheads.runtime.execution.run_state import RunState
from twoheads.runtime.memory.stores import Stores

MODELS = {
    "causal": Tiny(),
    "window sinks": Tiny(masks=("causal & (window(17, 0) | sinks(3))",), kv_heads=1),
    "wide tiles": Tiny(key_tile=48, masks=("causal", "full", "window(5, 30)")),
    "learned sinks": Tiny(sinks=True, softcap=4.0),
    "both, wide": Tiny(slope=True, table_reach=30, sinks=True, key_tile=64, masks=("causal & window(40, 0)",)),
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tiny, LoadedBundle]]:
    root = tmp_path_factory.mktemp("bundles")
    return {
        name: (tiny, load(write_tiny(root / str(at), tiny), threads=2))
        for at, (name, tiny) in enumerate(MODELS.items())
    }


@pytest.mark.parametrize("name", ["causal", "window sinks", "wide tiles", "learned sinks", "both, wide"])
def test_calls_are_counted_where_they_are_made(bundles, name, monkeypatch):
    tiny, bundle = bundles[name]
    made = itertools.count()
    original = OnnxRuntimeCall.run

    def run(call):
        next(made)
        original(call)

    monkeypatch.setattr(OnnxRuntimeCall, "run", run)
    report = bundle.run(random_tokens(tiny, 75), output="logits").report
    assert report.engine_calls == next(made)
    schedule = bundle.schedule(75, "logits")
    assert report.engine_calls == schedule.engine_calls == schedule.formula_calls == report.formula_calls
    assert [(s.name, s.kind, s.calls) for s in report.stages] == [(p.name, p.kind, p.calls) for p in schedule.stages]


def test_the_count_does_not_come_from_the_schedule(bundles, monkeypatch):
    tiny, bundle = bundles["causal"]
    from twoheads.runtime.stages.attention import tiled as attention_stage

    original = attention_stage._Worker.row

    def row(worker, item):
        original(worker, item)
        if item[0] == 0:
            original(worker, item)  # one query block computed twice: 1 call more

    monkeypatch.setattr(attention_stage._Worker, "row", row)
    report = bundle.run(random_tokens(tiny, 40)).report
    assert report.engine_calls == report.formula_calls + tiny.layers


@pytest.mark.parametrize("name", ["causal", "learned sinks", "wide tiles"])
def test_no_call_reads_what_it_writes(bundles, name, monkeypatch):
    tiny, bundle = bundles[name]
    bound: dict[tuple[object, str, int], object] = {}

    def spy(method, kind):
        def bind(call, port, tensor):
            bound[call, kind, port] = tensor
            method(call, port, tensor)

        return bind

    original = OnnxRuntimeCall.run

    def run(call):
        mine = [(kind, tensor) for (owner, kind, _), tensor in bound.items() if owner is call]
        inputs, outputs = ({id(tensor) for kind, tensor in mine if kind == wanted} for wanted in ("in", "out"))
        assert inputs
        assert not inputs & outputs
        original(call)

    monkeypatch.setattr(OnnxRuntimeCall, "bind_input", spy(OnnxRuntimeCall.bind_input, "in"))
    monkeypatch.setattr(OnnxRuntimeCall, "bind_output", spy(OnnxRuntimeCall.bind_output, "out"))
    monkeypatch.setattr(OnnxRuntimeCall, "run", run)
    bundle.run(random_tokens(tiny, 70))


def test_long_rows_come_first(bundles):
    _, bundle = bundles["causal"]
    program = bundle.program
    with Crew(1) as crew:
        run = RunState(bundle.schedule(100), bundle._engines, crew)
        stage = program.body[1]
        assert isinstance(stage, AttentionStage)
        assert [block for block, _ in run.query_rows(stage)] == [6, 5, 4, 3, 2, 1, 0]


def test_no_more_head_blocks_than_threads_wait_for_a_slow_sink(bundles, monkeypatch):
    tiny, bundle = bundles["causal"]
    bundle = load(bundle.path, threads=3, check="size")
    lm_calls = itertools.count()
    original = OnnxRuntimeCall.run

    def run(call):
        original(call)
        if call._outputs == ("logits",):
            next(lm_calls)

    buffers = set()

    class Slow:
        def write(self, start_row, rows):
            time.sleep(0.01)  # long enough for the others to run ahead if nothing held them
            done = next(lm_calls)
            computed.append(done - len(computed))  # this look counted one, too
            written.append(start_row)
            buffers.add(id(rows.base))

    computed: list[int] = []
    written: list[int] = []
    monkeypatch.setattr(OnnxRuntimeCall, "run", run)
    bundle.run(random_tokens(tiny, 160), output="logits", sink=Slow())
    assert len(written) == 10
    ahead = [done - at for at, done in enumerate(computed)]
    assert 1 < max(ahead) <= 3
    assert len(buffers) <= 3


def test_only_one_layers_keys_and_values_are_alive(bundles, monkeypatch):
    tiny, bundle = bundles["causal"]
    arrays: dict[str, weakref.ref] = {}
    original = Stores.allocate

    def allocate(stores, value, **options):
        store = original(stores, value, **options)
        alive = {name for name, array in arrays.items() if array() is not None}
        assert alive <= set(stores.live), "a released array is still held"
        arrays[value.name] = weakref.ref(store.array)
        layers = {name[1:] for name in stores.live if name[0] in "kv"}
        assert len(layers) <= 1, stores.live
        return store

    monkeypatch.setattr(Stores, "allocate", allocate)
    report = bundle.run(random_tokens(tiny, 75), output="logits").report
    assert {"k0", "v2", "h_last"} <= arrays.keys()
    assert all(array() is None for array in arrays.values())
    values = {value.name: value.nbytes(80) for value in bundle.program.values()}
    assert report.store_bytes < sum(values.values())
    mask = 16 * 16 * 4
    assert 0 <= report.store_bytes - bundle.schedule(75, "logits").memory.values <= mask


def test_progress_ends_with_all_calls(bundles):
    tiny, bundle = bundles["causal"]
    seen: list[tuple[int, int]] = []
    threads = set()

    def progress(done, total):
        threads.add(threading.get_ident())
        seen.append((done, total))

    report = bundle.run(random_tokens(tiny, 60), progress=progress).report
    assert seen[-1] == (report.engine_calls, report.engine_calls)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert threads == {threading.get_ident()}


class TroubleError(Exception):
    pass


@pytest.mark.parametrize("error", [TroubleError, KeyboardInterrupt])
@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_in_a_worker_stops_the_others(bundles, monkeypatch, error, threads):
    tiny, bundle = bundles["causal"]
    bundle = load(bundle.path, threads=threads, check="size")
    tokens = random_tokens(tiny, 160)
    want = bundle.run(tokens).array
    made = itertools.count()
    original = OnnxRuntimeCall.run

    def run(call):
        if next(made) == 30:
            raise error
        original(call)

    monkeypatch.setattr(OnnxRuntimeCall, "run", run)
    with pytest.raises(error):
        bundle.run(tokens)
    assert next(made) <= 30 + 1 + threads
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("twoheads")]
    monkeypatch.undo()
    np.testing.assert_array_equal(bundle.run(tokens).array, want)


@pytest.mark.parametrize("error", [TroubleError, KeyboardInterrupt])
def test_an_error_of_the_sink_or_of_progress_stops_the_run(bundles, error):
    tiny, bundle = bundles["causal"]
    bundle = load(bundle.path, threads=3, check="size")

    class Full:
        def write(self, start_row, rows):
            if start_row:
                raise error

    def progress(done, total):
        raise error

    with pytest.raises(error):
        bundle.run(random_tokens(tiny, 160), sink=Full())
    with pytest.raises(error):
        bundle.run(random_tokens(tiny, 160), progress=progress)


def test_engines_that_share_weights_are_opened_once(bundles):
    tiny, bundle = bundles["causal"]
    bundle.run(random_tokens(tiny, 20))
    opened = len(bundle._engines._open)
    bundle.run(random_tokens(tiny, 70))
    assert len(bundle._engines._open) == opened
    assert opened == 6 + len([s for s in (*make_program(tiny).body, *make_program(tiny).head) if s.kind == "tokenwise"])
