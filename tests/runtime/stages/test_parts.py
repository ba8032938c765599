"""Stores, mask and bias tiles, weights, pooling, the crew and the memory mark, each by itself."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twoheads.graphs.errors import BundleError
from twoheads.graphs.masks.expressions import parse_mask
from twoheads.graphs.masks.tiles import row_segments
from twoheads.graphs.program.program import TOKENS, Pooling, Value
from twoheads.graphs.serialization.bundle_format import WeightEntry
from twoheads.runtime.bundle.weights import Weights
from twoheads.runtime.execution.crew import Crew, available_threads
from twoheads.runtime.memory.spare_memory import SpareMemory
from twoheads.runtime.memory.stores import Stores, ValueStore
from twoheads.runtime.reports.peak_memory import peak_memory
from twoheads.runtime.stages.attention import mask_tiles
from twoheads.runtime.stages.attention.bias_tiles import BiasTiles
from twoheads.runtime.stages.attention.mask_tiles import MaskTiles
from twoheads.runtime.stages.pooling import pool


@given(
    length=st.integers(1, 60),
    tile=st.sampled_from([4, 8, 12]),
    shape=st.sampled_from([(1, "n"), (1, "n", 3), (1, 2, "n", 3), (1, 1, "n", 3), ("n", 2)]),
)
def test_a_store_holds_every_token_where_blocks_and_tiles_find_it(length, tile, shape):
    value = Value("x", "float32", shape)
    store = ValueStore(value, length=length, block_size=4, tile=tile)
    store.array[...] = np.nan
    source = np.random.default_rng(0).standard_normal(value.block_shape(length)).astype(np.float32)
    store.fill(source)
    padded = np.zeros(value.block_shape(len(store.array) * tile), np.float32)
    padded[tuple(slice(0, size) for size in source.shape)] = source
    axis = value.token_axis
    for block in range(-(-length // 4)):
        view = store.block(block)
        np.testing.assert_array_equal(view, np.take(padded, range(4 * block, 4 * block + 4), axis))
        assert view.base is not None
        assert not store.direct or view.flags.c_contiguous
    for at in range(len(store.array)):
        np.testing.assert_array_equal(store.tile(at), np.take(padded, range(tile * at, tile * at + tile), axis))
        assert store.tile(at).flags.c_contiguous
    assert store.direct == (tile == 4 or shape != (1, 2, "n", 3))


def test_stores_count_bytes():
    stores = Stores(rows=lambda _: 10, block_size=4, key_tile=8, tiled=("k",))
    k = stores.allocate(Value("k", "float32", (1, 1, "n", 2)))
    assert k.nbytes == 16 * 2 * 4
    stores.allocate(Value("x", "int64", (1, "n")))
    assert stores.peak_bytes == 128 + 12 * 8
    stores.release(["k", "unknown"])
    stores.account(5)
    assert stores.live == ("x",)
    assert "k" not in stores
    stores.account(-5)
    assert stores.peak_bytes == 128 + 12 * 8


def test_released_memory_is_used_again_but_never_adds_to_the_peak():
    stores = Stores(rows=lambda _: 10, block_size=4, key_tile=8, tiled=())
    widths = {"a": 4, "b": 2, "c": 4, "d": 3}
    values = {name: Value(name, "float32", (1, "n", width)) for name, width in widths.items()}
    first = weakref.ref(stores.allocate(values["a"]).memory)
    stores.allocate(values["b"])
    stores.release(["a"])
    assert stores.allocate(values["c"]).memory is first()
    stores.release(["c"])
    stores.allocate(values["d"])
    assert first() is None, "together with the new value it would be more than ever before"
    assert stores.peak_bytes == 12 * 6 * 4


def _masks(mask, bias=None, *, block=8, tile=8, length=61, heads=1):
    made: list[Any] = []
    accounts: list[int] = []

    def wrap(array):
        made.append(array)
        return array

    tiles = MaskTiles(
        parse_mask(mask),
        bias,
        mask_heads=heads,
        block_size=block,
        key_tile=tile,
        length=length,
        wrap=wrap,
        account=accounts.append,
    )
    return tiles, made, accounts


@pytest.mark.parametrize("mask", ["causal", "full", "window(11, 3)", "causal & (window(9, 0) | sinks(3))", "chunk(10)"])
@pytest.mark.parametrize("tile", [8, 24])
def test_mask_tiles_are_the_mask_and_shared(mask, tile):
    tiles, made, accounts = _masks(mask, tile=tile)
    calls = 0
    for block in range(8):
        for segment in row_segments(parse_mask(mask), block, block_size=8, key_tile=tile, length=61):
            if segment.full:
                continue
            calls += 1
            got = tiles.tensor(block, segment.start, full=False)
            assert got.dtype == np.float32
            assert got.shape == (1, 8, tile)
            i = np.arange(8 * block, min(8 * block + 8, 61))[:, None]
            j = np.arange(tile * segment.start, tile * (segment.start + 1))[None, :]
            want = parse_mask(mask).dense(i, j) & (j < 61)
            np.testing.assert_array_equal(got[0, : len(i)], np.where(want, 0, -np.inf))
    if mask == "causal" and tile == 8:
        assert (calls, len(made)) == (8, 1)  # one diagonal tile for all, the last included
    assert sum(accounts) == sum(array.nbytes for array in made)
    tiles.close()
    assert sum(accounts) == 0


@pytest.mark.parametrize("mask", ["full", "causal"])
@pytest.mark.parametrize(("reach", "slope"), [(3, False), (0, True), (30, True), (9, False)])
def test_bias_tiles_are_the_bias(mask, reach, slope):
    rng = np.random.default_rng(0)
    table = rng.standard_normal((2, 2 * reach + 1)) if reach else None
    slopes = rng.standard_normal(2) if slope else None
    bias = BiasTiles(table, slopes, block_size=8, key_tile=16)
    tiles, made, _ = _masks(mask, bias, tile=16, heads=2)
    distance = np.arange(64)[None, :] - np.arange(64)[:, None]
    want = np.zeros((2, 64, 64))
    if table is not None:
        want += table[:, np.clip(distance, -reach, reach) + reach]
    if slopes is not None:
        want += slopes[:, None, None] * distance
    count = 0
    for block in range(8):
        for segment in row_segments(parse_mask(mask), block, block_size=8, key_tile=16, length=64):
            for tile in range(segment.start, segment.stop):
                count += 1
                got = tiles.tensor(block, tile, full=segment.full)
                part = want[:, 8 * block : 8 * block + 8, 16 * tile : 16 * tile + 16]
                seen = parse_mask(mask).dense(
                    *np.ix_(range(8 * block, 8 * block + 8), range(16 * tile, 16 * tile + 16))
                )
                np.testing.assert_allclose(got, np.where(seen, part, -np.inf), atol=1e-5)
    assert len(made) < count


def test_mask_tiles_are_bounded(monkeypatch):
    monkeypatch.setattr(mask_tiles, "CACHE_BYTES", 3 * 2 * 8 * 8 * 4)
    bias = BiasTiles(None, np.ones(2), block_size=8, key_tile=8)
    tiles, made, accounts = _masks("full", bias, heads=2, length=160)
    for block in range(20):
        tiles.tensor(block, 0, full=True)
    tiles.tensor(19, 0, full=True)
    assert len(made) == 20
    assert sum(accounts) == 3 * made[0].nbytes
    tiles.tensor(0, 0, full=True)
    assert len(made) == 21


def test_weights_are_views_of_the_file(tmp_path):
    data = np.arange(6, dtype=np.float32)
    (tmp_path / "w").write_bytes(bytes(64) + data.tobytes())
    weights = Weights(
        tmp_path / "w", {"a": WeightEntry(64, "float32", (2, 3)), "none": WeightEntry(88, "int64", (0, 5))}
    )
    a, none = weights.views(("a", "none"))
    np.testing.assert_array_equal(a, data.reshape(2, 3))
    assert not a.flags.writeable
    assert np.shares_memory(a, weights.view("a"))
    assert none.shape == (0, 5)
    (tmp_path / "empty").touch()
    assert Weights(tmp_path / "empty", {"s": WeightEntry(0, "float32", (0,))}).view("s").shape == (0,)


def test_pooling():
    hidden = np.random.default_rng(0).standard_normal((1000, 8)).astype(np.float32) + 1000
    np.testing.assert_array_equal(
        pool(hidden, Pooling("mean", False)), hidden.astype(np.float64).mean(0).astype(np.float32)
    )
    unit = pool(hidden, Pooling("last", True))
    assert unit.dtype == np.float32
    np.testing.assert_allclose(unit, hidden[-1] / np.linalg.norm(hidden[-1]), rtol=1e-6)
    assert (pool(0 * hidden, Pooling("cls", True)) == 0).all()
    with pytest.raises(BundleError, match="'max'"):
        pool(hidden, Pooling("max", False))


def test_the_memory_mark_outlives_the_memory():
    code = """
from twoheads.runtime.reports.peak_memory import peak_memory
import numpy as np
before = peak_memory()
array = np.ones(100_000_000 // 8)
with_array = peak_memory()
del array
after = peak_memory()  # the kernel's counters are per processor and differ by some pages from look to look
assert before > 1_000_000
assert min(with_array, after) > before + 90_000_000, (before, with_array, after)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert peak_memory() > 10_000_000


@settings(max_examples=20, deadline=None)
@given(threads=st.integers(1, 5), count=st.integers(0, 40))
def test_a_crew_does_everything_once(threads, count):
    done: list[int] = []
    starts: list[int] = []

    def start():
        starts.append(threading.get_ident())
        return done.append

    with Crew(threads) as crew:
        crew.run(range(count), start)
        crew.run([99], start)
    assert sorted(done) == [*range(count), 99]
    assert len(starts) == min(threads, count) + 1
    own = threading.get_ident()
    assert starts[-1] == own, "one item needs no thread to wait for"
    assert (own in starts[:-1]) == (count == 1)


def test_a_crew_takes_items_in_order():
    done: list[int] = []
    with Crew(1) as crew:
        crew.run([3, 1, 2], lambda: done.append)
    assert done == [3, 1, 2]


def test_a_worker_that_is_stopped_hears_of_it():
    looks = []

    def work(item: int) -> None:
        if item == 0:
            time.sleep(0.02)
            raise ValueError("the reason")
        for _ in range(1000):
            looks.append(item)
            crew.check()
            time.sleep(0.005)

    began = time.perf_counter()
    with Crew(3) as crew, pytest.raises(ValueError, match="the reason"):
        crew.run(range(9), lambda: work)
    assert time.perf_counter() - began < 2
    assert set(looks) == {1, 2}


def test_an_interrupt_of_the_caller_stops_the_crew():
    def tick() -> None:
        raise KeyboardInterrupt

    def work(_: int) -> None:
        while True:
            crew.check()
            time.sleep(0.005)

    with Crew(2, tick) as crew, pytest.raises(KeyboardInterrupt):
        crew.run(range(5), lambda: work)
    assert crew.stopped


def test_threads_respect_the_affinity():
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("no affinity here")
    assert available_threads() == len(os.sched_getaffinity(0))


def test_memory_of_a_run_serves_the_next_and_never_adds_to_its_most() -> None:
    spare = SpareMemory()
    value = Value("x", "float32", (1, TOKENS, 4))
    settings: dict[str, Any] = {"rows": lambda _: 32, "block_size": 16, "key_tile": 16, "tiled": (), "spare": spare}
    first = Stores(**settings)
    memory = first.allocate(value).memory
    first.allocate(replace(value, name="y"))
    first.close()
    assert spare.nbytes == first.peak_bytes == 2 * 32 * 4 * 4
    second = Stores(**settings)
    assert any(second.allocate(replace(value, name=name)).memory is memory for name in "xy")
    other = Stores(**settings)
    other.allocate(replace(value, shape=(1, TOKENS, 8)))
    assert spare.nbytes == 0, "one value of twice the size is as much as was there before"


def test_no_more_memory_is_kept_than_is_allowed() -> None:
    spare = SpareMemory()
    for size in (5, 6, 7):
        spare.give(np.empty(size, np.uint8))
    spare.trim(14)
    assert spare.nbytes == 13
    assert spare.take(6).nbytes == 6
    assert spare.nbytes == 7


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_large_weights_that_are_let_go_take_no_memory_and_can_still_be_read(tmp_path):
    shape = (3 << 18,)
    numbers = np.arange(2 * shape[0], dtype=np.float32)
    (tmp_path / "weights.bin").write_bytes(b"head" + numbers.tobytes())
    places = (4, 4 + 4 * shape[0])
    entries = {name: WeightEntry(at, "float32", shape) for name, at in zip("ab", places, strict=True)}
    weights = Weights(tmp_path / "weights.bin", entries)

    def resident() -> int:
        lines = Path("/proc/self/smaps").read_text().splitlines()
        at = next(at for at, line in enumerate(lines) if str(tmp_path) in line)
        return next(int(line.split()[1]) << 10 for line in lines[at:] if line.startswith("Rss:"))

    assert weights.view("a").sum() > 0
    assert weights.view("b").sum() > 0
    before = resident()
    weights.let_go(["a"])
    assert before - resident() > 2 << 20
    assert weights.view("b")[-1] == numbers[-1]
    np.testing.assert_array_equal(weights.view("a"), numbers[: shape[0]])
