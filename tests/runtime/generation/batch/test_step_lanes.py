"""Rows of a batch are shared by threads: the same bits, and a step that fails in one of them is no half step."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from tests.runtime.generation.decoders import BLOCK, bundle, tokens
from twoheads.runtime.bundle.reader import Bundle
from twoheads.runtime.generation.batch.request import Request
from twoheads.runtime.generation.batch.step import BatchStep
from twoheads.runtime.generation.batch.step_lanes import StepLanes
from twoheads.runtime.generation.generated import Piece

OPTIONS: dict[str, Any] = {"max_new_tokens": 5, "ignore_eos": True, "return_logits": True}
LENGTHS = (1, 7, BLOCK - 1, BLOCK, BLOCK - 2, 3 * BLOCK - 1, 3, 5, 2 * BLOCK, 9, 11, 2, 4, 6, 8, 10, 12, 13, 14)


def _assert_same(request: Request, alone: Any) -> None:
    assert np.array_equal(np.asarray(request.result().logits), alone.logits)


@pytest.mark.parametrize(
    ("threads", "most", "lanes", "rows", "kernels"),
    [
        (1, 32, 1, 32, 1),
        (2, 32, 2, 16, 1),
        (3, 32, 3, 16, 1),
        (4, 32, 4, 8, 1),
        (9, 32, 4, 8, 2),
        (4, 20, 2, 16, 2),
        (4, 15, 1, 16, 4),
        (2, 3, 1, 8, 2),
        (2, 100, 2, 32, 1),
    ],
)
def test_threads_are_divided_among_lanes(monkeypatch, threads, most, lanes, rows, kernels):
    engines = bundle("llama").generation.model.engines
    monkeypatch.setattr(engines, "threads", threads)
    made = StepLanes(engines, most)
    assert [step.rows for step in made.steps] == [rows] * lanes
    assert made.threads == kernels


def test_experts_that_are_gathered_are_gathered_once():
    assert len(StepLanes(bundle("olmoe", 2).generation.model.engines, 32).steps) == 1


def test_every_request_gets_the_bits_that_it_gets_alone_by_one_thread():
    with bundle("llama", 2).open_batch() as batch:
        made = [batch.submit(tokens(length, length), **OPTIONS) for length in LENGTHS]
        for _ in batch:
            pass
    for length, request in zip(LENGTHS, made, strict=True):
        alone: Any = bundle("llama").generate(tokens(length, length), steady=True, **OPTIONS)
        _assert_same(request, alone)


def test_calls_of_all_lanes_are_counted():
    loaded = bundle("llama", 2)
    body, counts = loaded.generation.steps.body, []
    with loaded.open_batch() as batch:
        for length in LENGTHS:
            batch.submit(tokens(3, length), **OPTIONS)
        for _ in range(4):
            before = loaded.generation.calls
            batch.step()
            counts.append(loaded.generation.calls - before)
    # The rows of three slabs are in two lanes, so the second one in both; and there is a head.
    assert counts[-1] == 2 * len(body.regions) + 4 * len(body.attentions) + 1


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_a_step_that_fails_in_one_lane_is_no_step(monkeypatch, error):
    """Nobody's token is counted, no thread is left, and the next step computes what this one was to."""
    run, broken = BatchStep.run, [3]
    seen: list[tuple[Request, Piece]] = []

    def failing(self, given, check):
        if len(given) < len(LENGTHS) / 2:
            broken[0] -= 1
            if not broken[0]:
                raise error
        return run(self, given, check)

    monkeypatch.setattr(BatchStep, "run", failing)
    with bundle("llama", 2).open_batch() as batch:
        made = [batch.submit(tokens(length, length), **OPTIONS) for length in LENGTHS]
        with pytest.raises(error):
            seen += batch
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("twoheads")]
        seen += batch
    for length, request in zip(LENGTHS, made, strict=True):
        alone: Any = bundle("llama").generate(tokens(length, length), steady=True, **OPTIONS)
        _assert_same(request, alone)
        assert [piece.token for other, piece in seen if other is request] == alone.tokens


def test_other_lanes_stop_between_engine_calls(monkeypatch):
    call, checks, failed = BatchStep._call, [], threading.Event()

    def failing(self, part, check):
        if len(part) < len(LENGTHS) / 2:
            failed.set()
            raise MemoryError

        def counted():
            checks.append(1)
            assert check.__self__._stop.wait(10)
            check()

        assert failed.wait(10)
        return call(self, part, counted)

    monkeypatch.setattr(BatchStep, "_call", failing)
    with bundle("llama", 2).open_batch() as batch:
        for length in LENGTHS:
            batch.submit(tokens(3, length), **OPTIONS)
        with pytest.raises(MemoryError):
            batch.step()
    assert len(checks) == 1


def test_a_bundle_without_engines_of_16_rows_takes_larger_ones(monkeypatch):
    engines, has = bundle("llama", 2).generation.model.engines, Bundle.has
    stage, _ = engines.steps.body.regions[0]
    gone = f"engines/{engines.steps.region(stage, 16).name}.onnx"
    assert StepLanes(engines, 32).steps[0].rows == 16
    monkeypatch.setattr(Bundle, "has", lambda self, name: name != gone and has(self, name))
    assert StepLanes(engines, 32).steps[0].rows == 32
