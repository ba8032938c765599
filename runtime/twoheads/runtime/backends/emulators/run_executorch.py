"""Programs of engines on ExecuTorch's runtime. Their ports are numbered: a program keeps no names."""

from __future__ import annotations

from typing import Any

import torch
from executorch.runtime import Runtime


def open_artifact(path: str, _device: str | None) -> tuple[list[Any], list[Any], Any]:
    """The ports of the file ``path``, and what runs it."""
    program = Runtime.get().load_program(path)
    method = program.load_method("forward")
    about = method.metadata
    inputs = [_port(at, about.input_tensor_meta(at)) for at in range(about.num_inputs())]
    outputs = [_port(at, about.output_tensor_meta(at)) for at in range(about.num_outputs())]

    def run(arrays: list[Any]) -> list[Any]:
        return [value.numpy() for value in method.execute([torch.from_numpy(array) for array in arrays])]

    return inputs, outputs, run


def _port(at: int, meta: Any) -> tuple[str, str, list[int]]:
    types = {torch.float32: "float32", torch.int64: "int64", torch.int32: "int32", torch.bool: "bool"}
    return f"#{at}", types.get(meta.dtype(), "float32"), list(meta.sizes())
