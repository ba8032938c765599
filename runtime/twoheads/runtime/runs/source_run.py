"""A run of an encoder alone: what a decoder's cross attention reads of it, for generating."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import InputError
from twoheads.graphs.program.lengths import check_limit
from twoheads.graphs.program.program import TOKENS
from twoheads.graphs.schedule.schedule import SOURCE, make_schedule
from twoheads.graphs.variants.decoder import source_values
from twoheads.runtime.execution.executor import Executor, RunPlan
from twoheads.runtime.inputs.arrays import complete_arrays
from twoheads.runtime.inputs.requests import Request, read_inputs
from twoheads.runtime.runs.host_executor import HostExecutor
from twoheads.runtime.runs.run_context import RunContext

__all__ = ["EncoderRun"]


@dataclass(frozen=True, slots=True)
class EncoderRun:
    """Runs the encoder of a bundle.

    Attributes:
        context: What runs.
        executor: Carries it out.
    """

    context: RunContext
    executor: Executor

    def check(self, given: Any) -> Request:
        """What the encoder reads, before it runs.

        Args:
            given: An array, if that is all, or arrays by the names of the program's inputs; an ``attention_mask`` among
                them leaves padding out.

        Raises:
            InputError: It is not what the encoder reads, or the executor is none of the processor.
        """
        self._host()
        program = self.context.program
        (decoder,) = (e.value.name for e in program.inputs if e.source == "argument" and e.value.axis == TOKENS)
        others = [e.value.name for e in program.inputs if e.source == "argument" and e.value.name != decoder]
        if not isinstance(given, Mapping):
            if len(others) != 1:
                raise InputError("prompt", f"is one array of {len(others)}", f"give a mapping with {', '.join(others)}")
            given = {others[0]: given}
        if decoder in given:
            problem = f"holds {decoder}, which the encoder does not read"
            raise InputError("prompt", problem, f"give {decoder}= beside it")
        one = np.zeros((1, 1), np.int64)  # no stage of the encoder reads the decoder's tokens
        request = read_inputs(program, {**given, decoder: one}, output="hidden").only
        if request is None:
            raise InputError("prompt", "holds several inputs", "give one")
        check_limit(program, request.lengths)
        # It may run later: what the caller does with the arrays until then is nobody's business.
        return replace(request, arrays={name: np.array(array) for name, array in request.arrays.items()})

    def run(self, checked: Request) -> tuple[dict[str, npt.NDArray[Any]], int]:
        """The keys and values of all cross attentions, ``[1, kv_heads, m, head_dim]`` by name, and the engine calls."""
        context = self.context
        program, process = context.program, context.process_bytes
        schedule = make_schedule(program, checked.lengths, output=SOURCE, workers=context.threads, process=process)
        kept = context.spill_plan(schedule)
        with self._host().start(RunPlan(schedule, None, kept.values, None, kept.streamed, kept.ahead), None) as run:
            run.prepare()
            run.body(complete_arrays(program, checked.lengths, checked.arrays))
            return {value.name: np.array(run.stores[value.name].whole()) for value in source_values(program)}, run.calls

    def _host(self) -> HostExecutor:
        if not isinstance(self.executor, HostExecutor):
            raise InputError("generate", "runs an encoder on the processor only", "load the bundle without a device")
        return self.executor
