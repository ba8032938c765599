"""Reads the benchmark's figures: what is called how, and who is faster than whom."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["NAMES", "PARTS", "described", "measured", "speed_up"]

NAMES = {
    "ours": "twoheads",
    "ours-openvino": "twoheads on OpenVINO",
    "ours-openvino-bf16": "twoheads on OpenVINO, bfloat16",
    "ours-attention": "twoheads, tiles",
    "tile-engine": "our tiles' engine alone, all data at hand",
    "torch": "PyTorch, fused attention",
    "torch-attention": "PyTorch, `scaled_dot_product_attention`",
    "onnxruntime": "ONNX Runtime, whole graph",
    "onnxruntime-fixed": "ONNX Runtime, one engine of a block",
    "openvino-f32": "OpenVINO, float32",
    "openvino-default": "OpenVINO, its default",
    "llama.cpp": "llama.cpp",
}

PARTS = {
    "tokenwise": "token-wise engines",
    "attention": "attention engines, merging",
    "head": "head",
    "host": "scheduling, copies",
    "idle": "idle",
}


NOTES = {"precision": "{}", "weights": "weights {}", "padded_to": "padded to {}"}
"""What a contender may tell of a run, and how it is said."""


def speed_up(case: Mapping[str, Any]) -> dict[str, dict[int, float]]:
    """By other contender and length: its time over ours, where both have one."""
    first, *others = case["contenders"]
    ours = {row["length"]: row["seconds"] for row in measured(case, first)}
    return {
        other: {
            row["length"]: row["seconds"] / ours[row["length"]]
            for row in measured(case, other)
            if row["length"] in ours
        }
        for other in others
    }


def measured(case: Mapping[str, Any], contender: str) -> list[dict[str, Any]]:
    """The rows of a contender that have a time, by length."""
    return [row for row in case["rows"] if row["contender"] == contender and "seconds" in row]


def described(row: Mapping[str, Any]) -> str:
    """The row's contender, with what it says of how it computes."""
    detail = row.get("detail", {})
    notes = [note.format(detail[key]) for key, note in NOTES.items() if key in detail]
    return NAMES[row["contender"]] + (f" ({', '.join(notes)})" if notes else "")
