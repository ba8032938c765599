"""Models for Rockchip's NPU on the board itself. Their ports are told by a file that the compiler's driver writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rknn_calls import checked, runs
from rknnlite.api import RKNNLite


def open_artifact(path: str, _device: str | None) -> tuple[list[Any], list[Any], Any]:
    """The ports of the ``.rknn`` file beside the file ``path``, and what runs it on the NPU of this board."""
    declared = Path(path).with_suffix(".json")
    if not declared.exists():
        raise ValueError("nothing tells the model's ports: build again with this twoheads")
    told = json.loads(declared.read_text(encoding="utf-8"))
    inputs, outputs = ([tuple(port) for port in told[side]] for side in ("inputs", "outputs"))
    runtime = RKNNLite(verbose=False)
    checked("load_rknn", runtime.load_rknn(str(Path(path).with_suffix(".rknn"))))
    checked("init_runtime", runtime.init_runtime(core_mask=RKNNLite.NPU_CORE_AUTO))
    return inputs, outputs, runs(runtime, outputs)
