"""The kernels' Triton source, in Triton's interpreter, against the host's arithmetic; and the PTX that is shipped."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from twoheads.export import device_kernels
from twoheads.runtime.backends.cuda_kernels import KERNELS, kernel_image

ROOT = Path(__file__).parents[2]

INTERPRETED = """
import numpy as np, torch
from twoheads.export.device_kernels import COLUMNS, merge_state, zero_tail
from twoheads.runtime.stages.attention import merge
from twoheads.runtime.backends.cuda_kernels import MERGE_ROWS, ZERO_BYTES

random = np.random.default_rng(0)
for count, rows, width in ((1, 1, 1), (3, 33, 5), (9, 20, 130), (2, 16, 64)):
    outs = random.standard_normal((count, rows, width)).astype(np.float32)
    lses = (40 * random.standard_normal((count, rows))).astype(np.float32)
    empty = random.random((count, rows)) < 0.3
    empty[:, :: 5] = True  # rows that see nothing at all
    lses[empty], outs[empty] = -np.inf, 0
    out, lse = np.full((rows, width), np.nan, np.float32), np.full(rows, np.nan, np.float32)
    tensors = [torch.from_numpy(array) for array in (outs, lses, out, lse)]
    grid = (-(-rows // MERGE_ROWS),)
    merge_state[grid](*tensors, count, rows, width, ROWS=MERGE_ROWS, COLUMNS=COLUMNS)
    want = np.zeros((rows, width)), np.full(rows, -np.inf)
    for part in zip(outs.astype(np.float64), lses.astype(np.float64)):
        want = merge.merge_state(*want, *part)
    np.testing.assert_allclose(out, want[0], rtol=0, atol=2e-6)
    np.testing.assert_allclose(lse, want[1], rtol=1e-6, atol=2e-6)
    assert np.isneginf(lse[:: 5]).all() and not out[:: 5].any()

for outer, tokens, inner, real in ((1, 16, 3, 0), (3, 16, 20, 5), (2, 48, 33, 48)):
    tile = random.integers(1, 255, (outer, tokens, inner)).astype(np.uint8)
    want = tile.copy()
    want[:, real:] = 0
    grid = (-(-tile.size // ZERO_BYTES),)
    counts = torch.tensor([real], dtype=torch.int32)
    zero_tail[grid](torch.from_numpy(tile), counts, outer, tokens, inner, BYTES=ZERO_BYTES)
    np.testing.assert_array_equal(tile, want)
print("equal")
"""


def test_the_interpreter_gives_what_the_host_merges():
    path = ":".join(str(ROOT / folder) for folder in ("graphs", "compiler", "export", "runtime"))
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": path, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "equal\n"


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_the_shipped_code_is_of_this_source_and_takes_these_arguments(kernel):
    text = kernel_image(kernel).rstrip(b"\0").decode()
    assert text.splitlines()[0] == f"// source {device_kernels.source_digest(kernel)}", (
        "run `python -m twoheads.export.device_kernels`"
    )
    ((entry, parameters),) = re.findall(r"\.visible \.entry (\w+)\((.*?)\)", text, re.DOTALL)
    assert entry == kernel.name
    kinds = "".join({"u64": "p", "u32": "i"}[kind] for kind in re.findall(r"\.param \.(\w+)", parameters))
    assert kinds == kernel.parameters + "pp"  # the launch adds two addresses of scratch memory, which are not used
    assert re.findall(r"\.reqntid (\d+)", text) == [str(kernel.threads)]
    assert str(ROOT) not in text


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_nvidias_assembler_takes_the_code(kernel, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    ptx, cubin = device_kernels.compile_kernel(kernel)
    assert f".entry {kernel.name}(" in ptx
    assert cubin[:4] == b"\x7fELF"
