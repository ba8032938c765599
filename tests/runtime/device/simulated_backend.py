"""Engines of a simulated device: ONNX Runtime's, fed from its memory when it gets to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from weakref import finalize

import numpy as np

from tests.runtime.device.simulated_device import SimulatedDevice, SimulationError
from twoheads.graphs.program.program import Port
from twoheads.runtime.backends.device_protocol import DeviceArray
from twoheads.runtime.backends.onnxruntime_cpu import OnnxRuntimeBackend
from twoheads.runtime.backends.protocol import EngineFile, EngineHandle


class SimulatedBackend:
    name = "simulated"
    in_place = shares_packed = False

    def __init__(self, seed: int = 0, lanes: int = 3, memory: int = 1 << 30) -> None:
        self.device = SimulatedDevice(seed, memory)
        self.lanes = tuple(self.device.new_stream() for _ in range(lanes))
        self.host = OnnxRuntimeBackend()

    def tensor(self, array: Any) -> Any:
        raise SimulationError("host arrays are not for this device")

    def load_engine(self, file: EngineFile) -> SimulatedEngine:
        handle = self.host.load_engine(replace(file, threads=1, own_weights=False))
        # Weights are held once, on the first lane.
        return SimulatedEngine(self, handle, (file.inputs, file.outputs), 1 if file.weights else len(self.lanes))


class SimulatedEngine:
    def __init__(
        self, backend: SimulatedBackend, host: EngineHandle, ports: tuple[Sequence[Port], Sequence[Port]], lanes: int
    ) -> None:
        self.backend = backend
        self.host = host.new_call()
        self.inputs, self.outputs = ports
        self.lanes = lanes
        self.open = [True]
        """Nobody may let go of an engine while the device has calls of it before it."""
        finalize(self, self.open.clear)

    def new_call(self, lane: int = 0) -> SimulatedCall:
        if lane >= self.lanes:
            raise SimulationError(f"lane {lane} of {self.lanes}")
        return SimulatedCall(self, lane)


class SimulatedCall:
    def __init__(self, engine: SimulatedEngine, lane: int) -> None:
        self._engine = engine
        self._lane = lane
        self._inputs: dict[int, DeviceArray] = {}
        self._outputs: dict[int, DeviceArray] = {}

    def bind_input(self, port: int, tensor: DeviceArray) -> None:
        _check(self._engine.inputs[port], tensor)
        self._inputs[port] = tensor

    def bind_output(self, port: int, tensor: DeviceArray) -> None:
        _check(self._engine.outputs[port], tensor)
        self._outputs[port] = tensor

    def run(self) -> None:
        engine, inputs, outputs = self._engine, dict(self._inputs), dict(self._outputs)
        if len(inputs) != len(engine.inputs) or len(outputs) != len(engine.outputs):
            raise SimulationError("a port is not bound")
        device, wrap, call, is_open = engine.backend.device, engine.backend.host.tensor, engine.host, engine.open

        def act() -> None:
            if not is_open:
                raise SimulationError("the engine of a call was closed before the device came to it")
            results = {port: np.empty(array.shape, array.dtype) for port, array in outputs.items()}
            for port, array in inputs.items():
                call.bind_input(port, wrap(np.ascontiguousarray(device.view(array))))
            for port, result in results.items():
                call.bind_output(port, wrap(result))
            call.run()
            for port, array in outputs.items():
                device.view(array)[...] = results[port]

        device.queue(engine.backend.lanes[self._lane], act)


def _check(port: Port, tensor: DeviceArray) -> None:
    if (port.dtype, port.shape) != (tensor.dtype, tensor.shape):
        raise SimulationError(f"{tensor} for {port}")
