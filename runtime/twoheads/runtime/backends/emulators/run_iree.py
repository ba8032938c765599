"""Modules of machine code on IREE's runtime. Their ports are numbered, of shapes that the module does not tell."""

from __future__ import annotations

import re
from typing import Any

import iree.runtime
import numpy as np


def open_artifact(path: str, _device: str | None) -> tuple[list[Any], list[Any], Any]:
    """The ports of the file ``path``, and what runs it on this processor."""
    module = iree.runtime.load_vm_flatbuffer_file(path, driver="local-task")
    name = next(name for name in module.vm_module.function_names if not name.startswith("__") and "$" not in name)
    function = module[name]
    # Its calling convention, such as (0rrr_rr), counts the buffers that it takes and gives; no more is kept.
    told = re.search(r"\(0(r*)_(r*)\)", repr(module.vm_module.lookup_function(name)))
    if told is None:
        raise ValueError(f"the function {name} takes or gives what is no buffer")

    def run(arrays: list[Any]) -> list[Any]:
        results = function(*arrays)
        values = results if isinstance(results, (list, tuple)) else [results]
        return [np.asarray(value) for value in values]

    return _ports(told[1]), _ports(told[2]), run


def _ports(buffers: str) -> list[tuple[str, str, None]]:
    return [(f"#{at}", "", None) for at in range(len(buffers))]
