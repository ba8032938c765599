"""What the attention policies cost in quality, on SmolLM2-135M; writes docs/results/approximations.json and .md.

``python -m tools.quality`` measures what is missing in the JSON file, so that an interrupted run goes on; ``--again``
forgets one group first. Each policy is compiled once, into ``.cache/quality``.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tools.fetch_models import fetch
from tools.machine import machine
from tools.quality_average import captured_heads, gentle_heads, measure_attention
from tools.quality_report import render
from twoheads.graphs.masks.policy import Policy, parse_policy
from twoheads.runtime import LoadedBundle, load

__all__ = ["main"]

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results" / "approximations.json"
BUNDLES = ROOT / ".cache" / "quality"
FILLER = ROOT / "tools" / "data" / "founding_documents.txt"
LENGTHS = (1024, 2048, 4096)
POLICIES = (
    "full",
    "window:512",
    "window:512+sinks:4",
    "average:samples=2+window:512+sinks:4",
    "average:samples=2",
)
LAYERS = (0, 10, 20, 29)
KEYS = ("73914", "20586", "48127", "61390", "95273")
DEPTHS = (0.05, 0.15, 0.25, 0.35, 0.45)

Results = dict[str, Any]


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


class _Measurements:
    """Named figures, each written to the file as soon as it is there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.results: Results = json.loads(path.read_text()) if path.exists() else {}
        self.results["machine"] = machine(("numpy", "onnxruntime", "torch", "transformers"))

    def once(self, group: str, name: str, measure: Callable[[], Any]) -> None:
        """Measures ``name`` unless the file has it."""
        entries: Results = self.results.setdefault(group, {})
        if name in entries:
            return
        entries[name] = measure()
        _say(f"{group}: {name}: {entries[name]}")
        self._path.parent.mkdir(exist_ok=True)
        self._path.write_text(json.dumps(self.results, indent=1) + "\n")


def _compiled(model: Path, policy: str) -> Path:
    """The bundle of ``policy``, compiled at its first use."""
    target = BUNDLES / policy.replace(":", "_").replace("+", "_").replace("=", "_")
    if not (target / "manifest.json").exists():
        from twoheads.compiler import compile_model
        from twoheads.export import write_bundle

        target.parent.mkdir(parents=True, exist_ok=True)
        _say(f"compiling {policy}")
        write_bundle(compile_model(model, attention=policy), target)
    return target


class _LogLikelihood:
    """A sink of logits that keeps the sum of the next tokens' negative log-likelihoods."""

    def __init__(self, tokens: npt.NDArray[np.int64]) -> None:
        self._tokens = tokens
        self.total = 0.0

    def write(self, start_row: int, rows: npt.NDArray[np.float32]) -> None:
        """Takes ``rows [count, vocabulary]`` from position ``start_row`` on; the last position has no next token."""
        targets = self._tokens[start_row + 1 : start_row + 1 + len(rows)]
        scores = rows[: len(targets)].astype(np.float64)
        top = scores.max(-1)
        sums = top + np.log(np.exp(scores - top[:, None]).sum(-1))
        self.total += float((sums - scores[np.arange(len(targets)), targets]).sum())


def _perplexity(bundle: LoadedBundle, tokens: npt.NDArray[np.int64]) -> float:
    sink = _LogLikelihood(tokens)
    bundle.run(tokens, output="logits", sink=sink)
    return float(np.exp(sink.total / (len(tokens) - 1)))


def _texts() -> dict[str, str]:
    from pydoc_data.topics import topics

    return {
        "founding documents of the United States": FILLER.read_text(encoding="utf-8"),
        "Python's language reference": "\n\n".join(topics[name] for name in sorted(topics))[:40_000],
    }


def _encode(bundle: LoadedBundle, text: str) -> npt.NDArray[np.int64]:
    if bundle.tokenizer is None:
        raise SystemExit("the model has no tokenizer")
    return np.array(bundle.tokenizer.encode(text), np.int64)


def _passkey(bundle: LoadedBundle, length: int, key: str, depth: float) -> bool:
    """Whether the five digits, hidden at ``depth`` of ``length`` tokens, are the model's own continuation, all five."""
    before = _encode(bundle, f"\nThe pass key is {key}. Remember it. {key} is the pass key.\n")
    question = _encode(bundle, "\nWhat is the pass key? The pass key is ")
    answer = _encode(bundle, key)
    filler = _encode(bundle, FILLER.read_text(encoding="utf-8"))[: length - len(before) - len(question) - len(answer)]
    at = int(depth * len(filler))
    tokens = np.concatenate([filler[:at], before, filler[at:], question, answer])
    rows = np.arange(len(tokens) - len(answer) - 1, len(tokens) - 1)
    found = bundle.run(tokens, output="logits", positions=rows).array
    return found is not None and bool((found.argmax(-1) == answer).all())


def _measure_models(kept: _Measurements, model: Path, policies: Sequence[str]) -> None:
    for policy in policies:

        @cache
        def bundle(policy: str = policy) -> LoadedBundle:
            return load(_compiled(model, policy), check="size")

        for title, text in _texts().items():
            for length in LENGTHS:

                def perplexity(text: str = text, length: int = length) -> float:
                    return _perplexity(bundle(), _encode(bundle(), text)[:length])

                kept.once("perplexity", f"{title}, {length}, {policy}", perplexity)
        for length in LENGTHS:

            def passkeys(length: int = length) -> int:
                pairs = zip(KEYS, DEPTHS, strict=True)
                return sum(_passkey(bundle(), length, key, depth) for key, depth in pairs)

            kept.once("passkey", f"{length}, {policy}", passkeys)


def _measure_attention(kept: _Measurements, model: Path) -> None:
    """Sampled attention on its own: on inputs that fit the theorem, and on those of the model's layers."""

    def gentle(mask: str) -> Results:
        policies = {f"average:samples={count}": Policy(samples=count) for count in (2, 4, 8)}
        return measure_attention(gentle_heads(4096, heads=2, width=64, spread=0.3), policies, mask)

    for mask in ("causal", "full"):
        kept.once("average", f"gentle, {mask}, 4096", partial(gentle, mask))
    kept.once(
        "average",
        "within the theorem, full, 16384",
        lambda: measure_attention(
            gentle_heads(16384, heads=1, width=4, spread=0.01),
            {"average:samples=2": Policy(samples=2)},
            "full",
            block_size=1024,
            key_tile=4096,
        ),
    )
    policies = {
        name: parse_policy(name)
        for name in (
            "window:512",
            "window:512+sinks:4",
            "average:samples=2",
            "average:samples=8",
            "average:samples=2+window:512+sinks:4",
        )
    }

    @cache
    def heads() -> dict[int, Any]:
        tokens = _encode(load(_compiled(model, "full"), check="size"), FILLER.read_text(encoding="utf-8"))
        return captured_heads(model, tokens[:4096], LAYERS)

    def of_layer(layer: int) -> Results:
        return measure_attention(heads()[layer], policies, "causal")

    for layer in LAYERS:
        kept.once("average", f"SmolLM2 layer {layer}, causal, 4096", partial(of_layer, layer))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures what is missing and renders the document."""
    parser = argparse.ArgumentParser(prog="python -m tools.quality", description=__doc__)
    parser.add_argument("--model", type=Path, help="SmolLM2-135M as a folder or .gguf file; fetched if not given")
    parser.add_argument("--again", choices=("perplexity", "passkey", "average"), help="measure this group anew")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", message="approximate")
    kept = _Measurements(RESULTS)
    if options.again:
        kept.results.pop(options.again, None)
    model: Path = options.model or fetch("smollm2")
    _measure_attention(kept, model)
    _measure_models(kept, model, POLICIES)
    RESULTS.with_suffix(".md").write_text(render(kept.results), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
