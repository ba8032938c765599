"""A windowed model over a stream without end: whether its memory stays where it is, and what a token takes.

python -m tools.endless BUNDLE --tokens 200000
python -m tools.endless                         # a small random model under windows of 64 tokens

Every tenth of the stream ends in some steps of one token; the rest is appended. Prints JSON; 1 if the context grew
behind the first tenth.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tools.machine import machine
from twoheads.runtime import LoadedBundle, load

__all__ = ["main", "stream"]

PARTS, STEPS, CHUNK = 10, 40, 1000


def stream(bundle: LoadedBundle, tokens: int) -> list[dict[str, Any]]:
    """Where a context stands behind each tenth of so many random tokens."""
    random = np.random.default_rng(0)
    classes = bundle.generation.steps.tokens.limit or 2
    found: list[dict[str, Any]] = []
    with bundle.open_context() as context:
        for part in range(1, PARTS + 1):
            began, before = time.perf_counter(), len(context)
            end = tokens * part // PARTS
            while len(context) < end - STEPS:
                context.append(random.integers(0, classes, min(CHUNK, end - STEPS - len(context))))
            for token in random.integers(0, classes, end - len(context)):
                context.step(int(token))
            spent = time.perf_counter() - began
            found.append(
                {
                    "tokens": len(context),
                    "context_bytes": context.nbytes,
                    "process_bytes": _resident(),
                    "tokens_per_second": (len(context) - before) / spent,
                }
            )
    return found


def _resident() -> int | None:
    """Bytes of this process in memory now; ``None`` where the system does not tell."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="ascii").splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:")), None)


def _small(folder: Path) -> Path:
    """The bundle of a small random decoder under windows."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    from twoheads.compiler import compile_model
    from twoheads.export import write_bundle

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=64,
        max_position_embeddings=1 << 20,
    )
    model: Any = MistralForCausalLM(config)
    return write_bundle(compile_model(model.eval(), block_size=32), folder / "small.bundle")


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the figures; 1 if the context grew behind the first tenth."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.endless", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", nargs="?", type=Path, help="a small model if none is given")
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--threads", type=int, help="of the kernels")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        found = stream(load(given.bundle or _small(Path(folder)), threads=given.threads), given.tokens)
    grew = found[-1]["context_bytes"] != found[0]["context_bytes"]
    told = {"constant": not grew, "parts": found, "machine": machine(("numpy", "onnxruntime"))}
    sys.stdout.write(json.dumps(told, indent=1) + "\n")
    return int(grew)


if __name__ == "__main__":
    sys.exit(main())
