"""Whether each part computes on the GPU what it computes elsewhere. A part that does not raises what it found."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tools.gpu.one_step import Found

__all__ = [
    "DifferenceError",
    "device_executor",
    "driver",
    "graphs",
    "half_precision",
    "merge_kernel",
    "tensorrt_build",
    "tensorrt_provider",
]

Array = npt.NDArray[Any]
LENGTHS = (1, 63, 64, 65, 300, 1000)
FLOAT32, FLOAT16 = 1e-4, 2e-2
"""The largest error that passes, as a share of the largest magnitude."""


class _Heard(logging.Handler):
    """What the runtime warns of, from now on."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        logging.getLogger("twoheads").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps the message."""
        self.lines.append(record.getMessage())


class DifferenceError(Exception):
    """Two results differ by more than rounding; or something that should have happened did not."""


def driver(device: Any = None) -> Found:
    """Bytes to the device, within it and back."""
    from twoheads.runtime.backends.device_protocol import Rows

    device = device or _cuda_device()
    host, nbytes = np.random.default_rng(0).integers(0, 255, 1 << 20).astype(np.uint8), 1 << 20
    back, stream = device.pinned(nbytes), device.new_stream()
    first, second = device.allocate(nbytes), device.allocate(nbytes)
    device.copy(Rows(first, nbytes), Rows(host, nbytes), stream)
    device.copy(Rows(second, nbytes), Rows(first, nbytes), stream)
    device.copy(Rows(back, nbytes), Rows(second, nbytes), stream)
    device.synchronize()
    if not (np.asarray(back) == host).all():
        raise DifferenceError("a megabyte came back changed")
    for address in (first, second):
        device.free(address)
    return Found({"card": device.name, "memory": f"{device.total_bytes() / 2**30:.0f} GiB"})


def merge_kernel(device: Any = None) -> Found:
    """Partial results of attention merged by the kernel and by the host; some rows see nothing."""
    from twoheads.runtime.stages.attention.merge import merge_state

    device, random = device or _cuda_device(), np.random.default_rng(0)
    worst = 0.0
    for count, rows, width in ((1, 1, 1), (3, 33, 5), (8, 4096, 64), (2, 100, 130)):
        outs = random.standard_normal((count, rows, width)).astype(np.float32)
        lses = (40 * random.standard_normal((count, rows))).astype(np.float32)
        hidden = random.random((count, rows)) < 0.3
        hidden[:, ::5] = True
        lses[hidden], outs[hidden] = -np.inf, 0
        want = np.zeros((rows, width)), np.full(rows, -np.inf)
        for part in zip(outs.astype(np.float64), lses.astype(np.float64), strict=True):
            want = merge_state(*want, *part)
        out, lse = _merged_there(device, outs, lses)
        if not (np.isneginf(lse) == np.isneginf(want[1])).all():
            raise DifferenceError("rows that see nothing are not those of the host")
        seen = np.isfinite(want[1])
        far = np.abs(lse[seen] - want[1][seen]) / np.maximum(1, np.abs(want[1][seen]))
        worst = max(worst, float(np.abs(out - want[0]).max()), float(far.max(initial=0)))
    _require(worst, 1e-5, "a merge of rows of about 1")
    return Found({"largest difference": f"{worst:.1e}"})


def _merged_there(device: Any, outs: Array, lses: Array) -> tuple[Array, Array]:
    """The partials merged on the device."""
    from twoheads.runtime.backends import cuda_kernels
    from twoheads.runtime.backends.device_protocol import DeviceArray, Rows

    stream, arrays = device.new_stream(), (outs, lses, outs[0], lses[0])
    places = [device.allocate(array.nbytes) for array in arrays]
    for array, place in zip((outs, lses), places, strict=False):
        device.copy(Rows(place, array.nbytes), Rows(array.reshape(-1).view(np.uint8), array.nbytes), stream)
    given = [DeviceArray(place, "float32", array.shape) for place, array in zip(places, (outs, lses), strict=False)]
    cuda_kernels.merge(device, given[0], given[1], places[2], places[3], stream)
    found = [device.pinned(array.nbytes) for array in arrays[2:]]
    for host, place in zip(found, places[2:], strict=True):
        device.copy(Rows(host, host.nbytes), Rows(place, host.nbytes), stream)
    device.synchronize()
    for place in places:
        device.free(place)
    out, lse = (np.asarray(host).view(np.float32) for host in found)
    return out.reshape(outs.shape[1:]), lse


def device_executor(backend: Any = "cuda") -> Found:
    """Whole runs at lengths around a block and over many."""
    with _bundle() as bundle:
        worst = _compare(bundle, backend, LENGTHS, FLOAT32)
    return Found({"lengths": ", ".join(map(str, LENGTHS)), "largest error": f"{worst:.1e}"})


def graphs(backend: Any = None) -> Found:
    """Runs of one number of blocks: queued, recorded, replayed, and replayed for another length."""
    from twoheads.runtime import load

    backend = backend or _cuda_backend()
    replayed = _count(backend.device, "replay")
    with _bundle() as bundle:
        loaded, plain, worst = load(bundle, backend=backend), load(bundle), 0.0
        heard = _Heard()
        for length in (300, 300, 300, 290):
            tokens = _tokens(length)
            results = (one.run(tokens, output="hidden").array for one in (loaded, plain))
            worst = max(worst, _error(*results))
    _require(worst, FLOAT32, "a replayed run")
    if not replayed():
        raise DifferenceError(f"no graph was replayed: {'; '.join(heard.lines) or 'and no warning says why'}")
    return Found({"replays": str(replayed()), "largest error": f"{worst:.1e}"})


def half_precision(backend: Any = "cuda") -> Found:
    """A bundle of float16 beside one of float32 on the processor."""
    with _bundle(half=True) as narrow, _bundle() as wide:
        worst = _compare(narrow, backend, (65, 300), FLOAT16, beside=wide)
    return Found({"largest error": f"{worst:.1e}"})


def tensorrt_provider(backend: Any = "tensorrt") -> Found:
    """Whole runs by ONNX Runtime's TensorRT provider, in float32 and in float16."""
    with _bundle() as bundle:
        worst = _compare(bundle, backend, (64, 300), FLOAT32)
        half = _compare(bundle, backend, (64, 300), FLOAT16, precision="f16" if backend == "tensorrt" else "f32")
    return Found({"largest error": f"{worst:.1e}", "in float16": f"{half:.1e}"})


def tensorrt_build(target: str = "tensorrt", backend: str = "tensorrt-engine") -> Found:
    """Engines that the target's compiler builds here, run by the target's runtime."""
    from twoheads.export.accelerators.build import build_target

    with _bundle() as bundle:
        built = build_target(bundle, target)
        worst = _compare(bundle, backend, (64, 300), FLOAT32)
    compiler = f"{built.entry.compiler} {built.entry.version}"
    return Found({"compiler": compiler, "engines": str(len(built.sizes)), "largest error": f"{worst:.1e}"})


def _cuda_device() -> Any:
    from twoheads.runtime.backends.cuda_driver import CudaDevice

    return CudaDevice()


def _cuda_backend() -> Any:
    from twoheads.runtime.backends.registry import LANES, open_backend

    return open_backend("cuda", threads=LANES)


@contextmanager
def _bundle(*, half: bool = False) -> Generator[Path]:
    """The small decoder, in blocks of 64 and key tiles of two."""
    from tools.gpu.model import SMALL, Decoder, example
    from twoheads.compiler import compile_model
    from twoheads.export import narrow_values, write_bundle

    compiled = compile_model(Decoder(SMALL), example_inputs=example(), block_size=64, key_tile=128)
    with tempfile.TemporaryDirectory() as folder:
        yield write_bundle(narrow_values(compiled) if half else compiled, Path(folder) / "bundle")


def _tokens(length: int) -> Array:
    from tools.gpu.model import SMALL

    return np.random.default_rng(length).integers(0, SMALL.vocabulary, length)


def _compare(
    bundle: Path, backend: Any, lengths: tuple[int, ...], most: float, beside: Path | None = None, **how: Any
) -> float:
    """The largest error of ``bundle`` on ``backend`` beside ``beside``, or itself, on the processor."""
    from twoheads.runtime import load

    loaded, plain = load(bundle, backend=backend, **how), load(beside or bundle)
    worst = 0.0
    for length in lengths:
        tokens = _tokens(length)
        results = (one.run(tokens, output="hidden").array for one in (loaded, plain))
        worst = max(worst, _error(*results))
    _require(worst, most, f"a run of {lengths[-1]} tokens at most")
    return worst


def _error(found: Array | None, want: Array | None) -> float:
    from twoheads.export.engines.tensor_error import relative_error

    return relative_error(np.asarray(found), np.asarray(want))


def _require(found: float, most: float, what: str) -> None:
    if not found <= most:
        raise DifferenceError(f"{what} is off by {found:.1e}, and {most:.0e} is rounding")


def _count(device: Any, method: str) -> Callable[[], int]:
    """Counts the calls of a device's method from now on."""
    calls, plain = [0], getattr(device, method)

    def counted(*arguments: Any) -> Any:
        calls[0] += 1
        return plain(*arguments)

    setattr(device, method, counted)
    return lambda: calls[0]
