"""Whether two states of this repository make the same bundles and the same results, to the bit.

``python -m tools.before_after OTHER`` compiles models with the code of the checkout ``OTHER`` and with this one, runs
them at several lengths, and compares the program's text, the weights, engine calls and every result's bits. Both sides
are driven through the command line, so any two versions can be compared that have ``compile``, ``inspect`` and ``run``.
Names of values that regions hand to each other do not count, nor in which order an engine takes its operands where all
of its stages hand them over so: the tracer of the model gives both, and the results' bits are compared as well.
The other checkout needs no environment of its own: its packages are put in front of the installed ones.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from tools.fetch_models import DEFAULT_DIR, model_path
from tools.measured_process import ProcessFailedError, measure, measure_json, twoheads_command

ROOT = Path(__file__).parent.parent
PACKAGES = ("compiler", "graphs", "export", "runtime")
LENGTHS = (1, 15, 16, 17, 53)


@dataclass(frozen=True, slots=True)
class Case:
    """A model and how it is compiled.

    Attributes:
        name: Unique.
        model: The zoo's family, or a real model's name in ``tools.fetch_models``.
        options: Of ``compile``.
        lengths: Tokens of the inputs.
        real: Whether ``model`` is a real one.
        here: Further options of this checkout's ``compile``, which the other need not have.
    """

    name: str
    model: str
    options: tuple[str, ...] = ("--block-size", "16")
    lengths: tuple[int, ...] = LENGTHS
    real: bool = False
    here: tuple[str, ...] = ()


SMALL = ("--block-size", "16")
CASES = (
    Case("llama", "Llama"),
    Case("gemma3", "Gemma 3"),
    Case("gpt-oss", "GPT-OSS, learned sinks"),
    Case("bloom", "BLOOM, ALiBi"),
    Case("mixtral", "Mixtral"),
    Case("bert", "BERT"),
    Case("t5-encoder", "T5 encoder"),
    Case("llama, stock", "Llama", (*SMALL, "--lowering", "stock")),
    Case("llama, oracle", "Llama", (*SMALL, "--lowering", "oracle")),
    Case("mistral, window", "Mistral", (*SMALL, "--lowering", "window")),
    Case("mistral, model", "Mistral", (*SMALL, "--lowering", "model")),
    Case("llama, sampled", "Llama", (*SMALL, "--attention", "average:samples=2")),
    Case("llama, sinks", "Llama", (*SMALL, "--attention", "window:16+sinks:4")),
    Case("llama, fp16", "Llama", (*SMALL, "--dtype", "fp16")),
    Case("llama, int8", "Llama", (*SMALL, "--weights", "int8")),
    Case("smollm2", "smollm2", ("--block-size", "256"), (16, 700), real=True),
    Case("smollm2, no steps", "smollm2", ("--block-size", "256"), (16, 700), real=True, here=("--no-generation",)),
    Case("minilm", "minilm", ("--block-size", "128"), (16, 400), real=True),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one side made of a case; equal sides are equal objects but for their seconds."""

    program: str
    weights: str
    results: dict[str, str]
    calls: dict[str, int]
    seconds: float


def side_environment(checkout: Path) -> dict[str, str]:
    """Of a command of one side, whose seed is fixed: Gemma 3 makes its RoPE tables in the order of a set of names."""
    paths = os.pathsep.join(str(checkout / package) for package in PACKAGES)
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}


def _make(case: Case, folder: Path) -> Path:
    """The case's model as a folder or file."""
    if case.real:
        path = model_path(case.model, ROOT / DEFAULT_DIR)
        if path is None:
            raise SystemExit(f"fetch the model first: python -m tools.fetch_models {case.model}")
        return path
    import torch

    from tools.zoo.torch_families import BACKBONES

    (entry,) = (entry for entry in BACKBONES if entry.name == case.model)
    torch.manual_seed(0)
    module = entry.make(folder)
    module.save_pretrained(folder / "model")
    return folder / "model"


def _outcome(checkout: Path, case: Case, model: Path, folder: Path) -> Outcome:
    folder.mkdir()
    bundle = folder / "bundle"
    before = dict(os.environ)
    os.environ.update(side_environment(checkout))
    try:
        options = (*case.options, *(case.here if checkout == ROOT else ()))
        done = measure(twoheads_command("compile", model, "-o", bundle, *options))
        if done.code:
            raise ProcessFailedError(f"compile of {case.name}: {done.err}")
        _, told = measure_json(twoheads_command("inspect", bundle, "--program", "--json"))
        results, calls = {}, {}
        for length, output in _runs(case, told):
            key = f"{output} at {length}"
            results[key], calls[key] = _run(bundle, folder, length, output, told)
    finally:
        os.environ.clear()
        os.environ.update(before)
    weights = sha256((bundle / "engines" / "weights.bin").read_bytes()).hexdigest()
    return Outcome(told["program"], weights, results, calls, done.seconds)


def _runs(case: Case, told: dict[str, Any]) -> Iterator[tuple[int, str]]:
    outputs = ["hidden"]
    outputs += ["last"] if "output logits" in told["program"] else []
    outputs += ["embedding"] if "\npooling" in told["program"] else []
    for length in case.lengths:
        for output in outputs:
            yield length, output


def _run(bundle: Path, folder: Path, length: int, output: str, told: dict[str, Any]) -> tuple[str, int]:
    """The result's digest, and its engine calls."""
    vocabulary = int(told["program"].split(" = argument < ", 1)[1].split()[0])
    tokens, out, report = folder / "tokens.npy", folder / "out.npz", folder / "report.json"
    np.save(tokens, np.random.default_rng(length).integers(3, vocabulary, length))
    words = ("run", bundle, "--tokens", tokens, "-o", out, "--output", output, "--report", report, "--threads", 2)
    done = measure(twoheads_command(*words))
    if done.code:
        raise ProcessFailedError(f"{' '.join(map(str, words))}: {done.err}")
    with np.load(out) as arrays:
        (name,) = arrays.files
        digest = sha256(np.ascontiguousarray(arrays[name]).tobytes()).hexdigest()
    calls = json.loads(report.read_text(encoding="utf-8"))["engine_calls"]
    out.unlink()
    report.unlink()
    return digest, calls


def _differences(before: Outcome, after: Outcome) -> list[str]:
    found = ["program"] if _ordered(before.program) != _ordered(after.program) else []
    found += ["weights"] if before.weights != after.weights else []
    for key in before.results:
        found += [f"bits of {key}"] if before.results[key] != after.results.get(key) else []
        found += [f"calls of {key}"] if before.calls[key] != after.calls.get(key) else []
    return found


def _how_alike(before: str, after: str) -> str:
    """Of programs that do not differ."""
    if before == after:
        return "program"
    same = _numbered(before) == _numbered(after)
    return "program but for names of values" if same else "program but for the order of operands"


def _numbered(program: str) -> str:
    """The text with the values of regions named by when they are first made: the tracer numbers its operators."""
    names: dict[str, str] = {}
    return _VALUE.sub(lambda found: names.setdefault(found[0], f"%{len(names)}"), program)


def _ordered(program: str) -> str:
    """The same, with the operands of an engine of a region in the order of their names in its first stage."""
    orders: dict[str, list[int]] = {}

    def handed_over(found: re.Match[str]) -> str:
        values = found[2].split(", ")
        order = orders.setdefault(found[1], sorted(range(len(values)), key=values.__getitem__))
        return f"= @{found[1]}({', '.join(values[at] for at in order)})"

    def taken(found: re.Match[str]) -> str:
        types = _PORT.findall(found[2])
        return f"engine @{found[1]}: ({', '.join(types[at] for at in orders.get(found[1], range(len(types))))})"

    return _ENGINE.sub(taken, _STAGE.sub(handed_over, _numbered(program)))


_STAGE = re.compile(r"= @(tokenwise_\d+)\(([^)]*)\)")
_ENGINE = re.compile(r"engine @(tokenwise_\d+): \(([^)]*)\)")
_PORT = re.compile(r"input_\d+: (\w+\[[^\]]*\])")
_VALUE = re.compile(r"%region_\d+\.[^\s:,()]+")


def main(arguments: Sequence[str] | None = None) -> int:
    """Compares, prints a line a case; returns 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="a checkout of the state before")
    parser.add_argument("--only", nargs="+", default=[case.name for case in CASES], help="names of cases")
    options = parser.parse_args(arguments)
    differ = 0
    for case in (case for case in CASES if case.name in options.only):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            model = _make(case, folder)
            before = _outcome(options.other.resolve(), case, model, folder / "before")
            after = _outcome(ROOT, case, model, folder / "after")
        found = _differences(before, after)
        differ += bool(found)
        alike = _how_alike(before.program, after.program)
        what = ", ".join(found) or f"equal: {alike}, weights, {len(before.results)} results and their calls"
        print(f"{case.name:18} {what} (compiled in {before.seconds:.1f} and {after.seconds:.1f} s)", flush=True)
    print(f"{differ} cases differ" if differ else "no case differs")
    return min(differ, 1)


if __name__ == "__main__":
    sys.exit(main())
