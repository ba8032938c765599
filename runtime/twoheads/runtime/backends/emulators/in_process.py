"""A vendor's runtime in this process: the same modules as in a worker's, for those that do not fall."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from twoheads.graphs.errors import BundleError
from twoheads.runtime.backends.emulators.process import LONGEST_ERROR, ArtifactPort, EmulatorError

__all__ = ["InProcess"]

HERE = Path(__file__).parent

FLUSH: Any = ctypes.CDLL(None).fflush if os.name == "posix" else None
"""C's, of all its streams."""

Ports = tuple[ArtifactPort, ...]


class InProcess:
    """One thread's artifacts of a vendor's runtime, as :class:`EmulatorProcess` has them.

    Args:
        module: The program that drives it, in ``folder``.

    Raises:
        EmulatorError: What it needs can't be imported here.
    """

    def __init__(self, module: str, folder: Path = HERE) -> None:
        file = folder / f"{module}.py"
        found = importlib.util.spec_from_file_location(f"twoheads_{module}", file)
        if found is None or found.loader is None:
            raise EmulatorError(f"there is no {file}")
        loaded = importlib.util.module_from_spec(found)
        sys.path.insert(0, str(folder))  # as in a worker: a module may build on one beside it
        try:
            with _PRINTING_TO_ERRORS:
                found.loader.exec_module(loaded)
        except Exception as error:  # whatever an import raises is told
            raise EmulatorError(f"{type(error).__name__}: {error}"[:LONGEST_ERROR]) from error
        finally:
            sys.path.remove(str(folder))
        self._module: Any = loaded
        self._open: dict[Path, tuple[Ports, Ports, Any]] = {}

    def ports(self, path: Path, device: str | None) -> tuple[Ports, Ports]:
        """The inputs and outputs of the artifact ``path``, built for ``device``, which is open from now on.

        Raises:
            BundleError: The runtime does not take it.
        """
        if path not in self._open:
            try:
                with _PRINTING_TO_ERRORS:
                    inputs, outputs, run = self._module.open_artifact(str(path.absolute()), device)
            except Exception as error:
                raise _refused(path, error) from error
            taken, made = (tuple(ArtifactPort.declared(*port) for port in side) for side in (inputs, outputs))
            self._open[path] = taken, made, run
        return self._open[path][:2]

    def run(
        self, path: Path, device: str | None, inputs: Mapping[str, npt.NDArray[Any]]
    ) -> dict[str, npt.NDArray[Any]]:
        """The outputs of the artifact ``path``, by name.

        Raises:
            BundleError: The runtime fails.
        """
        self.ports(path, device)
        taken, made, run = self._open[path]
        try:
            values = run([inputs[port.name] for port in taken])
        except Exception as error:
            raise _refused(path, error) from error
        return {port.name: np.asarray(value) for port, value in zip(made, values, strict=True)}


def _refused(path: Path, error: Exception) -> BundleError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = (lines[-1] if lines else "no message")[:LONGEST_ERROR]
    return BundleError(str(path), f"its runtime fails: {type(error).__name__}: {said}", "build the bundle again")


class _Redirection:
    """Standard output, while compiled code of any thread may print: the first of them turns it, the last one back."""

    def __init__(self) -> None:
        self._changing = threading.Lock()
        self._inside = 0
        self._kept = -1

    def __enter__(self) -> None:
        with self._changing:
            self._inside += 1
            if self._inside == 1:
                sys.stdout.flush()
                self._kept = os.dup(1)
                os.dup2(2, 1)

    def __exit__(self, *_: object) -> None:
        with self._changing:
            self._inside -= 1
            if self._inside == 0:
                if FLUSH is not None:
                    FLUSH(None)  # else lines wait in C's buffer and follow later
                os.dup2(self._kept, 1)
                os.close(self._kept)


_PRINTING_TO_ERRORS = _Redirection()
"""What compiled code prints meanwhile goes to the error stream: standard output may be one JSON document."""
