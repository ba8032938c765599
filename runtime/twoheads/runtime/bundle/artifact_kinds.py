"""What an artifact's own bytes say it is: of which target, and for which of its devices.

Measured on what the compilers write (OpenVINO 2026.4, LiteRT 0.10, ExecuTorch 1.5, IREE 3.13, QNN 2.51, RKNN 2.5, Core
ML Tools 9.0). Engines of NVIDIA are not judged here: its runtimes refuse those of another GPU by themselves.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from twoheads.graphs.errors import BundleError

__all__ = ["artifact_problem"]

HEAD = 4096
"""In how many bytes from its beginning a file says of which target it is."""

LONGEST = 1 << 16
"""Bytes of what names a device."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How artifacts of one target are known.

    Attributes:
        suffix: Of the file that tells.
        mark: What it has.
        at: At which byte; ``None`` for somewhere in its :data:`HEAD`.
        device: Between which bytes it names its device, if it does.
    """

    suffix: str
    mark: bytes
    at: int | None = None
    device: tuple[bytes, bytes] | None = None

    def marks(self, head: bytes) -> bool:
        """Whether a file with that beginning is of this kind."""
        return self.mark in head if self.at is None else head[self.at :].startswith(self.mark)


KINDS: Mapping[str, Kind] = {
    "coreml": Kind(".mlpackage/Manifest.json", b'"com.apple.CoreML"'),
    "executorch": Kind(".pte", b"ET12", 4),
    "iree": Kind(".vmfb", b"IREE", 72, (b'cpu_features = "', b'"')),
    "litert": Kind(".tflite", b"TFL3", 4),
    "openvino": Kind(".xml", b"<?xml", 0),
    "qnn": Kind(".onnx", b"EPContext", None, (b"soc_type=", b";")),
    "rknn": Kind(".rknn", b"RKNN", 0, (b'"target_platform":["', b'"')),
}
"""By target."""

CHIPS = {"36": "SM8450", "43": "SM8550", "57": "SM8650", "60": "SC8380XP", "69": "SM8750", "87": "SM8850"}
"""What Qualcomm's artifacts call the devices for which they are built by number."""

CPU = Path("/proc/cpuinfo")

INSTRUCTIONS = ("avx", "amx", "fma", "f16c", "sve", "sme", "i8mm", "bf16")
"""With what names begin, of LLVM as of Linux, that compilers use for loops over arrays."""


def artifact_problem(target: str, device: str | None, files: Sequence[Path]) -> str | None:
    """Why ``files`` are no artifact of ``target`` for ``device``, or for this processor; ``None`` if nothing says so.

    Args:
        target: By its name; what is unknown here is not judged.
        device: As the manifest has it.
        files: All of the artifact.

    Raises:
        BundleError: A file can't be read.
    """
    kind = KINDS.get(target)
    if kind is None:
        return None
    path = next((file for file in files if str(file).endswith(kind.suffix)), None)
    if path is None:
        return f"is no artifact of {target}: it has no {kind.suffix}"
    try:
        head, named = _read(path, kind)
    except OSError as error:
        raise BundleError(str(path), f"can't be read: {error.strerror or error}", "build the bundle again") from error
    if not kind.marks(head):
        other = next((name for name, one in KINDS.items() if one.marks(head)), None)
        return f"is no artifact of {target}" + (f", but one of {other}" if other else "")
    if named is None:
        return None
    return _lacking(named) if target == "iree" else _other_device(named, device)


def _read(path: Path, kind: Kind) -> tuple[bytes, str | None]:
    """The beginning of a file, and what it calls its device."""
    with path.open("rb") as file:
        head = file.read(HEAD)
        if kind.device is None or not kind.marks(head):
            return head, None
        before, after = kind.device
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            at = content.find(before)
            end = content.find(after, at + len(before), at + LONGEST)
            return head, content[at + len(before) : end].decode(errors="replace") if 0 <= at < end else None


def _other_device(named: str, device: str | None) -> str | None:
    wanted = device and (CHIPS.get(device) or device)
    if wanted is None or wanted.isdigit() or named == wanted:  # a number whose chip is not known here
        return None
    return f"is built for {named}, and the manifest says for {wanted}"


def _lacking(features: str) -> str | None:
    """What machine code may use and this processor has not, by the names in ``+avx512f,-avx10.1,...``."""
    if not CPU.is_file():
        return None
    lines = CPU.read_text(encoding="utf-8", errors="replace").splitlines()
    line = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    here = {_plain(name) for name in line.partition(":")[2].split()}
    used = {_plain(name[1:]) for name in features.split(",") if name.startswith("+")}
    lacking = sorted(name for name in used - here if name.startswith(INSTRUCTIONS))
    if not lacking:
        return None
    more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
    return f"is machine code that may use {', '.join(lacking[:3])}{more}, which this processor has not"


def _plain(name: str) -> str:
    """Linux says ``avx512_bf16`` and LLVM ``avx512bf16``."""
    return name.replace("_", "").replace("-", "").replace(".", "")
