"""The zoo's ONNX files as entries: exported, optimised and hand-made ones, and those that are refused."""

from __future__ import annotations

from pathlib import Path

import onnx

from tools.zoo.entry import Entry
from tools.zoo.exported_files import ZOO, ZooFile
from tools.zoo.hand_made_files import HAND_MADE, hand_made

__all__ = ["ONNX_FILES", "REFUSED_FILES"]

MAKERS = {
    "legacy": "torch.onnx.export, TorchScript",
    "dynamo": "torch.onnx.export, dynamo",
    "legacy optimised": "onnxruntime.transformers optimizer",
    "legacy optimised half": "onnxruntime.transformers optimizer, float16",
    "legacy by runtime": "ONNX Runtime, extended optimisations",
    "dynamo by runtime": "ONNX Runtime, extended optimisations",
    "dynamo for runtime": "onnxscript optimize_for_ort",
    "legacy half": "onnxruntime float16 converter",
    "native-half": "torch.onnx.export, TorchScript, model in float16",
    "legacy four bits": "onnxruntime MatMulNBits quantizer",
    "legacy static int8": "onnxruntime static quantizer, QDQ",
    "legacy dynamic int8": "onnxruntime quantize_dynamic",
    "legacy merged": "two branches of an If, as merged decoders",
    "legacy external": "onnx.save, external data",
    "dynamo external": "onnx.save, external data",
}
"""What to call the makers of exported files."""


def _exported(file: ZooFile, refusal: str | None = None) -> Entry:
    maker = f"{MAKERS[file.maker]}, opset {file.opset}, {file.attention} attention{'' if file.mask else ', no mask'}"
    return Entry(file.kind, "onnx", maker, lambda folder: file.make(folder / "model.onnx"), refusal=refusal)


def _hand_made(name: str) -> Entry:
    operator, opset, attributes = HAND_MADE[name]

    def make(folder: Path) -> Path:
        onnx.save(hand_made(operator, opset, **attributes), str(folder / "model.onnx"))
        return folder / "model.onnx"

    return Entry(name, "onnx", f"onnx.helper, opset {opset}", make)


ONNX_FILES = (*(_exported(file) for file in ZOO), *(_hand_made(name) for name in HAND_MADE))
"""What runs at any length."""

REFUSED_FILES = (_exported(ZooFile("deberta", "legacy", 17, "eager"), "terms of the scores that depend on act"),)
"""What can't be exact."""
