"""Models for Rockchip's NPU on the board itself. Their ports are told by a file that the compiler's driver writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rknnlite.api import RKNNLite


def open_artifact(path: str, _device: str | None) -> tuple[list[Any], list[Any], Any]:
    """The ports of the ``.rknn`` file beside the file ``path``, and what runs it on the NPU of this board."""
    declared = Path(path).with_suffix(".json")
    if not declared.exists():
        raise ValueError("nothing tells the model's ports: build again with this twoheads")
    told = json.loads(declared.read_text(encoding="utf-8"))
    inputs, outputs = ([tuple(port) for port in told[side]] for side in ("inputs", "outputs"))
    runtime = RKNNLite(verbose=False)
    _checked("load_rknn", runtime.load_rknn(str(Path(path).with_suffix(".rknn"))))
    _checked("init_runtime", runtime.init_runtime(core_mask=RKNNLite.NPU_CORE_AUTO))
    shapes = [port[2] for port in outputs]

    def run(arrays: list[Any]) -> list[Any]:
        values = runtime.inference(inputs=arrays, data_format=["nchw"] * len(arrays))
        if values is None:
            raise ValueError("inference failed")
        return [value.reshape(shape) for value, shape in zip(values, shapes, strict=True)]

    return inputs, outputs, run


def _checked(step: str, code: int) -> None:
    if code != 0:
        raise ValueError(f"{step} failed with {code}")
