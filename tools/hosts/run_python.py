"""Python with ONNX Runtime alone: ``python run_python.py FILE.onnx < tokens.json``, in an environment of its own.

Prints the last output and the seconds of the run as JSON. Nothing of twoheads is imported.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]


def main(file: str) -> None:
    """Runs the file once."""
    options: Any = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session: Any = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    tokens = np.array([json.load(sys.stdin)], np.int64)
    began = time.perf_counter()
    values = session.run(None, {session.get_inputs()[0].name: tokens})
    seconds = time.perf_counter() - began
    print(json.dumps({"data": values[-1].reshape(-1).tolist(), "seconds": seconds}))


if __name__ == "__main__":
    main(sys.argv[1])
