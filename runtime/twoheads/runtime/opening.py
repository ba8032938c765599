"""Open a bundle for runs: what a user calls first."""

from __future__ import annotations

import os
from pathlib import Path

from twoheads.graphs.errors import InputError
from twoheads.runtime.backends.emulator import backend_on_device
from twoheads.runtime.backends.protocol import ArtifactBackend, Backend, DeviceBackend
from twoheads.runtime.backends.registry import ARTIFACT_BACKENDS, DEVICE_BACKENDS, DEVICES, LANES, open_backend
from twoheads.runtime.bundle.reader import Bundle, read_bundle
from twoheads.runtime.execution.crew import available_threads
from twoheads.runtime.runs.session import LoadedBundle

__all__ = ["load"]


def load(
    path: str | os.PathLike[str],
    *,
    backend: str | Backend = "onnxruntime",
    precision: str = "f32",
    threads: int | None = None,
    check: str = "read",
    memory_limit: int | None = None,
    spill: str | os.PathLike[str] | None = None,
    tune: str = "off",
    key_tile: int | None = None,
    fused: bool = True,
    device_memory_limit: int | None = None,
    require_signature: str | os.PathLike[str] | None = None,
) -> LoadedBundle:
    """Opens the bundle in folder ``path``.

    Args:
        path: The folder that ``twoheads compile`` wrote.
        backend: What runs the engines: ``onnxruntime`` or ``openvino`` on the CPU or on one of their
            :data:`~twoheads.runtime.backends.registry.DEVICES` (``openvino:NPU``); ``cuda`` or ``tensorrt`` on a GPU of
            NVIDIA; one of :data:`~twoheads.runtime.backends.registry.ARTIFACT_BACKENDS`; or a backend of one's own.
        precision: In what a backend of that name multiplies: ``f32``, with ``openvino`` also ``bf16``, with
            ``tensorrt``, ``openvino:GPU`` and ``openvino:NPU`` also ``f16``.
        threads: Blocks computed at the same time; ``None`` for every processor that the process may use, and for
            :data:`~twoheads.runtime.backends.protocol.LANES` streams on a device.
        check: ``read`` (sizes and sha256 of files; a weight's when a run reads it first), ``full`` (now) or ``size``.
        memory_limit: Bytes of memory that a run may take by its plan; one that does not fit is refused. What this
            process holds beside runs does not count. Of what generates it counts weights, and tells a token's cost.
        spill: A folder for files of token values: of as many, the largest first, as the limit takes, or, without a
            limit, of all large ones. The files are gone when the run is over, however it ends.
        fused: Single inputs run on engines that hold several stages, where the bundle has such. Otherwise, and on
            devices always, stage by stage like inputs that share a run: a process that runs both opens fewer engines.
        device_memory_limit: Bytes of device memory for a run, by its plan; ``None`` for all. Keys and values, then
            others, go to pinned host memory if they do not fit; weights that then do not are there for their stage.
        tune: ``quick`` or ``full`` to choose, of the key tiles that the bundle offers, those that are fastest here:
            measured once, in one or two seconds or in about ten, and kept in ``BUNDLE.tune.json`` beside the bundle.
            Results of different widths agree up to rounding. ``off`` takes the bundle's own.
        key_tile: Tokens of a key tile, one of these widths, instead of the bundle's own.
        require_signature: The file of an ed25519 public key, which must have signed the bundle (needs cryptography).

    Raises:
        BundleError: It is not a bundle, damaged, of another version, or not signed by that key.
        InputError: An argument is not one of the choices, or the backend is not installed.
    """
    folder = None if spill is None else Path(spill)
    _check_arguments(backend, threads, check, memory_limit, folder, signed=require_signature is not None)
    bundle = _read(path, backend, check, require_signature)
    count = threads or (LANES if backend in DEVICE_BACKENDS else available_threads())
    opened = open_backend(backend, precision=precision, threads=count) if isinstance(backend, str) else backend
    return LoadedBundle(
        _with_tiles(bundle, opened, precision=precision, threads=count, tune=tune, key_tile=key_tile),
        backend=opened,
        precision=precision,
        threads=count,
        memory_limit=memory_limit,
        spill=folder,
        fused=fused,
        device_memory_limit=device_memory_limit,
    )


def _name(backend: str | Backend) -> str:
    return backend if isinstance(backend, str) else backend.name


def _check_arguments(
    backend: str | Backend,
    threads: int | None,
    check: str,
    memory_limit: int | None,
    spill: Path | None,
    *,
    signed: bool,
) -> None:
    """Refuses what no bundle can be opened with."""
    if threads is not None and threads < 1:
        raise InputError("threads", f"is {threads}", "give 1 or more")
    if memory_limit is not None and memory_limit < 1:
        raise InputError("memory_limit", f"is {memory_limit}", "give bytes, 1 or more")
    if memory_limit is not None and _name(backend).partition(":")[0] in DEVICES and _name(backend) != "onnxruntime":
        problem = f"can't be kept with {_name(backend)}, which holds arrays of its own for every open engine"
        raise InputError("memory_limit", problem, "leave it out, or use onnxruntime")
    if spill is not None and not spill.is_dir():
        raise InputError("spill", f"{spill} is not a folder", "create it, or name another")
    if signed and check == "size":
        raise InputError("check", f"is {check!r}, and a signature is one of the sha256 of files", "leave it out")


def _read(
    path: str | os.PathLike[str], backend: str | Backend, check: str, key: str | os.PathLike[str] | None
) -> Bundle:
    """The bundle, signed by ``key``, whose engines the backend can run."""
    bundle = read_bundle(path, check=check, require_signature=key)
    if bundle.manifest.quantised and _name(backend) != "onnxruntime":
        problem = f"the bundle has weights of few bits ({bundle.manifest.weight_dtype}), which only onnxruntime reads"
        raise InputError("backend", problem, "use onnxruntime, or a bundle compiled without --weights")
    target = bundle.manifest.packed_for
    if target is not None and backend not in ARTIFACT_BACKENDS and not isinstance(backend, ArtifactBackend):
        problem = f"is packed for {target}: its engines are artifacts"
        fix = f"run it by --backend {backend_on_device(target)}, or the bundle that it was packed from"
        raise InputError(str(bundle.path), problem, fix)
    return bundle


def _with_tiles(
    bundle: Bundle, backend: Backend, *, precision: str, threads: int, tune: str, key_tile: int | None
) -> Bundle:
    """The bundle with the key tiles that are asked for."""
    if key_tile is not None and tune != "off":
        raise InputError("key_tile", "is given, so that there is nothing to tune", "leave out key_tile or tune")
    if key_tile is not None:
        bundle = bundle.with_key_tile(key_tile)
    if isinstance(backend, ArtifactBackend) and (tune != "off" or bundle.program.key_tile != bundle.manifest.key_tile):
        problem = f"can't be chosen with {backend.name}: artifacts are built for those of {bundle.manifest.key_tile}"
        raise InputError("key tiles", problem, "leave out tune and key_tile")
    if tune != "off" and isinstance(backend, DeviceBackend):
        problem = f"measures calls on the CPU, and {backend.name} queues them on a device"
        raise InputError("tune", problem, "leave it out, or choose a width by key_tile")
    if tune == "off":
        return bundle
    from twoheads.runtime.measurement.tuning import tuned_bundle  # which needs more than a run does

    return tuned_bundle(bundle, backend, precision=precision, threads=threads, level=tune)
