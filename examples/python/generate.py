"""Continues token numbers by a file that ``twoheads export --step`` wrote, with ONNX Runtime and nothing else.

    python generate.py FILE.onnx COUNT 504 2430 314      COUNT new tokens behind these

Every run takes the tokens that are new and what the last run kept of those before. Prints the new tokens and the
seconds of the prompt and of a step as one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime


def open_file(file: str) -> Any:
    """A session of the file; what the model does not take is an exception with the reason in it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # or it is told twice
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # leaves the cores to others
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def empty(port: Any) -> Any:
    """What there is of an input before the first token: no keys and values, states of zeros."""
    return np.zeros([0 if isinstance(dim, str) else dim for dim in port.shape], np.float32)


def generate(session: Any, tokens: Sequence[int], count: int) -> tuple[list[int], list[float]]:
    """The ``count`` most likely tokens behind ``tokens``, and the seconds of every run."""
    first, *kept = session.get_inputs()
    last, *present = (port.name for port in session.get_outputs())
    if last != "last" or len(kept) != len(present):
        raise SystemExit("the file does not extend a sequence: export it with --step")
    past = {port.name: empty(port) for port in kept}
    found: list[int] = []
    seconds: list[float] = []
    new = list(tokens)
    for _ in range(count):
        began = time.perf_counter()
        logits, *now = session.run(None, {first.name: np.array([new], np.int64), **past})
        seconds.append(time.perf_counter() - began)
        past = dict(zip(past, now, strict=True))  # outputs are in the order of the inputs
        new = [int(logits.argmax())]
        found += new
    return found, seconds


def main(arguments: Sequence[str]) -> int:
    """Prints what is made."""
    if len(arguments) < 3:
        print("usage: python generate.py FILE.onnx COUNT TOKEN...", file=sys.stderr)
        return 2
    file, count, *tokens = arguments
    found, seconds = generate(open_file(file), [int(token) for token in tokens], int(count))
    step = sum(seconds[1:]) / max(1, len(seconds) - 1)
    print(json.dumps({"tokens": found, "prompt_seconds": seconds[0], "step_seconds": step}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
