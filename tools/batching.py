"""Many prompts at once beside one by one: tokens a second, and whether the tokens are the same.

python -m tools.batching BUNDLE                       # 32 random prompts of about 100 tokens, 32 new tokens each
python -m tools.batching BUNDLE --alone 4 --new 16    # a slow bundle: four of them alone, as a sample of all

One by one is ``generate`` as it is, with the engine of one row. Whether tokens are the same is asked of
``generate(steady=True)``, whose bits a batch has. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from tools.machine import machine
from twoheads.runtime import LoadedBundle, load
from twoheads.runtime.generation.generated import Generated

__all__ = ["main", "measure"]


def measure(bundle: LoadedBundle, *, requests: int, alone: int, prompt: int, new: int) -> dict[str, Any]:
    """Times both on the same prompts, whose lengths differ by a fifth; the first ``alone`` of them one by one."""
    random = np.random.default_rng(0)
    classes = bundle.generation.steps.tokens.limit or 2
    lengths = random.integers(max(1, prompt * 9 // 10), prompt * 11 // 10 + 1, requests)
    prompts = [random.integers(0, classes, length).tolist() for length in lengths]
    options: dict[str, Any] = {"max_new_tokens": new, "ignore_eos": True}
    bundle.generate(prompts[0], **{**options, "max_new_tokens": 2})  # engines are open
    began = time.perf_counter()
    rates = [_one(bundle, tokens, options).tokens_per_second for tokens in prompts[:alone]]
    one_by_one = (time.perf_counter() - began) / alone * requests
    with bundle.open_batch(requests) as batch:
        batch.submit(prompts[0], **{**options, "max_new_tokens": 2})
        for _ in batch:
            pass
        began = time.perf_counter()
        made = [batch.submit(tokens, **options) for tokens in prompts]
        steps: list[float] = []
        while not batch.idle:
            before = time.perf_counter()
            if len(batch.step()) == requests:
                steps.append(time.perf_counter() - before)
        at_once = time.perf_counter() - began
    steady = [_one(bundle, tokens, {**options, "steady": True}).tokens for tokens in prompts[:alone]]
    same = sum(made[at].result().tokens == found for at, found in enumerate(steady))
    total = requests * new
    rate = requests / float(np.median(steps)) if steps else None  # of steps in which every request runs
    return {
        "requests": requests,
        "prompt_tokens": prompt,
        "new_tokens": new,
        "one_by_one_tokens_per_second": total / one_by_one,
        "at_once_tokens_per_second": total / at_once,
        "ratio": one_by_one / at_once,
        "one_by_one_behind_the_prompt": float(np.median(rates)),
        "at_once_behind_the_prompts": rate,
        "ratio_behind_the_prompts": None if rate is None else rate / float(np.median(rates)),
        "compared_alone": alone,
        "same_tokens": same,
    }


def _one(bundle: LoadedBundle, tokens: list[int], options: dict[str, Any]) -> Generated:
    made = bundle.generate(tokens, **options)
    return made[0] if isinstance(made, list) else made


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the figures; 1 if a prompt's tokens differ from those that it gets alone."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.batching", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--alone", type=int, default=8, help="prompts that are also continued one by one")
    parser.add_argument("--prompt", type=int, default=100, help="tokens of a prompt, about")
    parser.add_argument("--new", type=int, default=32, help="new tokens of each")
    parser.add_argument("--threads", type=int, help="of the kernels")
    given = parser.parse_args(arguments)
    alone = min(given.alone, given.requests)
    bundle = load(given.bundle, threads=given.threads)
    found = measure(bundle, requests=given.requests, alone=alone, prompt=given.prompt, new=given.new)
    sys.stdout.write(json.dumps({**found, "machine": machine(("numpy", "onnxruntime"))}, indent=1) + "\n")
    return int(found["same_tokens"] != alone)


if __name__ == "__main__":
    sys.exit(main())
