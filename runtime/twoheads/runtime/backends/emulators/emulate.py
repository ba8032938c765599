"""Runs one vendor's emulator in its own environment: ``PYTHON emulate.py MODULE``, told what to do on its input.

Nothing of twoheads is imported, for the environment need not have it. ``MODULE``, a file beside this one, has
``open_artifact(path, device)``, which gives ``(inputs, outputs, run)``: the ports as ``(name, dtype, shape)``, and a
function from input arrays in that order to output arrays in theirs. An artifact without names has ports ``#0``, ``#1``,
...; a shape that it does not tell is ``None``.

Once the module is there it says ``{"ready": MODULE}``. A message is a line of JSON, followed by the bytes of the arrays
that it lists, each ``[name, dtype, shape]``:

* ``{"open": PATH, "device": NAME}`` is answered by ``{"inputs": [...], "outputs": [...]}``, with no bytes after it;
* ``{"run": PATH, "arrays": [...]}``, the inputs of an artifact that is open, by ``{"arrays": [...]}``, its outputs;
* what went wrong, by ``{"error": MESSAGE}``.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from typing import Any, BinaryIO

import numpy as np

__all__ = ["read_message", "write_message"]


def write_message(stream: BinaryIO, message: dict[str, Any], arrays: dict[str, Any] | None = None) -> None:
    """Writes one message with the arrays ``arrays``, by name."""
    if arrays is not None:
        message = {**message, "arrays": [[name, str(array.dtype), array.shape] for name, array in arrays.items()]}
    stream.write(json.dumps(message).encode() + b"\n")
    for array in (arrays or {}).values():
        stream.write(np.ascontiguousarray(array).data.cast("B"))
    stream.flush()


def read_message(stream: BinaryIO) -> tuple[dict[str, Any], dict[str, Any]]:
    """One message and its arrays, by name.

    Raises:
        EOFError: The other side is gone.
    """
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    message = json.loads(line)
    arrays: dict[str, Any] = {}
    for name, dtype, shape in message.get("arrays", ()):
        array = np.empty(shape, dtype)
        left = memoryview(array.data).cast("B")
        while left:
            count = stream.readinto(left)  # type: ignore[attr-defined]
            if not count:
                raise EOFError
            left = left[count:]
        arrays[name] = array
    return message, arrays


def main(arguments: list[str]) -> int:
    """Answers messages until there are no more. What vendors' libraries print goes to the error stream."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    artifacts: dict[str, Any] = {}
    try:
        emulator: Any = importlib.import_module(arguments[0])
    except Exception as error:  # noqa: BLE001 - whatever an import raises is told
        write_message(answers, {"error": f"{type(error).__name__}: {error}"})
        return 1
    write_message(answers, {"ready": arguments[0]})
    while True:
        try:
            message, arrays = read_message(requests)
        except EOFError:
            return 0
        try:
            if "open" in message:
                artifacts[message["open"]] = opened = emulator.open_artifact(message["open"], message["device"])
                write_message(answers, {"inputs": opened[0], "outputs": opened[1]})
            else:
                inputs, outputs, run = artifacts[message["run"]]
                values = run([arrays[port[0]] for port in inputs])
                write_message(answers, {}, {port[0]: np.asarray(v) for port, v in zip(outputs, values, strict=True)})
        except Exception as error:  # noqa: BLE001 - whatever an emulator raises is its answer
            traceback.print_exc()
            write_message(answers, {"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
