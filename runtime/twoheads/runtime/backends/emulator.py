"""Engines as a vendor's compiler built them, on its runtime, or on its emulator: what an accelerator would compute."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import BundleError, InputError, InternalError
from twoheads.graphs.program.program import Port
from twoheads.graphs.user_cache import needed_cache
from twoheads.runtime.backends.emulators.in_process import InProcess
from twoheads.runtime.backends.emulators.process import EmulatorError, EmulatorProcess
from twoheads.runtime.backends.onnxruntime_cpu import OnnxRuntimeEngine, open_session
from twoheads.runtime.backends.protocol import EngineFile
from twoheads.runtime.bundle.artifacts import ArtifactFiles

__all__ = ["EMULATORS", "Emulator", "EmulatorBackend", "backend_on_device", "emulator_of", "environment_of", "measures"]

LARGEST = 65504.0
"""The largest float16 number."""

EMPTY = frozenset({"mask", "lse", "prev_lse"})
"""Ports on which ``-inf`` is a value like others: a key that is hidden, a row that sees none."""


HALF = ("fp32", "bf16", "fp16")
"""Precisions of backends that compute in what an artifact says."""

HALF_RANGE = frozenset({"fp16", "w8a16", "w4a16", "palette8", "palette4"})
"""Precisions whose values have float16's range."""

WEIGHTS = ("fp32", "w8", "w4")
"""Of backends that multiply in float32, by weights that may be stored in 8 or 4 bits."""

OPENVINO = ("w4", "w8", "fp16", "fp32")
"""Of OpenVINO, whose plugins for GPUs and NPUs multiply in half precision by themselves."""

SIXTEEN = (*HALF, "w8a16", "w4a16")
"""Of backends that also multiply whole numbers: activations of 16 bits by weights of 8 or 4."""

PALETTES = ("palette8", "palette4")
"""Of Core ML: weights are indices into a few numbers."""


@dataclass(frozen=True, slots=True)
class Emulator:
    """One vendor's runtime, or its emulator.

    Attributes:
        target: Whose artifacts it runs.
        module: The program beside the worker's that drives it.
        packages: What its environment needs, as pip takes it.
        precisions: In what it can compute.
        in_process: Whether it runs in this process where it can be imported.
        emulates: Whether it stands for another device's runtime, which has a name of its own.
        anywhere: Of its devices those that every machine has; ``None``: it runs artifacts for all of them anywhere.
        checked: Whether it runs only what ``build --check`` keeps for it, as does a build whose loss is measured.
        weights_alone: Whether it multiplies an artifact's weights in float32, which tells what they cost, and nothing
            of what the device computes.
        machine_code: Whether artifacts are code for one kind of processor, that on which they were built.
    """

    target: str
    module: str
    packages: tuple[str, ...]
    precisions: tuple[str, ...] = HALF
    in_process: bool = False
    machine_code: bool = False
    anywhere: tuple[str, ...] | None = None
    emulates: bool = False
    checked: bool = False
    weights_alone: bool = False


EMULATORS: Mapping[str, Emulator] = {
    "qnn-emulator": Emulator("qnn", "run_qnn", ("onnxruntime", "onnxruntime-qnn"), SIXTEEN, emulates=True),
    "qnn": Emulator("qnn", "run_qnn", ("onnxruntime", "onnxruntime-qnn"), SIXTEEN, in_process=True),
    "rknn-simulator": Emulator(
        "rknn", "run_rknn", ("'setuptools<81'", "rknn-toolkit2"), (*HALF, "int8"), emulates=True, checked=True
    ),
    "rknn": Emulator("rknn", "run_rknnlite", ("rknn-toolkit-lite2",), (*HALF, "int8"), in_process=True),
    "onnxruntime-int8": Emulator("onnxruntime", "run_onnxruntime", ("onnxruntime",), ("int8",)),
    "openvino-ir": Emulator("openvino", "run_openvino", ("openvino",), OPENVINO, True, anywhere=("CPU",)),
    "litert": Emulator("litert", "run_litert", ("ai-edge-litert",), WEIGHTS, in_process=True),
    "executorch": Emulator("executorch", "run_executorch", ("executorch", "torch"), ("fp32", "w8a8", "w4a8")),
    "iree": Emulator("iree", "run_iree", ("iree-base-runtime",), ("fp32",), in_process=True, machine_code=True),
    "coreml-weights": Emulator(
        "coreml", "run_coreml_weights", ("onnxruntime",), PALETTES, emulates=True, checked=True, weights_alone=True
    ),
    "coreml": Emulator("coreml", "run_coreml", ("coremltools",), (*HALF, *PALETTES), in_process=True),
    "tensorrt-engine": Emulator("tensorrt", "run_tensorrt", ("tensorrt", "polygraphy"), HALF, in_process=True),
    "tensorrt-rtx": Emulator(
        "tensorrt-rtx", "run_tensorrt_rtx", ("tensorrt-rtx-cu12", "polygraphy"), HALF, in_process=True
    ),
}
"""Backends that run artifacts, by name: runtimes that execute on the device itself, and emulators of such.
ExecuTorch's takes torch's tensors, and torch stays out of this process. On x86 ``qnn`` is the emulator, too: the
package's library is one there."""


def emulator_of(target: str) -> str:
    """The backend that runs here what was built for ``target``: its emulator, where it has one.

    Raises:
        InputError: There is none.
    """
    found = next((name for name, one in EMULATORS.items() if one.target == target and not one.weights_alone), None)
    if found is None:
        known = ", ".join(dict.fromkeys(emulator.target for emulator in EMULATORS.values()))
        raise InputError(f"target {target}", "nothing here runs its artifacts", f"use one of: {known}")
    return found


def backend_on_device(target: str) -> str:
    """The backend that runs what was built for ``target`` on its device.

    Raises:
        InputError: There is none.
    """
    emulator_of(target)
    return next(name for name, one in EMULATORS.items() if one.target == target and not one.emulates)


def measures(target: str, precision: str) -> str | None:
    """The backend that tells here what artifacts of ``precision`` cost a model; ``None`` where there is none."""
    rows = EMULATORS.items()
    return next((name for name, one in rows if one.target == target and precision in one.precisions), None)


def environment_of(target: str) -> Path:
    """The folder where a target's own environment is looked for.

    Raises:
        InputError: The user has no folder for what is kept.
    """
    return needed_cache(f"the environment of {target}") / "environments" / target


class EmulatorBackend:
    """Runs what ``twoheads build`` made. Emulators are slow, and faithful in their numbers: of 16 bits, or of 8.

    Args:
        name: One of :data:`EMULATORS`.
        threads: Processes of the emulator: calls that run at the same time.
        python: That of the environment with the emulator; by default that of the environment kept for the target, or
            this one.
        emulator: Another one than that of the name.
    """

    in_place = shares_packed = False

    def __init__(
        self, name: str, *, threads: int = 1, python: Path | None = None, emulator: Emulator | None = None
    ) -> None:
        self.name = name
        self._emulator = emulator or EMULATORS[name]
        self.target, self.precisions = self._emulator.target, self._emulator.precisions
        kept = environment_of(self.target) / "bin" / "python"
        self._python = python or (kept if kept.exists() else Path(sys.executable))
        self._threads = threads
        self._idle: queue.LifoQueue[EmulatorProcess | InProcess] = queue.LifoQueue()
        self._starting = threading.Lock()
        self._started = False

    def _start(self) -> None:
        """Starts the processes, once."""
        with self._starting:
            if self._started:
                return
            for _ in range(self._threads):
                self._idle.put(self._process())
            self._started = True

    def _process(self) -> EmulatorProcess | InProcess:
        try:
            if self._emulator.in_process and self._python == Path(sys.executable):
                return InProcess(self._emulator.module)
            return EmulatorProcess(self._python, self._emulator.module)
        except EmulatorError as error:
            problem = f"can't be used in {self._python} ({error})"
            raise InputError(f"backend {self.name}", problem, self._install()) from error

    def _install(self) -> str:
        """How to get it: a device's runtime belongs into this environment, and others come with their compiler."""
        kept = environment_of(self.target) / "bin" / "python"
        if not self._emulator.in_process and self._python in (kept, Path(sys.executable)):
            return f"twoheads targets install {self.target}"
        return f"{self._python} -m pip install {' '.join(self._emulator.packages)}"

    def tensor(self, array: npt.NDArray[Any]) -> Any:
        return array

    def load_engine(self, file: EngineFile) -> EmulatorEngine:
        """Refuses: there is nothing to run an engine's own file with."""
        raise InternalError(f"{self.name} runs artifacts, not {file.path}")

    def load_artifact(
        self, files: ArtifactFiles, inputs: Sequence[Port], outputs: Sequence[Port], weights: Mapping[str, Any]
    ) -> EmulatorEngine:
        """Opens an artifact of the engine with the ports ``inputs`` and ``outputs`` and all its ``weights``.

        Raises:
            BundleError: It can't be opened, or has other ports.
            InputError: The emulator is not installed.
        """
        self._start()
        host = None
        if files.host is not None:
            host = open_session(files.host, {port: weights[port] for port in files.host_weights})
        half = files.precision in HALF_RANGE and not self._emulator.weights_alone
        engine = EmulatorEngine(self._idle, files, host, inputs, outputs, half=half)
        engine.check_ports()
        return engine


class EmulatorEngine:
    """An artifact that idle processes of the emulator run, after the host's part."""

    def __init__(
        self,
        idle: queue.LifoQueue[EmulatorProcess | InProcess],
        files: ArtifactFiles,
        host: OnnxRuntimeEngine | None,
        inputs: Sequence[Port],
        outputs: Sequence[Port],
        *,
        half: bool,
    ) -> None:
        self._half = half
        self._idle, self._path, self._device, self._host = idle, files.accelerator, files.device, host
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self._taken: dict[str, str] = {}
        self._given: dict[str, str] = {}

    def check_ports(self) -> None:
        """Raises unless both parts together take the engine's inputs and give its outputs."""
        known = {port.name: tuple(port.shape) for port in self.inputs}
        if self._host is not None:
            known |= {port.name: tuple(port.shape) for port in self._host.session.get_outputs()}
        if self._path is not None:
            process = self._idle.get()
            try:
                inputs, outputs = process.ports(self._path, self._device)
            finally:
                self._idle.put(process)
            self._taken = {port.name: self._engine_name(port.name, self.inputs) for port in inputs}
            self._given = {port.name: self._engine_name(port.name, self.outputs) for port in outputs}
            for port in inputs:
                name = self._taken[port.name]
                if name not in known or port.shape not in (None, known[name]):
                    self._refuse(f"takes {port.name}, which the engine has not")
            wanted = {port.name: tuple(port.shape) for port in self.outputs}
            for port in outputs:
                name = self._given[port.name]
                known[name] = wanted.get(name, ()) if port.shape is None else port.shape
        missing = [port.name for port in self.outputs if known.get(port.name) != tuple(port.shape)]
        if missing:
            self._refuse(f"does not give {missing[0]}")

    def _engine_name(self, name: str, ports: Sequence[Port]) -> str:
        """The engine's name of an artifact's port: its own, or that of the port with a number such as ``#2``."""
        if not name.startswith("#"):
            return name
        at = int(name[1:])
        if self._host is not None or at >= len(ports):
            self._refuse(f"has a port {name}, which the engine has not")
        return ports[at].name

    def _refuse(self, problem: str) -> NoReturn:
        raise BundleError(str(self._path), problem, "build the bundle again")

    def new_call(self) -> EmulatorCall:
        return EmulatorCall(self)

    def run(self, values: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """All values that the two parts give, by name, from the engine's inputs.

        Raises:
            BundleError: The emulator fails, or a value is beyond half precision.
        """
        found = dict(values)
        if self._host is not None:
            given = {name: values[name] for name in self._host.inputs}
            found |= zip(self._host.outputs, self._host.session.run(None, given), strict=True)
        if self._path is not None:
            taken = {name: found[engine] for name, engine in self._taken.items()}
            self._check_range(taken)
            process = self._idle.get()
            try:
                results = process.run(self._path, self._device, taken)
            finally:
                self._idle.put(process)
            self._check_range(results)
            found |= {self._given[name]: array for name, array in results.items()}
        return found

    def _check_range(self, values: Mapping[str, npt.NDArray[Any]]) -> None:
        """Raises for numbers that half precision has not: what comes of them would be no error, but wrong."""
        for name, array in values.items():
            if array.dtype.kind != "f" or not self._half:
                continue
            fine = np.abs(array) < LARGEST
            if name in EMPTY:
                fine |= np.isneginf(array) | (array <= -LARGEST)
            if not fine.all():
                value = array[~fine].flat[0]
                raise BundleError(
                    str(self._path),
                    f"{name} is {value:g}, beyond float16's range",
                    "run it with --backend onnxruntime; this model needs more range than the accelerator has",
                )


class EmulatorCall:
    """The arrays of one thread's call."""

    def __init__(self, engine: EmulatorEngine) -> None:
        self._engine = engine
        self._inputs: dict[str, npt.NDArray[Any]] = {}
        self._outputs: dict[str, npt.NDArray[Any]] = {}

    def bind_input(self, port: int, tensor: npt.NDArray[Any]) -> None:
        self._inputs[self._engine.inputs[port].name] = tensor

    def bind_output(self, port: int, tensor: npt.NDArray[Any]) -> None:
        self._outputs[self._engine.outputs[port].name] = tensor

    def run(self) -> None:
        values = self._engine.run(self._inputs)
        for name, array in self._outputs.items():
            np.copyto(array, values[name])
