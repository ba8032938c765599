"""Those who take part, each alone in a process of its own (``tools.bench.child``).

A contender imports its packages, loads its model when it is made, and then runs inputs of any length on command.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tools.bench.inputs import Q_HEADS, attention_inputs, token_input

__all__ = ["CONTENDERS", "Contender", "Setting", "Timing"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Setting:
    """What a contender is made from.

    Attributes:
        threads: It may use.
        vocabulary: See :class:`tools.bench.cases.Case`.
        longest: The longest input of the case.
        block_size: Of our bundle, and of an engine of fixed size.
        paths: What was prepared for the model: its ``source``, ``bundle``, ``onnx``.
    """

    threads: int
    vocabulary: int
    longest: int
    block_size: int
    paths: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Timing:
    """One run: wall time from the call to the result, and what else the contender tells, as JSON has it."""

    seconds: float
    detail: dict[str, Any]


class Contender(Protocol):
    """What the child process asks of a contender."""

    def result(self, length: int) -> Array | None:
        """The last hidden states ``[length, width]``, to be compared with the others'; ``None`` if it hides them."""
        ...

    def run(self, length: int) -> Timing:
        """Runs the input of ``length`` tokens once."""
        ...


def _timed(run: Callable[[], object], **detail: Any) -> Timing:
    began = time.perf_counter()
    run()
    return Timing(time.perf_counter() - began, detail)


class _Ours:
    """The bundle on a backend, every engine call timed. Where ``stages`` names a kind, its stages alone count."""

    def __init__(
        self, setting: Setting, *, stages: str | None = None, backend: str = "onnxruntime", precision: str = "f32"
    ) -> None:
        from twoheads.runtime import load
        from twoheads.runtime.backends.registry import open_backend
        from twoheads.runtime.measurement.timed_backend import TimedBackend

        self._backend = TimedBackend(open_backend(backend, precision=precision, threads=setting.threads))
        self._bundle = load(setting.paths["bundle"], backend=self._backend, threads=setting.threads)
        self._precision = precision
        self._vocabulary = setting.vocabulary
        self._stages = stages

    def _input(self, length: int) -> Array:
        if self._stages is None:
            return token_input(length, self._vocabulary)
        rows = [part.swapaxes(0, 1).reshape(length, -1) for part in attention_inputs(length)]
        return np.concatenate(rows, 1)

    def result(self, length: int) -> Array | None:
        return self._bundle.run(self._input(length), "hidden").array

    def run(self, length: int) -> Timing:
        from twoheads.runtime.measurement.timed_backend import run_timed

        run = run_timed(self._bundle, self._backend, self._input(length), "hidden")
        schedule = self._bundle.schedule(length, "hidden")
        detail: dict[str, Any] = {
            "engine_calls": run.report.engine_calls,
            "flops": schedule.flops,
            "planned_peak_bytes": schedule.peak_bytes,
            "breakdown": asdict(run.breakdown),
        }
        if self._precision != "f32":
            detail["precision"] = self._precision
        if self._stages is None:
            return Timing(run.seconds, detail)
        return Timing(sum(stage.seconds for stage in run.report.stages if stage.kind == self._stages), detail)


class _TileEngine:
    """No contender: our tiles' engine alone, all data at hand, for as many tiles as exact causal attention fills."""

    def __init__(self, setting: Setting) -> None:
        from twoheads.graphs.program.program import AttentionEngine
        from twoheads.runtime.backends.registry import open_backend
        from twoheads.runtime.bundle.reader import read_bundle
        from twoheads.runtime.measurement.engine_meter import EngineMeter

        bundle = read_bundle(setting.paths["bundle"])
        self._threads = setting.threads
        self._engine = next(engine for engine in bundle.program.engines if isinstance(engine, AttentionEngine))
        self._meter = EngineMeter(bundle, open_backend("onnxruntime"), (setting.threads,), lambda _file: None)

    def result(self, length: int) -> Array | None:
        return None

    def run(self, length: int) -> Timing:
        calls = {times.variant: times.call_seconds[str(self._threads)] for times in self._meter.attention(self._engine)}
        tiles = length * (length + 1) / 2 / self._engine.block_size / self._engine.key_tile
        return Timing(tiles * calls["full_add"] / self._threads, {})


class _Torch:
    """The original by PyTorch with its fused attention."""

    def __init__(self, setting: Setting) -> None:
        import torch

        from twoheads.compiler.frontend.torch.load_source import load_source

        torch.set_num_threads(setting.threads)
        torch.set_grad_enabled(False)
        source = load_source(setting.paths["source"])
        self._model: Any = source.module
        self._model = getattr(self._model, "base_model", self._model)
        self._tensor = torch.from_numpy
        self._vocabulary = setting.vocabulary

    def _hidden(self, length: int) -> Any:
        ids = self._tensor(token_input(length, self._vocabulary)[None])
        return self._model(input_ids=ids, use_cache=False)[0]

    def result(self, length: int) -> Array | None:
        hidden: Array = self._hidden(length)[0].numpy()
        return hidden

    def run(self, length: int) -> Timing:
        return _timed(lambda: self._hidden(length), attention=self._model.config._attn_implementation)


class _TorchAttention:
    """``scaled_dot_product_attention`` alone; keys and values are repeated for it before the clock starts.

    Its fused kernel takes grouped heads only so; with ``enable_gqa`` it would repeat them within the time.
    """

    def __init__(self, setting: Setting) -> None:
        import torch

        torch.set_num_threads(setting.threads)
        self._tensor = torch.from_numpy
        self._attention = torch.nn.functional.scaled_dot_product_attention

    def _arrays(self, length: int) -> list[Any]:
        tensors = (self._tensor(part)[None] for part in attention_inputs(length))
        return [tensor.repeat_interleave(Q_HEADS // tensor.shape[1], 1).contiguous() for tensor in tensors]

    def result(self, length: int) -> Array | None:
        q, k, v = self._arrays(length)
        out = self._attention(q, k, v, is_causal=True)
        rows: Array = out[0].transpose(0, 1).reshape(length, -1).numpy()
        return rows

    def run(self, length: int) -> Timing:
        q, k, v = self._arrays(length)
        return _timed(lambda: self._attention(q, k, v, is_causal=True))


class _OnnxRuntime:
    """ONNX Runtime on the whole graph; where ``fixed``, compiled for inputs of one block, which are padded to it."""

    def __init__(self, setting: Setting, *, fixed: bool = False) -> None:
        import onnxruntime  # type: ignore[import-untyped]

        options: Any = onnxruntime.SessionOptions()
        options.intra_op_num_threads = setting.threads
        options.log_severity_level = 3
        self._size = setting.block_size if fixed else None
        if fixed:
            options.add_free_dimension_override_by_name("tokens", setting.block_size)
        self._session: Any = onnxruntime.InferenceSession(setting.paths["onnx"], options, ["CPUExecutionProvider"])
        self._vocabulary = setting.vocabulary

    def _hidden(self, length: int) -> Array:
        ids = token_input(length, self._vocabulary)
        if self._size is not None:
            ids = np.pad(ids, (0, self._size - length))
        hidden: Array = self._session.run(None, {"input_ids": ids[None]})[0]
        return hidden

    def result(self, length: int) -> Array | None:
        return self._hidden(length)[0, :length]

    def run(self, length: int) -> Timing:
        return _timed(lambda: self._hidden(length), **({"padded_to": self._size} if self._size else {}))


class _OpenVino:
    """OpenVINO on the same graph, in float32 or in the precision that it chooses by itself."""

    def __init__(self, setting: Setting, precision: str | None) -> None:
        core: Any = import_module("openvino").Core()
        wanted: dict[str, Any] = {"INFERENCE_NUM_THREADS": setting.threads}
        if precision is not None:
            wanted["INFERENCE_PRECISION_HINT"] = precision
        model: Any = core.compile_model(setting.paths["onnx"], "CPU", wanted)
        self._precision = model.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        self._request: Any = model.create_infer_request()
        self._vocabulary = setting.vocabulary

    def result(self, length: int) -> Array | None:
        hidden: Array = np.array(self._request.infer({0: token_input(length, self._vocabulary)[None]})[0][0])
        return hidden

    def run(self, length: int) -> Timing:
        ids = token_input(length, self._vocabulary)[None]
        return _timed(lambda: self._request.infer({0: ids}), precision=self._precision)


class _LlamaCpp:
    """llama.cpp on the quantised weights of the GGUF file; its own clock tells the time of the prompt."""

    def __init__(self, setting: Setting) -> None:
        xllamacpp: Any = import_module("xllamacpp")
        parameters: Any = xllamacpp.CommonParams()
        parameters.model.path = setting.paths["source"]
        parameters.n_ctx = setting.longest + 64
        parameters.n_parallel = parameters.n_predict = 1
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = setting.threads
        parameters.cache_prompt, parameters.cache_ram_mib = False, 0
        self._server = xllamacpp.Server(parameters)
        self._vocabulary = setting.vocabulary

    def result(self, length: int) -> Array | None:
        self.run(length)
        return None

    def run(self, length: int) -> Timing:
        prompt = token_input(length, self._vocabulary).tolist()
        answer = self._server.handle_completions({"prompt": prompt, "n_predict": 1, "cache_prompt": False})
        told = json.loads(answer) if isinstance(answer, str) else answer
        if "timings" not in told or told["timings"]["prompt_n"] != length:
            raise RuntimeError(f"llama.cpp answers {str(told)[:300]}")
        return Timing(told["timings"]["prompt_ms"] / 1000, {"weights": "quantised as in the file"})


class _Peak:
    """No contender: the float32 matrix products that this machine reaches. The length does not matter."""

    def __init__(self, setting: Setting) -> None:
        from twoheads.export.bench.matrix_peak import MatrixPeak
        from twoheads.runtime.backends.registry import open_backend

        self._peak = MatrixPeak(open_backend("onnxruntime"), setting.threads)

    def result(self, length: int) -> Array | None:
        self._peak.measure()
        return None

    def run(self, length: int) -> Timing:
        began = time.perf_counter()
        rate = self._peak.measure()
        return Timing(time.perf_counter() - began, {"flops_per_second": rate})


CONTENDERS: dict[str, Callable[[Setting], Contender]] = {
    "ours": _Ours,
    "ours-openvino": lambda setting: _Ours(setting, backend="openvino"),
    "ours-openvino-bf16": lambda setting: _Ours(setting, backend="openvino", precision="bf16"),
    "ours-attention": lambda setting: _Ours(setting, stages="attention"),
    "tile-engine": _TileEngine,
    "torch": _Torch,
    "torch-attention": _TorchAttention,
    "onnxruntime": _OnnxRuntime,
    "onnxruntime-fixed": lambda setting: _OnnxRuntime(setting, fixed=True),
    "openvino-f32": lambda setting: _OpenVino(setting, "f32"),
    "openvino-default": lambda setting: _OpenVino(setting, None),
    "llama.cpp": _LlamaCpp,
    "peak": _Peak,
}
