"""In processes of their own: a run needs neither torch nor onnx, and interrupts stop it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.tiny_bundle import write_tiny
from tests.runtime.tiny_model import Tiny, random_tokens
from tests.signals import process_that_heeds
from twoheads.runtime import load

ROOT = Path(__file__).parents[2]

RUN = """
import sys
{path}
import twoheads.runtime
assert "onnxruntime" not in sys.modules, "imported before it is needed"
import numpy as np
bundle = twoheads.runtime.load({bundle!r}, threads=2)
result = bundle.run(np.load({tokens!r}), output="logits")
np.save({out!r}, result.array)
heavy = {{"torch", "onnx", "transformers", "tokenizers", "hypothesis", "ray", "twoheads.compiler", "twoheads.export"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
ours = [module for name, module in sys.modules.items() if name.startswith("twoheads.")]
print(*(module.__file__ for module in ours), sep="\\n")
"""


@pytest.fixture
def case(tmp_path):
    tiny = Tiny(layers=2)
    tokens = random_tokens(tiny, 70)
    np.save(tmp_path / "tokens.npy", tokens)
    path = write_tiny(tmp_path / "bundle", tiny)
    return path, tmp_path / "tokens.npy", tmp_path / "out.npy", load(path, threads=2).run(tokens, output="logits").array


def run_code(case, path="", options=()):
    bundle, tokens, out, want = case
    code = RUN.format(path=path, bundle=str(bundle), tokens=str(tokens), out=str(out))
    done = subprocess.run(
        [sys.executable, *options, "-c", code], capture_output=True, text=True, check=False, cwd=bundle.parent
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(out), want)
    return done.stdout.split()


def test_a_run_imports_neither_torch_nor_onnx(case):
    assert run_code(case)


def test_open_engines_share_their_working_memory(tmp_path):
    """Sixty engines, each of which needs some megabytes while it runs, need them once."""
    tiny = Tiny(block_size=512, key_tile=512, layers=60, width=64, head=False)
    path = write_tiny(tmp_path / "bundle", tiny)
    code = f"""
import numpy as np
from twoheads.runtime import load
from twoheads.runtime.reports.peak_memory import peak_memory
bundle = load({str(path)!r}, threads=2)
bundle.run(np.ones(1200, np.int64))
print(peak_memory())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 190_000_000, "sixty arenas of a megabyte or more"


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
def test_an_interrupt_ends_a_long_run_at_once(tmp_path):
    path = write_tiny(tmp_path / "bundle", Tiny(masks=("full",), head=False))
    code = f"""
import numpy as np
from twoheads.runtime import load, NpzWriter
bundle = load({str(path)!r}, threads=2)
print("running", flush=True)
with NpzWriter({str(tmp_path / "out.npz")!r}) as file:
    bundle.run(np.ones(100_000, np.int64), sink=file.array("hidden", (100_000, 12)))
"""
    with process_that_heeds([sys.executable, "-c", code]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        time.sleep(0.7)  # in the middle of the first attention's 39 million tiles
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=300)
    assert "KeyboardInterrupt" in error.splitlines()[-1]
    assert [file.name for file in tmp_path.iterdir()] == ["bundle"]
