"""The package's public names are few, exist, and are importable without anything but NumPy."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import pytest

import twoheads.graphs

MODULES = [
    module.name
    for module in pkgutil.walk_packages(twoheads.graphs.__path__, "twoheads.graphs.")
    if not module.ispkg  # a room's own file says what it holds, and no more
]


def test_package_names() -> None:
    assert twoheads.graphs.__all__ == [
        "BundleError",
        "CompileError",
        "InputError",
        "InternalError",
        "Mask",
        "Program",
        "Schedule",
        "TwoheadsError",
        "make_schedule",
        "parse_mask",
        "parse_program",
        "print_program",
    ]


@pytest.mark.parametrize("name", ["twoheads.graphs", *MODULES])
def test_every_public_name_exists(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__all__, name
    assert not [public for public in module.__all__ if not hasattr(module, public)]


def test_numpy_is_all_that_it_needs() -> None:
    heavy = ["torch", "onnx", "onnxruntime", "transformers", "rich", "typer", "hypothesis"]
    code = f"import sys, twoheads.graphs; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
