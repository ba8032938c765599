"""An emulator's process, as the runtime sees it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy.typing as npt

from twoheads.graphs.errors import BundleError
from twoheads.graphs.scratch import scratch_folder
from twoheads.runtime.backends.emulators.emulate import read_message, write_message

__all__ = ["ArtifactPort", "EmulatorError", "EmulatorProcess"]

LONGEST_ERROR = 300
"""Characters of an emulator's message that are repeated."""


@dataclass(frozen=True, slots=True)
class ArtifactPort:
    """A port of an artifact, as its emulator declares it.

    Attributes:
        name: The engine's port; or ``#2``, the engine's third one, where an artifact keeps no names.
        dtype: NumPy's name.
        shape: ``None`` where an artifact does not tell.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] | None

    @classmethod
    def declared(cls, name: str, dtype: str, shape: Sequence[int] | None) -> ArtifactPort:
        """Of what ``open_artifact`` tells."""
        return cls(name, dtype, None if shape is None else tuple(shape))


class EmulatorError(Exception):
    """The last line of what an emulator or its process says of its failure."""


class EmulatorProcess:
    """One worker, started now and ended with this object. One thread at a time may use it.

    Args:
        python: That of the environment with the emulator.
        module: The program beside the worker's that drives it.

    Raises:
        EmulatorError: It can't be started there.
    """

    def __init__(self, python: Path, module: str) -> None:
        # Not this environment's packages, nor the checkout's, where the emulator has an environment of its own.
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        kept = contextlib.ExitStack()
        folder = kept.enter_context(scratch_folder())  # some emulators leave files where they start
        self._process = subprocess.Popen(  # noqa: S603 - the environment's own Python, with our own program
            [str(python), str(Path(__file__).with_name("emulate.py")), module],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        weakref.finalize(self, _end, self._process, kept)
        self._open: dict[Path, tuple[tuple[ArtifactPort, ...], tuple[ArtifactPort, ...]]] = {}
        self._answer()

    def ports(self, path: Path, device: str | None) -> tuple[tuple[ArtifactPort, ...], tuple[ArtifactPort, ...]]:
        """The inputs and outputs of the artifact ``path``, built for ``device``, which is open from now on.

        Raises:
            BundleError: The emulator does not take it, or ended.
        """
        if path not in self._open:
            answer, _ = self._ask(path, {"open": str(path.absolute()), "device": device})
            inputs, outputs = (
                tuple(ArtifactPort.declared(*port) for port in answer[side]) for side in ("inputs", "outputs")
            )
            self._open[path] = inputs, outputs
        return self._open[path]

    def run(
        self, path: Path, device: str | None, inputs: Mapping[str, npt.NDArray[Any]]
    ) -> dict[str, npt.NDArray[Any]]:
        """The outputs of the artifact ``path``, by name.

        Raises:
            BundleError: The emulator fails, or ended.
        """
        self.ports(path, device)
        return self._ask(path, {"run": str(path.absolute())}, dict(inputs))[1]

    def _ask(
        self, path: Path, message: dict[str, Any], arrays: dict[str, npt.NDArray[Any]] | None = None
    ) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        try:
            with contextlib.suppress(BrokenPipeError):  # what became of the process is what its answer says
                write_message(cast("Any", self._process.stdin), message, arrays)
            return self._answer()
        except EmulatorError as error:
            raise BundleError(str(path), f"its emulator fails: {error}", "build the bundle again") from error

    def _answer(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        try:
            answer, values = read_message(cast("Any", self._process.stdout))
        except EOFError:
            code = self._process.wait()
            self._log.seek(0)
            printed = _last_line(self._log.read().decode(errors="replace"))
            said = f"; the last that it printed is: {printed}" if printed else " and no message"
            raise EmulatorError(f"it ended with {code}{said}") from None
        if "error" in answer:
            raise EmulatorError(_last_line(answer["error"]) or "no message")
        return answer, values


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:LONGEST_ERROR] if lines else ""


def _end(process: subprocess.Popen[bytes], kept: contextlib.ExitStack) -> None:
    """Ends the worker, whatever it does, and removes what it left."""
    process.kill()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
    process.wait()
    kept.close()
