"""Proofs of generating with small random models of the shapes of real ones, and a context of 100,000 tokens.

python -m tools.generation_proofs shapes --prompt 1 255 256 257 2000 7900 --new 300   # each step against the original
python -m tools.generation_proofs long --tokens 100000                                # bytes beside those of the plan

Prints JSON; 1 if a proof fails, or a context takes other bytes than planned.
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

__all__ = ["long", "main", "shapes"]

BLOCK = 256
SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1 << 17,
    "initializer_range": 0.15,
}
"""Of every model; weights are large enough for distinct tokens."""

PARTS = 10


def _models() -> dict[str, Any]:
    """The configurations, by name: windows of 512 and full attention in turn, biases, norms of queries and keys."""
    from transformers import Gemma3TextConfig, LlamaConfig, Qwen2Config, Qwen3Config

    small: dict[str, Any] = {**SIZES, "num_hidden_layers": 2, "hidden_size": 32}
    return {
        "gemma3": Gemma3TextConfig(**SIZES, head_dim=32, sliding_window=512, query_pre_attn_scalar=32),
        "qwen2": Qwen2Config(**SIZES),
        "qwen3": Qwen3Config(**SIZES, head_dim=32),
        "llama": LlamaConfig(**small),
    }


def _bundle(config: Any, folder: Path) -> tuple[Any, Path]:
    import torch
    import transformers

    from twoheads.compiler import compile_model
    from twoheads.export import write_bundle

    torch.manual_seed(0)
    made: Any = transformers.AutoModelForCausalLM
    model = made.from_config(config).eval()
    return model, write_bundle(compile_model(model, block_size=BLOCK), folder / config.model_type)


def shapes(names: Sequence[str], prompts: Sequence[int], new: int) -> list[dict[str, Any]]:
    """A proof for every model and length of prompt; see ``verify --generate``."""
    from twoheads.export.verification.generation.proof import verify_generation

    rows: list[dict[str, Any]] = []
    told = ("prompt_tokens", "new_tokens", "ratio", "same_tokens", "rollback_equal", "block_borders", "passed")
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            model, path = _bundle(_models()[name], Path(folder))
            for length in prompts:
                tokens = np.random.default_rng(length).integers(0, SIZES["vocab_size"], length)
                report = verify_generation(path, model, new_tokens=new, tokens=tokens).to_json()
                distinct = len(set(report["tokens"]))
                rows.append({"model": name, **{key: report[key] for key in told}, "distinct_tokens": distinct})
                sys.stderr.write(f"{rows[-1]}\n")
    return rows


def long(tokens: int) -> list[dict[str, Any]]:
    """A context of full attention that grows to so many tokens: what it holds, beside the plan's bytes."""
    from twoheads.graphs.variants.step_calls import generation_plan
    from twoheads.runtime import load

    rows: list[dict[str, Any]] = []
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        bundle = load(_bundle(_models()["llama"], Path(folder))[1])
        with bundle.open_context() as context:
            for part in range(1, PARTS + 1):
                length, began = tokens * part // PARTS, time.perf_counter()
                context.append(random.integers(0, SIZES["vocab_size"], length - 1 - len(context)))
                appended = time.perf_counter() - began
                began = time.perf_counter()
                context.step(1)
                planned = generation_plan(bundle.program, length, 1).kept_bytes
                row = {"tokens": length, "context_bytes": context.nbytes, "planned_bytes": planned}
                rows.append(row | {"append_seconds": appended, "step_seconds": time.perf_counter() - began})
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the figures."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.generation_proofs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=("shapes", "long"))
    parser.add_argument("--model", nargs="+", default=["gemma3", "qwen2", "qwen3"])
    parser.add_argument("--prompt", type=int, nargs="+", default=[1, 255, 256, 257, 2000, 7900])
    parser.add_argument("--new", type=int, default=300)
    parser.add_argument("--tokens", type=int, default=100_000)
    given = parser.parse_args(arguments)
    if given.what == "shapes":
        rows = shapes(given.model, given.prompt, given.new)
        failed = any(not row["passed"] for row in rows)
    else:
        rows = long(given.tokens)
        failed = any(row["context_bytes"] != row["planned_bytes"] for row in rows)
    told = {"rows": rows, "machine": machine(("numpy", "onnxruntime", "torch", "transformers"))}
    sys.stdout.write(json.dumps(told, indent=1) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
