"""Engines on ONNX Runtime's CPU kernels: one session an engine, shared by all threads, mostly of one thread itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import BundleError, InputError
from twoheads.runtime.backends.onnxruntime_c import c_interface
from twoheads.runtime.backends.onnxruntime_shared import LENT_AS_THEY_ARE, SharedEngine, SharedWeights
from twoheads.runtime.backends.protocol import EngineFile, Ports, check_ports, engine_failure

__all__ = ["OnnxRuntimeBackend", "OnnxRuntimeEngine", "open_session", "session_options", "session_ports"]

NUMPY_DTYPES = {
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}


class OnnxRuntimeBackend:
    """ONNX Runtime. Parallelism is across blocks, so kernels use one thread each and nothing spins, unless told so.

    Raises:
        InputError: The package is not installed.
    """

    name: str = "onnxruntime"
    in_place = True

    def __init__(self) -> None:
        try:
            import onnxruntime  # type: ignore[import-untyped]
        except ImportError as error:
            raise InputError(
                "backend onnxruntime", f"can't be imported ({error})", "pip install onnxruntime"
            ) from error
        self.module: Any = onnxruntime
        _share_arena()
        self._wrap = onnxruntime.OrtValue.ortvalue_from_numpy

    def tensor(self, array: npt.NDArray[Any]) -> Any:
        return self._wrap(array)

    def load_engine(self, file: EngineFile) -> OnnxRuntimeEngine | SharedEngine:
        if file.shared and file.weights and not file.in_place and self._shared is not None:
            return self._shared.open(file, session_settings(file.threads))
        tensors = {name: self._wrap(array) for name, array in file.weights.items()}
        # Kernels of quantised weights need them packed, or would turn them into float32 in every call.
        quantised = any(array.dtype == np.uint8 for array in file.weights.values())
        how = {"own_weights": file.own_weights, "packed": quantised or not file.in_place}
        session = _open(self.module, file.path, tensors, file.threads, **how, planned=not file.large_calls)
        check_ports(file, session_ports(session.get_inputs()), session_ports(session.get_outputs()))
        freeing = _freeing(self.module) if file.frees else None
        return OnnxRuntimeEngine(file.path, session, tuple(tensors.values()), freeing)

    @property
    def shares_packed(self) -> bool:
        """As :class:`~twoheads.runtime.backends.protocol.Backend` has it: not all installations can."""
        return self._shared is not None

    @cached_property
    def _shared(self) -> SharedWeights | None:
        """Keeps packed weights once; ``None`` if this installation can't, so that each engine keeps its own."""
        interface = c_interface()
        return None if interface is None else SharedWeights(interface)


def open_session(path: Path, weights: Mapping[str, npt.NDArray[Any]]) -> OnnxRuntimeEngine:
    """The file ``path``, whatever its ports are, with the arrays ``weights`` bound by name, and not copied.

    Raises:
        BundleError: It can't be opened.
    """
    backend = OnnxRuntimeBackend()
    tensors = {name: backend.tensor(array) for name, array in weights.items()}
    return OnnxRuntimeEngine(path, _open(backend.module, path, tensors, 1), tuple(tensors.values()))


def _open(
    ort: Any,
    path: Path,
    tensors: Mapping[str, Any],
    threads: int,
    *,
    own_weights: bool = False,
    packed: bool = True,
    planned: bool = True,
) -> Any:
    options = session_options(ort, threads)
    options.enable_mem_pattern = planned
    if not packed:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if tensors and (own_weights or not packed):
        # What no kernel packs is read where these lie. Constants are folded from the file, unless it is told of others.
        options.add_session_config_entry(*LENT_AS_THEY_ARE)
        for name, tensor in tensors.items():
            options.add_initializer(name, tensor)
    if tensors and not own_weights:
        # Folds them as well; but alone, what no kernel packs is copied.
        options.add_external_initializers(list(tensors), list(tensors.values()))
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise BundleError(str(path), f"ONNX Runtime can't open it: {error}", "compile the model again") from error


def session_options(ort: Any, threads: int) -> Any:
    """A session's options: kernels of ``threads`` threads, which do not spin between calls."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    for name, setting in session_settings(threads).items():
        options.add_session_config_entry(name, setting)
    return options


def session_settings(threads: int) -> dict[str, str]:
    """What such a session is told by name."""
    # Between the kernels of one call threads wait by spinning, and stop with the call: sleeping costs more.
    return {
        "session.use_env_allocators": "1",
        "session.intra_op.allow_spinning": "1" if threads > 1 else "0",
        "session.force_spinning_stop": "1",
        "session.inter_op.allow_spinning": "0",
    }


@lru_cache(maxsize=1)
def _share_arena() -> None:
    """Lets all sessions of the process take their intermediate arrays from one arena, once.

    Each session's own arena would keep what its engine once needed: 640 MB for SmolLM2's 62 stages instead of 30 MB,
    at the same speed.
    """
    import onnxruntime

    kind, place = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, onnxruntime.OrtMemType.DEFAULT
    onnxruntime.create_and_register_allocator(onnxruntime.OrtMemoryInfo("Cpu", kind, 0, place), None)


def _freeing(ort: Any) -> Any:
    """Options of a run behind which the arena of all sessions gives back what no running call uses."""
    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


class OnnxRuntimeEngine:
    """An open session, with the weights' tensors kept alive beside it; ``options`` are those of each run."""

    def __init__(self, path: Path, session: Any, weights: Sequence[Any], options: Any = None) -> None:
        self.path = path
        self.session = session
        self.weights = weights
        self.options = options
        self.inputs = tuple(port.name for port in session.get_inputs())
        self.outputs = tuple(port.name for port in session.get_outputs())

    def new_call(self) -> OnnxRuntimeCall:
        return OnnxRuntimeCall(self)


class OnnxRuntimeCall:
    """An I/O binding of one thread. About 0.3 microseconds a bind and 2 a run beyond the kernels' own time."""

    def __init__(self, engine: OnnxRuntimeEngine) -> None:
        self._path = engine.path
        self._binding = engine.session.io_binding()
        self._run = engine.session.run_with_iobinding
        self._options = engine.options
        self._bind_input = self._binding.bind_ortvalue_input
        self._bind_output = self._binding.bind_ortvalue_output
        self._inputs = engine.inputs
        self._outputs = engine.outputs

    def bind_input(self, port: int, tensor: Any) -> None:
        self._bind_input(self._inputs[port], tensor)

    def bind_output(self, port: int, tensor: Any) -> None:
        self._bind_output(self._outputs[port], tensor)

    def run(self) -> None:
        try:
            self._run(self._binding, self._options)
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise engine_failure(self._path, error) from error


def session_ports(found: Sequence[Any]) -> Ports:
    """The inputs or outputs of a session as (name, NumPy dtype, shape)."""
    return [(port.name, NUMPY_DTYPES.get(port.type, str(port.type)), tuple(port.shape)) for port in found]
