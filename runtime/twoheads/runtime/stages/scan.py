"""Run one scan: one call a block, in order, each with the state that the one before has left."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InternalError
from twoheads.graphs.program.program import ScanEngine, ScanStage
from twoheads.runtime.execution.run_state import RunState
from twoheads.runtime.stages.tokenwise import scratch_block

__all__ = ["open_scan", "run_scan"]

VARIANT = "block"


def open_scan(run: RunState, stage: ScanStage) -> None:
    """Opens the engine of ``stage``."""
    run.engines.attention(stage.engine, VARIANT)


def run_scan(run: RunState, stage: ScanStage) -> None:
    """Computes the output of ``stage`` for all blocks; it must be allocated, as its inputs are.

    One worker makes all calls; the kernels of each use the run's threads. A checkpoint keeps the state.

    Raises:
        InternalError: The run computes a part of the blocks, or several inputs share them.
    """
    if run.packing is not None or run.only is not None:
        raise InternalError(f"stage {stage.name}: a state goes through all blocks of one input")
    chain = _Chain(run, stage)
    blocks = range(-(-run.stores[stage.output.name].length // run.program.block_size))
    run.work(stage, blocks, lambda: chain.block, tokens=run.block_tokens, companion=chain, alone=True)


class _Chain:
    """The calls of one stage, and the state between them: of two arrays a call reads one and writes the other."""

    def __init__(self, run: RunState, stage: ScanStage) -> None:
        engine = run.engines.declared(ScanEngine, stage.engine)
        self._wrap = run.backend.tensor
        self._call = run.engines.attention(stage.engine, VARIANT).new_call()
        self._counter = run.counters[stage.name]
        self._count = self._counter.worker()
        self._inputs = [(run.stores[name], scratch_block(run.stores[name])) for name in stage.inputs]
        self._output = run.stores[stage.output.name]
        self._written = scratch_block(self._output)
        for port, (_, scratch) in enumerate(self._inputs):
            if scratch is not None:
                self._call.bind_input(port, self._wrap(scratch))
        for port, name in enumerate(stage.weights, len(stage.inputs)):
            self._call.bind_input(port, self._wrap(np.ascontiguousarray(run.engines.weights.view(name))))
        if self._written is not None:
            self._call.bind_output(0, self._wrap(self._written))
        self._state_port = len(stage.inputs) + len(stage.weights)
        self._states = [np.zeros(engine.state.shape, engine.state.dtype) for _ in range(2)]
        self._bound = [self._wrap(state) for state in self._states]

    def block(self, at: int) -> None:
        """Computes block ``at``; the state must be that behind the blocks before it."""
        call, wrap = self._call, self._wrap
        for port, (store, scratch) in enumerate(self._inputs):
            if scratch is None:
                call.bind_input(port, wrap(store.block(at)))
            else:
                np.copyto(scratch, store.block(at))
        if self._written is None:
            call.bind_output(0, wrap(self._output.block(at)))
        call.bind_input(self._state_port, self._bound[0])
        call.bind_output(1, self._bound[1])
        call.run()
        self._count.calls += 1
        self._bound.reverse()
        self._states.reverse()
        if self._written is not None:
            np.copyto(self._output.block(at), self._written)

    def save(self) -> str:
        """The state, as text."""
        return base64.b64encode(self._states[0].tobytes()).decode("ascii")

    def restore(self, saved: Any, done: int) -> bool:
        """Goes on with a state that was saved behind ``done`` blocks; ``False`` where it is none of this engine's."""
        state = self._states[0]
        found = _decoded(saved, state.dtype)
        if found.size != state.size:
            self._counter.reset()
            self._count = self._counter.worker()
            return False
        state[...] = found.reshape(state.shape)
        return True


def _decoded(saved: Any, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """The numbers in a text; none where it holds no such."""
    try:
        return np.frombuffer(base64.b64decode(saved, validate=True), dtype)
    except (TypeError, ValueError):
        return np.empty(0, dtype)
