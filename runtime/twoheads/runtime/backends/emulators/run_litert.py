"""Flatbuffers of engines on LiteRT's interpreter. Their ports are numbered: the converter drops names."""

from __future__ import annotations

from typing import Any

from ai_edge_litert.interpreter import Interpreter


def open_artifact(path: str, _device: str | None) -> tuple[list[Any], list[Any], Any]:
    """The ports of the file ``path``, and what runs it."""
    interpreter = Interpreter(model_path=path, num_threads=1)
    runner = interpreter.get_signature_runner()
    given, made = runner.get_input_details(), runner.get_output_details()
    inputs, outputs = _in_order(given), _in_order(made)

    def run(arrays: list[Any]) -> list[Any]:
        # The converter narrows whole numbers to 32 bits.
        named = {name: array.astype(given[name]["dtype"]) for name, array in zip(inputs, arrays, strict=True)}
        values = runner(**named)
        return [values[name] for name in outputs]

    return _ports(given, inputs), _ports(made, outputs), run


def _in_order(details: Any) -> list[str]:
    """Names such as ``args_10`` by their number."""
    return sorted(details, key=lambda name: int(name.rpartition("_")[2]))


def _ports(details: Any, names: list[str]) -> list[tuple[str, str, list[int]]]:
    return [
        (f"#{name.rpartition('_')[2]}", details[name]["dtype"].__name__, [int(dim) for dim in details[name]["shape"]])
        for name in names
    ]
