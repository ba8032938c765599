"""An engine that is open while it is called and no longer: of packed weights that do not fit into the memory limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twoheads.runtime.backends.protocol import Call, EngineHandle

__all__ = ["PassingEngine"]


class PassingEngine:
    """Stands in the place of an open engine; ``opened`` opens one.

    The bits are the same: weights are packed by the same kernels each time.
    """

    def __init__(self, opened: Callable[[], EngineHandle]) -> None:
        self._opened = opened

    def new_call(self) -> PassingCall:
        return PassingCall(self._opened)


class PassingCall:
    """Notes what is bound, and binds it to the engine of each run."""

    def __init__(self, opened: Callable[[], EngineHandle]) -> None:
        self._opened = opened
        self._inputs: dict[int, Any] = {}
        self._outputs: dict[int, Any] = {}

    def bind_input(self, port: int, tensor: Any) -> None:
        self._inputs[port] = tensor

    def bind_output(self, port: int, tensor: Any) -> None:
        self._outputs[port] = tensor

    def run(self) -> None:
        call: Call = self._opened().new_call()
        for port, tensor in self._inputs.items():
            call.bind_input(port, tensor)
        for port, tensor in self._outputs.items():
            call.bind_output(port, tensor)
        call.run()
