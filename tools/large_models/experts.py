"""A mixture of experts computed by expert, beside the same model with every expert on every token, in turns.

python -m tools.large_models.experts --scratch DIR   # writes docs/results/experts.json and docs/results/experts.md
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf

from tools.markdown import table
from twoheads.compiler import compile_model
from twoheads.export import write_bundle
from twoheads.runtime import LoadedBundle, load
from twoheads.runtime.measurement.profiler import machine_text

DOCS = Path(__file__).parents[2] / "docs" / "results"

VOCABULARY = 4096
STEPS = 8
"""Tokens that are generated, one by one."""


def main() -> int:
    """Measures, and writes the page."""
    asked = _arguments()
    asked.scratch.mkdir(parents=True, exist_ok=True)
    row = measure(asked)
    row |= {"machine": machine_text(), "day": datetime.now(UTC).date().isoformat(), "load": os.getloadavg()[0]}
    (asked.docs / "experts.json").write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
    (asked.docs / "experts.md").write_text(render(row), encoding="utf-8")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True, help="where the bundles go")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--inner", type=int, default=512)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--chosen", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--docs", type=Path, default=DOCS, help="where the page and its numbers go")
    return parser.parse_args()


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Compiles the model both ways, compares both with the library, and times runs and steps in turns."""
    model = _model(asked)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, asked.tokens)
    with torch.no_grad():
        want = model.model(torch.from_numpy(tokens)[None], use_cache=False).last_hidden_state[0].numpy()
    bundles: dict[str, LoadedBundle] = {}
    for way in ("grouped", "dense"):
        path = write_bundle(compile_model(model, experts=way), asked.scratch / way, overwrite=True)
        bundles[way] = load(path)
    del model
    found: dict[str, Any] = {"sizes": _sizes(asked)}
    times: dict[str, list[float]] = {"grouped": [], "dense": []}
    steps: dict[str, list[float]] = {"grouped": [], "dense": []}
    for turn in range(asked.turns + 1):  # the first opens engines
        for way, bundle in bundles.items():
            result = bundle.run(tokens, output="hidden")
            assert result.array is not None
            error = float(np.abs(result.array - want).max() / np.abs(want).max())
            read = result.report.expert_bytes, result.report.all_expert_bytes
            found[way] = {"error": error, "calls": result.report.engine_calls, "read": read}
            if turn:
                times[way].append(result.report.seconds)
                steps[way].append(_step_seconds(bundle, tokens[:64]))
    for way in bundles:
        found[way] |= {"seconds": statistics.median(times[way]), "step": statistics.median(steps[way])}
    return found


def _model(asked: argparse.Namespace) -> Any:
    torch.manual_seed(0)
    config = hf.OlmoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=asked.width,
        intermediate_size=asked.inner,
        num_hidden_layers=asked.layers,
        num_attention_heads=asked.width // 64,
        num_experts=asked.experts,
        num_experts_per_tok=asked.chosen,
        pad_token_id=None,
    )
    model: Any = hf.OlmoeForCausalLM(config)
    return model.eval()


def _sizes(asked: argparse.Namespace) -> dict[str, int]:
    return {name: getattr(asked, name) for name in ("layers", "width", "inner", "experts", "chosen", "tokens", "turns")}


def _step_seconds(bundle: LoadedBundle, prompt: Any) -> float:
    """Of one token behind a prompt."""
    with bundle.open_context() as context:
        context.append(prompt)
        context.step(1)
        began = time.perf_counter()
        for token in range(STEPS):
            context.step(token)
        return (time.perf_counter() - began) / STEPS


def render(row: dict[str, Any]) -> str:
    """The page."""
    sizes, grouped, dense = row["sizes"], row["grouped"], row["dense"]
    rows = [
        (
            way,
            f"{found['seconds']:.2f} s",
            f"{1000 * found['step']:.1f} ms",
            f"{found['error']:.1e}",
            f"{found['calls']:,}",
        )
        for way, found in (("grouped", grouped), ("dense", dense))
    ]
    ratios = (
        f"{dense['seconds'] / grouped['seconds']:.1f} times faster, a step {dense['step'] / grouped['step']:.1f} times"
    )
    lines = table(("experts", "run", "a step", "error", "calls"), rows, left=1)
    shape = f"{sizes['layers']} layers, {sizes['width']} wide, experts {sizes['inner']} wide"
    return f"""# Mixtures of experts by expert

An OLMoE of random weights: {shape}, {sizes["chosen"]} of {sizes["experts"]} for each token; {sizes["tokens"]:,} tokens.
The same model compiled with `--experts grouped` and `--experts dense`, run in turns; medians of {sizes["turns"]}.
Errors are those of hidden states beside the library's own code, as a share of the largest number. A step is one token
behind 64 others.

{chr(10).join(lines)}
Grouped is {ratios}. {row["machine"]}; {row["day"]}; load {row["load"]:.1f}.

`python -m tools.large_models.experts --scratch DIR`
"""


if __name__ == "__main__":
    sys.exit(main())
