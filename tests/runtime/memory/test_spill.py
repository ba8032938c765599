"""Values in files: what is spilled, that it changes no bit, what it takes, and what happens without room."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.runtime.tiny_bundle import make_program, write_tiny
from tests.runtime.tiny_model import Tiny, random_tokens
from twoheads.graphs.errors import InputError, TwoheadsError
from twoheads.graphs.program.program import Pooling, Value
from twoheads.graphs.schedule import spill
from twoheads.graphs.schedule.schedule import make_schedule
from twoheads.graphs.schedule.spill import plan_spill
from twoheads.runtime import load
from twoheads.runtime.memory import mapped_file as spill_file
from twoheads.runtime.memory.mapped_file import MappedFile
from twoheads.runtime.memory.stores import Stores, ValueStore

MODELS = {
    "causal": Tiny(),
    "wide tiles": Tiny(key_tile=48, masks=("causal", "full", "window(5, 30)")),
    "encoder": Tiny(masks=("full",), pooling=Pooling("mean", True)),
    "features": Tiny(features=True, head=False),
}


@pytest.fixture
def small_windows(monkeypatch):
    """Lets pages go after every 4 KiB, and counts values of any size as worth a file."""
    monkeypatch.setattr(spill, "WINDOW_BYTES", 0)
    monkeypatch.setattr(spill_file, "WINDOW_BYTES", 4096)


@pytest.mark.parametrize("name", MODELS)
def test_spilling_changes_no_bit(tmp_path, small_windows, name):
    tiny = MODELS[name]
    bundle = write_tiny(tmp_path / "bundle", tiny)
    folder = tmp_path / "spill"
    folder.mkdir()
    tokens = random_tokens(tiny, 333)
    for output in ("hidden", *(["embedding"] if tiny.pooling else []), *(["logits", "last"] if tiny.head else [])):
        plain = load(bundle, threads=2).run(tokens, output=output)
        spilled = load(bundle, threads=2, spill=folder).run(tokens, output=output)
        assert spilled.array is not None
        np.testing.assert_array_equal(spilled.array, plain.array)
        assert spilled.report.spilled_bytes > 0 == plain.report.spilled_bytes
        assert spilled.report.store_bytes < plain.report.store_bytes
        assert spilled.report.engine_calls == plain.report.engine_calls
        assert not list(folder.iterdir()), "a file is left"


def beyond_streaming(schedule):
    """The most bytes for which values must be spilled: weights that are read stage by stage do not save enough."""
    limit = schedule.peak_bytes - 1
    while not (plan := plan_spill(schedule, limit=limit, disk=True, workers=1)).values:
        assert plan.memory is not None
        limit = plan.memory.total - 1
    return limit


def test_the_largest_values_are_spilled_until_the_run_fits(small_windows):
    program = make_program(Tiny())
    schedule = make_schedule(program, 5000, output="hidden", workers=1)
    everything = plan_spill(schedule, limit=None, disk=True, workers=1)
    assert everything.memory is not None
    assert plan_spill(schedule, limit=schedule.peak_bytes, disk=True, workers=1).values == frozenset()
    some = plan_spill(schedule, limit=beyond_streaming(schedule), disk=True, workers=1)
    assert some.memory is not None
    assert some.memory.total < schedule.peak_bytes
    assert frozenset() < some.values < everything.values
    sizes = {value.name: value.nbytes(5000) for value in program.values() if value.axis is not None}
    assert min(sizes[name] for name in some.values) >= max(sizes[name] for name in everything.values - some.values)
    assert 0 < some.disk_bytes <= everything.disk_bytes
    while some.values != everything.values:  # a lower limit spills more of them, or opens no engine ahead
        assert some.memory is not None
        more = plan_spill(schedule, limit=some.memory.total - 1, disk=True, workers=1)
        assert some.values <= more.values
        some = more


def test_what_does_not_fit_is_refused_with_the_numbers(small_windows):
    schedule = make_schedule(make_program(Tiny()), 5000, workers=1)
    values = beyond_streaming(schedule)
    with pytest.raises(InputError, match=r"needs 1.*of memory\n  fix: give --spill DIR: then it needs 1.* on disk"):
        plan_spill(schedule, limit=values, disk=False, workers=1)
    with pytest.raises(InputError, match=r"needs 1.*on disk \(values .*\n  fix: allow ") as refused:
        plan_spill(schedule, limit=1, disk=True, workers=1)
    named = re.search(r"allow ([\d.]+) MB", str(refused.value))
    assert named is not None
    suggested = int(float(named[1]) * 1e6)
    assert suggested < values
    assert plan_spill(schedule, limit=suggested, disk=True, workers=1).values


def test_a_value_that_the_host_reads_as_a_whole_stays_in_memory(small_windows):
    program = make_program(Tiny(pooling=Pooling("mean", normalize=True)))
    plans = {
        output: plan_spill(make_schedule(program, 5000, output=output), limit=None, disk=True, workers=1)
        for output in ("hidden", "embedding")
    }
    assert plans["hidden"].values - plans["embedding"].values == {program.hidden}


def test_small_values_stay_in_memory():
    schedule = make_schedule(make_program(Tiny()), 100, workers=1)
    assert plan_spill(schedule, limit=None, disk=True, workers=1).values == frozenset()


def test_a_run_refuses_before_it_starts(tmp_path, monkeypatch, small_windows):
    bundle, tokens = write_tiny(tmp_path / "bundle", Tiny()), random_tokens(Tiny(), 100)
    with pytest.raises(InputError, match=r"memory limit 1\.0 MB"):
        load(bundle, memory_limit=1_000_000).run(tokens)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=999))
    with pytest.raises(TwoheadsError, match="has 999 bytes free, and the run spills up to"):
        load(bundle, spill=tmp_path).run(tokens)
    with pytest.raises(InputError, match="is not a folder"):
        load(bundle, spill=tmp_path / "missing")
    with pytest.raises(InputError, match="memory_limit"):
        load(bundle, memory_limit=0)


def test_a_disk_that_fills_up_is_an_error_and_no_crash(tmp_path, monkeypatch, small_windows):
    claims = []

    def claim(descriptor: int, start: int, nbytes: int) -> None:
        claims.append(nbytes)
        if len(claims) > 5:
            raise OSError(28, "No space left on device")
        os.ftruncate(descriptor, nbytes)

    bundle = load(write_tiny(tmp_path / "bundle", Tiny()), spill=tmp_path)
    monkeypatch.setattr(os, "posix_fallocate", claim)
    with pytest.raises(TwoheadsError, match="No space left on device"):
        bundle.run(random_tokens(Tiny(), 100))
    assert len(claims) == 6
    assert not list(tmp_path.glob(".twoheads*"))


def test_stores_count_memory_and_disk_apart(tmp_path):
    stores = Stores(rows=lambda _: 10, block_size=4, key_tile=8, tiled=(), spilled=("x",), folder=tmp_path)
    stores.allocate(Value("x", "float32", (1, "n", 2)))
    stores.allocate(Value("y", "float32", (1, "n", 2)))
    assert (stores.peak_bytes, stores.peak_disk_bytes, stores.spilled_bytes) == (96, 96, 96)
    stores.release(["x", "y"])
    stores.allocate(Value("x", "float32", (1, "n", 2)))
    assert (stores.peak_bytes, stores.peak_disk_bytes, stores.spilled_bytes) == (96, 96, 192)


def test_pages_are_let_go_and_come_back(tmp_path):
    """The whole file is read and written, and little of it is resident at the end."""
    value = Value("x", "float32", (1, "n", 1024))
    store = ValueStore(value, length=16384, block_size=256, tile=256, file=partial(MappedFile, tmp_path / "x"))
    for block in range(64):
        store.block(block)[...] = block
    assert [float(store.block(block)[0, -1, -1]) for block in range(64)] == list(range(64))
    pages = Path("/proc/self/smaps")
    if pages.exists():
        found = re.search(r"x \(deleted\)\n(?:.*\n)*?Rss: +(\d+) kB", pages.read_text())
        assert found is not None
        assert int(found[1]) * 1024 <= 2 * spill.WINDOW_BYTES < store.nbytes


MEASURED = """
import json, sys
from twoheads.runtime import load
import numpy as np
class Sink:
    def write(self, start, rows): pass
limit = int(sys.argv[2]) or None
bundle = load(sys.argv[1], threads=1, memory_limit=limit, spill=sys.argv[3] if limit else None)
schedule = bundle.schedule(int(sys.argv[4]), "hidden")
plan = bundle.spill_plan(schedule)
done = bundle.run(np.arange(int(sys.argv[4])) % 7, output="hidden", sink=Sink()).report
print(json.dumps([schedule.peak_bytes, plan.memory.total, done.peak_bytes, done.spilled_bytes]))
"""


@pytest.mark.long("test_pages_are_let_go_and_come_back", "test_the_largest_values_are_spilled_until_the_run_fits")
def test_a_run_keeps_to_its_limit(tmp_path):
    """Values of half a gigabyte in files: the process stays within what the plan allows."""
    tiny = Tiny(masks=("causal & window(20, 0)",), block_size=256, key_tile=256, width=64, layers=2, head=False)
    bundle = write_tiny(tmp_path / "bundle", tiny)
    length, limit = 400_000, 300_000_000
    spent = []
    for bound in (0, limit):
        command = [sys.executable, "-c", MEASURED, str(bundle), str(bound), str(tmp_path), str(length)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        spent.append(json.loads(done.stdout))
    (needs, _, unbounded, none), (_, planned, bounded, spilled) = spent
    assert none == 0 < spilled
    assert needs > limit >= planned
    assert unbounded > limit >= bounded
