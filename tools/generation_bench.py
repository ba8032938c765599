"""Generating beside other runtimes, in turns: time to the first token, tokens a second, peak memory.

python -m tools.generation_bench MODEL.gguf --bundle OURS --bundle OURS_4_BITS    # 128, 2,048 and 8,192 tokens
python -m tools.generation_bench MODEL.gguf --bundle OURS --again                 # a second round: the better figures
python -m tools.generation_bench MODEL.gguf --bundle OURS --extra                 # copies, beginnings, 32 at once
python -m tools.generation_bench MODEL.gguf --bundle OURS --proofs 1 257 2000     # each step against the original
python -m tools.generation_bench MODEL.gguf --bundle OURS --memory                # what step engines add to a run
python -m tools.generation_bench MODEL.gguf --bundle OURS --genai FOLDER          # and ONNX Runtime GenAI, see below

Every contender loads in a process of its own for each prompt, and nobody else computes meanwhile. Whoever is not
installed, or fails, is a row with the reason. ONNX Runtime GenAI reads folders that its own builder makes
(``python -m onnxruntime_genai.models.builder -i HUGGING_FACE_FOLDER -o FOLDER -p int4 -e cpu -c CACHE --extra_options
int4_accuracy_level=4``, and ``-p fp32``). Figures are added to docs/results/generation.json, and the page beside
it is written anew.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tools.machine import machine, machine_line
from tools.markdown import table
from tools.measured_process import ProcessFailedError, measure
from twoheads.runtime.bundle.reader import read_bundle

__all__ = ["main", "page"]

LENGTHS = (128, 2048, 8192)
PACKAGES = (
    "numpy",
    "onnxruntime",
    "onnxruntime-genai",
    "openvino",
    "openvino-genai",
    "torch",
    "transformers",
    "llama-cpp-python",
)
RESULTS = Path(__file__).parents[1] / "docs" / "results" / "generation.json"
LIMIT = 900
"""Seconds that a contender may take for one prompt."""

Timed = tuple[float, list[float]]
"""Seconds until the first token, and until each token behind it."""


def _prompt(length: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(0).integers(100, 10_000, length)]


def _ours(model: str, threads: int, prompt: list[int], new: int, pages: str | None = None) -> Timed:
    from twoheads.runtime import load

    bundle = load(model, threads=threads)
    bundle.generation.open_engines(len(prompt) + new, pages)  # as those of the others are
    bundle.generate(prompt[:4], max_new_tokens=2, ignore_eos=True)
    began, times = time.perf_counter(), list[float]()
    for _ in bundle.stream(prompt, max_new_tokens=new, do_sample=False, ignore_eos=True, pages=pages):
        times.append(time.perf_counter() - began)
    return times[0], times[1:]


IN_FLOAT32: dict[str, Any] = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
}
"""Without these OpenVINO rounds values to bfloat16 and 8 bits, and keys and values to 8, as it likes."""


def _transformers(model: str, threads: int, prompt: list[int], new: int) -> Timed:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    path = Path(model)
    made: Any = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    loaded = made.eval()
    with torch.no_grad():
        loaded(torch.tensor([prompt[:4]]))
        began, times, cache = time.perf_counter(), list[float](), None
        given = torch.tensor([prompt])
        for _ in range(new):
            found = loaded(given, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, given = found.past_key_values, found.logits[:, -1:].argmax(-1)
            times.append(time.perf_counter() - began)
    return times[0], times[1:]


def _openvino(model: str, threads: int, prompt: list[int], new: int, **properties: Any) -> Timed:
    import openvino  # type: ignore[import-untyped]
    import openvino_genai  # type: ignore[import-not-found]

    pipe = openvino_genai.LLMPipeline(model, "CPU", INFERENCE_NUM_THREADS=threads, **properties)
    config = openvino_genai.GenerationConfig(max_new_tokens=new, ignore_eos=True)
    began, times = time.perf_counter(), list[float]()

    def told(_: Any) -> Any:
        times.append(time.perf_counter() - began)
        return openvino_genai.StreamingStatus.RUNNING

    def run(tokens: list[int]) -> None:
        pipe.generate(openvino.Tensor(np.array([tokens], np.int64)), config, told)

    config.max_new_tokens = 2
    run(prompt[:4])
    config.max_new_tokens, began = new, time.perf_counter()
    times.clear()
    run(prompt)
    return times[0], times[1:]


def _llama_cpp(model: str, threads: int, prompt: list[int], new: int) -> Timed:
    from llama_cpp import Llama  # type: ignore[import-not-found]

    loaded = Llama(model, n_ctx=len(prompt) + new + 8, n_threads=threads, n_threads_batch=threads, verbose=False)
    loaded.eval(prompt[:4])
    loaded.reset()
    began, times = time.perf_counter(), list[float]()
    loaded.eval(prompt)
    for _ in range(new):
        token = loaded.sample(temp=0.0)
        times.append(time.perf_counter() - began)
        loaded.eval([token])
    return times[0], times[1:]


def _onnxruntime_genai(model: str, threads: int, prompt: list[int], new: int) -> Timed:
    import onnxruntime_genai as genai  # type: ignore[import-not-found]

    config = genai.Config(model)
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    loaded = genai.Model(config)
    params = genai.GeneratorParams(loaded)
    params.set_search_options(max_length=len(prompt) + new + 8, min_length=len(prompt) + new + 8, do_sample=False)
    first = genai.Generator(loaded, params)
    first.append_tokens(prompt[:4])
    first.generate_next_token()
    del first
    generator = genai.Generator(loaded, params)
    began, times = time.perf_counter(), list[float]()
    generator.append_tokens(prompt)
    for _ in range(new):
        generator.generate_next_token()
        times.append(time.perf_counter() - began)
    return times[0], times[1:]


def _held(stage: int) -> Callable[[str, int, list[int], int], Timed]:
    """What a process does whose memory is measured: a run, and as ``stage`` says, engines are opened, tokens made."""

    def work(model: str, threads: int, prompt: list[int], new: int) -> Timed:
        from twoheads.runtime import load

        bundle = load(model, threads=threads)
        bundle.run(np.array(prompt), output="last")
        if stage >= 1:
            bundle.generation.open_engines(len(prompt) + new)
        if stage >= 2:
            bundle.generate(prompt, max_new_tokens=new, do_sample=False, ignore_eos=True)
        return 0.0, []

    return work


HELD: dict[str, Callable[[str, int, list[int], int], Timed]] = {
    "a run": _held(0),
    "and step engines open": _held(1),
    "and tokens generated": _held(2),
}
HELD_TOKENS = 512
"""Of the run and of the prompt."""

ROUNDED = "twoheads, --pages int8-steps"

CONTENDERS: dict[str, Callable[[str, int, list[int], int], Timed]] = {
    "twoheads": _ours,
    ROUNDED: partial(_ours, pages="int8-steps"),
    "transformers": _transformers,
    "OpenVINO GenAI": _openvino,
    "OpenVINO GenAI, float32": partial(_openvino, **IN_FLOAT32),
    "llama.cpp": _llama_cpp,
    "ONNX Runtime GenAI": _onnxruntime_genai,
}
OF_FOLDERS = ("twoheads", ROUNDED, "ONNX Runtime GenAI")
"""Contenders that do not read the GGUF file itself."""


def _child(name: str, model: str, threads: int, length: int, new: int) -> None:
    """Prints the figures of one contender; what its package says goes to stderr's reader."""
    first, later = {**CONTENDERS, **HELD}[name](model, threads, _prompt(length), new)
    rate = (len(later) - 1) / (later[-1] - later[0]) if len(later) > 1 else None
    sys.stdout.write("\n" + json.dumps({"first_token_seconds": first, "tokens_per_second": rate}) + "\n")


def _turn(name: str, model: str, threads: int, length: int, new: int) -> dict[str, Any]:
    words = ["--child", name, "--threads", threads, "--length", length, "--new", new]
    command = [sys.executable, "-m", "tools.generation_bench", model, *map(str, words)]
    row: dict[str, Any] = {"contender": name, "model": Path(model).name, "prompt_tokens": length}
    if name in HELD or name in ("twoheads", ROUNDED):
        manifest = read_bundle(model, check="size", engines=False).manifest
        row["model"] = f"{manifest.source.name}, {manifest.precision}"
    try:
        done = measure(["timeout", str(LIMIT), *command])
    except (ProcessFailedError, OSError) as error:
        return row | {"failed": str(error)[:200]}
    if done.code != 0:
        return row | {"failed": done.err.strip().splitlines()[-1][:200] if done.err.strip() else f"code {done.code}"}
    told: dict[str, Any] = json.loads(done.out.strip().splitlines()[-1])
    return row | told | {"peak_bytes": done.peak_bytes}


def _better(rows: list[dict[str, Any]], again: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each figure of two rounds the better one: what else a machine does only takes time and memory.

    A row that failed counts for nothing beside one that did not.

    Raises:
        ValueError: The rounds had other contenders.
    """
    if [_whose(row) for row in rows] != [_whose(row) for row in again]:
        raise ValueError("another round has the same contenders, models and prompts, in the same order")
    return [_better_row(row, other) for row, other in zip(rows, again, strict=True)]


def _better_row(row: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    if "failed" in row or "failed" in other:
        return other if "failed" in row else row
    found = row | {name: min(row[name], other[name]) for name in ("first_token_seconds", "peak_bytes")}
    rates = [rate for rate in (row["tokens_per_second"], other["tokens_per_second"]) if rate is not None]
    return found | {"tokens_per_second": max(rates, default=None)}


def _whose(row: dict[str, Any]) -> tuple[object, ...]:
    return row["contender"], row["model"], row["prompt_tokens"]


def _extra(model: str, threads: int) -> dict[str, Any]:
    """What speculation, a kept beginning and a batch of requests gain."""
    from tools.batching import measure as measure_batch
    from twoheads.runtime import load

    bundle = load(model, threads=threads)
    copied = [*_prompt(64), *_prompt(64), *_prompt(32)]
    found: dict[str, Any] = {"model": Path(model).name}
    for name, prompt in (("copied", copied), ("random", _prompt(160))):
        rates: dict[bool, float] = {}
        options: dict[str, Any] = {"max_new_tokens": 96, "ignore_eos": True, "do_sample": False}
        for speculate in (False, True, False, True):
            made: Any = bundle.generate(prompt, speculate=speculate, **options)
            rates[speculate] = max(rates.get(speculate, 0.0), made.tokens_per_second)
        found[f"speculation_{name}"] = rates[True] / rates[False]
    bundle.generation.keep_prefixes(1 << 30)
    spent: list[float] = []
    bits: list[bytes] = []
    for _ in range(2):
        with bundle.open_context() as context:
            began = time.perf_counter()
            bits.append(context.append(_prompt(4001)).tobytes())
            spent.append(time.perf_counter() - began)
    found["prefix"] = {"cold_seconds": spent[0], "warm_seconds": spent[1], "same_bits": bits[0] == bits[1]}
    bundle.generation.contexts.cache = None
    found["batch"] = measure_batch(bundle, requests=32, alone=4, prompt=100, new=32)
    return found


def _proofs(source: str, bundle: str, prompts: Sequence[int], new: int, pages: str | None) -> list[dict[str, Any]]:
    from twoheads.export.verification.generation.proof import verify_generation

    rows: list[dict[str, Any]] = []
    for length in prompts:
        report = verify_generation(bundle, source, new_tokens=new, length=length, pages=pages).to_json()
        names = ("prompt_tokens", "new_tokens", "ratio", "relative_error", "same_tokens", "rollback_equal", "passed")
        rows.append({"model": Path(bundle).name, "pages": pages, **{name: report[name] for name in names}})
    return rows


def page(found: dict[str, Any]) -> str:
    """The page of all figures."""
    lines = ["# Generating beside others", "", machine_line(found["machine"]), ""]
    rounds = found.get("rounds", 1)
    best = "" if rounds == 1 else f"; of each figure the best of {rounds} rounds"
    lines += [f"Written by `python -m tools.generation_bench`. Each contender alone, in turns{best}.", ""]
    if rows := found.get("turns"):
        lines += table(
            ("contender", "model", "prompt", "first token, s", "tokens/s", "peak, MB"), map(_turn_cells, rows), left=2
        )
    for extra in found.get("extra", ()):
        batch, prefix = extra["batch"], extra["prefix"]
        lines += [f"`{extra['model']}`:", ""]
        kept = "the same bits" if prefix["same_bits"] else "OTHER BITS"
        cold, warm = prefix["cold_seconds"], prefix["warm_seconds"]
        copied, other = extra["speculation_copied"], extra["speculation_random"]
        same = f"{batch['same_tokens']} of {batch['compared_alone']} compared have the tokens that they get alone"
        lines.append(f"- speculation: {copied:.2f} times the rate on copied text, {other:.2f} elsewhere")
        lines.append(f"- a beginning of 4,000 tokens: {cold:.2f} s cold, {warm:.2f} s warm, {kept}")
        behind, alone, at_once = (
            batch[name]
            for name in ("ratio_behind_the_prompts", "one_by_one_behind_the_prompt", "at_once_behind_the_prompts")
        )
        lines.append(
            f"- 32 requests at once: {behind:.1f} times one by one behind the prompts ({at_once:.0f} and {alone:.0f} "
            f"tokens/s), {batch['ratio']:.1f} times with them; {same}"
        )
        lines += [""]
    if rows := found.get("memory"):
        lines += [
            f"Peak memory of a process that runs {HELD_TOKENS} tokens, opens step engines, and continues them:",
            "",
        ]
        lines += [*table(("process", "model", "peak, MB"), map(_held_cells, rows), left=2), ""]
    if rows := found.get("proofs"):
        heads = ("model", "pages", "prompt", "new", "ratio to the floor", "relative error", "same tokens", "passed")
        lines += ["Each step against the original (`verify --generate`):", ""]
        lines += table(heads, map(_proof_cells, rows), left=2)
    return "\n".join(lines).rstrip() + "\n"


def _turn_cells(row: dict[str, Any]) -> tuple[object, ...]:
    start = (row["contender"], row["model"], f"{row['prompt_tokens']:,}")
    if "failed" in row:
        return (*start, row["failed"], "", "")
    rate = row["tokens_per_second"]
    rate_text = "" if rate is None else f"{rate:.1f}"
    return (*start, f"{row['first_token_seconds']:.2f}", rate_text, f"{row['peak_bytes'] / 1e6:,.0f}")


def _held_cells(row: dict[str, Any]) -> tuple[object, ...]:
    figure = row["failed"] if "failed" in row else f"{row['peak_bytes'] / 1e6:,.0f}"
    return (row["contender"], row["model"], figure)


def _proof_cells(row: dict[str, Any]) -> tuple[object, ...]:
    errors = (f"{row['ratio']:.2f}", f"{row['relative_error']:.2g}")
    verdict = "yes" if row["passed"] and row["rollback_equal"] else "NO"
    counts = (f"{row['prompt_tokens']:,}", row["new_tokens"])
    return (row["model"], row["pages"] or "", *counts, *errors, row["same_tokens"], verdict)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, and adds to the figures and the page."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.generation_bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="the GGUF file that all of them read")
    parser.add_argument("--bundle", action="append", default=[], help="of ours; several times for several")
    parser.add_argument("--genai", action="append", default=[], help="folder of ONNX Runtime GenAI's builder")
    parser.add_argument("--length", type=int, action="append", help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=33, help="new tokens")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--extra", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--proofs", type=int, nargs="+", help="prompts of so many tokens")
    parser.add_argument("--pages", help="of proofs: int8, int8-steps")
    parser.add_argument("--rounded", action="store_true", help="of turns: ours as well with --pages int8-steps")
    parser.add_argument("--again", action="store_true", help="of turns: one more round of those that are there")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.child is not None:
        _child(given.child, given.model, given.threads, given.length[0], given.new)
        return 0
    found: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {}
    found["machine"] = machine(PACKAGES)
    if given.extra:
        found["extra"] = [_extra(bundle, given.threads) for bundle in given.bundle]
    elif given.memory:
        takers = [(name, bundle) for bundle in given.bundle for name in HELD]
        found["memory"] = [_turn(*taker, given.threads, HELD_TOKENS, given.new) for taker in takers]
    elif given.proofs:
        for bundle in given.bundle:
            found.setdefault("proofs", []).extend(_proofs(given.model, bundle, given.proofs, given.new, given.pages))
    else:
        others = [(name, given.model) for name in CONTENDERS if name not in OF_FOLDERS]
        others += [("ONNX Runtime GenAI", folder) for folder in given.genai]
        own = ("twoheads", ROUNDED) if given.rounded else ("twoheads",)
        takers = [*((name, bundle) for bundle in given.bundle for name in own), *others]
        lengths = given.length or LENGTHS
        turns = [_turn(*taker, given.threads, length, given.new) for length in lengths for taker in takers]
        found["turns"] = _better(found["turns"], turns) if given.again else turns
        found["rounds"] = found.get("rounds", 1) + 1 if given.again else 1
    given.out.write_text(json.dumps(found, indent=1) + "\n")
    given.out.with_suffix(".md").write_text(page(found))
    sys.stdout.write(page(found))
    return int(any(not row["passed"] for row in found.get("proofs", ())))


if __name__ == "__main__":
    sys.exit(main())
