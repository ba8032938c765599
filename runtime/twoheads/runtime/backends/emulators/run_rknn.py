"""Models for Rockchip's NPU in the toolkit's simulator. It takes no ``.rknn`` file, only what that was built from."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from rknn.api import RKNN
from rknn_calls import checked, runs


def open_artifact(path: str, device: str) -> tuple[list[Any], list[Any], Any]:
    """The ports of the model beside the file ``path``, and what simulates it on the NPU of ``device``."""
    source = Path(path).with_suffix(".onnx")
    if not source.exists():
        raise ValueError("the simulator needs the model itself: build again with --check, which keeps it")
    # ONNX Runtime, which the toolkit brings along, only reads the ports.
    model = onnxruntime.InferenceSession(str(source), providers=["CPUExecutionProvider"])
    compiler = RKNN(verbose=False)
    # In half precision the first two say nothing.
    whole = {"quantized_dtype": "w8a8", "quantized_method": "channel"}
    checked("config", compiler.config(target_platform=device, float_dtype="float16", **whole))
    checked("load_onnx", compiler.load_onnx(model=str(source)))
    samples = Path(path).with_suffix(".npz")
    if samples.exists():
        with tempfile.TemporaryDirectory() as scratch:
            listed = _dataset(samples, [port.name for port in model.get_inputs()], Path(scratch))
            checked("build", compiler.build(do_quantization=True, dataset=listed))
    else:
        checked("build", compiler.build(do_quantization=False))
    checked("init_runtime", compiler.init_runtime())
    inputs, outputs = _ports(model.get_inputs()), _ports(model.get_outputs())
    return inputs, outputs, runs(compiler, outputs)


def _dataset(samples: Path, ports: list[str], folder: Path) -> str:
    """Writes the calls by whose ranges the model was built as the toolkit reads them: a line each, a file a port."""
    lines: list[str] = []
    with np.load(samples) as kept:
        for at in range(len(kept.files) // len(ports)):
            files = [folder / f"{at}.{number}.npy" for number in range(len(ports))]
            for file, port in zip(files, ports, strict=True):
                np.save(file, kept[f"{at}.{port}"])
            lines.append(" ".join(map(str, files)) + "\n")
    listed = folder / "dataset.txt"
    listed.write_text("".join(lines), encoding="utf-8")
    return str(listed)


def _ports(ports: Any) -> list[tuple[str, str, list[int]]]:
    return [(port.name, "float32", list(port.shape)) for port in ports]
