"""Renders docs/results/large_models.md from what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from string import ascii_uppercase
from typing import Any

from tools.markdown import table

__all__ = ["render"]

Rows = Mapping[str, Mapping[str, Any]]

INTRODUCTION = """# Models larger than the memory

Llama-shaped models of random bfloat16 weights, written to safetensors by `tools/large_models`. A row is
`python -m tools.large_models SIZE WEIGHTS --layers L --tokens N --scratch DIR`. One process compiles the model into a
bundle. One runs it with `--memory-limit`. The hidden states are compared with those of transformers' own layers, each
loaded alone (for quantised weights with the bundle's numbers, expanded).

Peaks are resident memory with all libraries, mapped files included. The largest layer is that of the model in float32.
Seconds on the clock grow with whatever else the machine does; the load is that before the row.
"""

RUNS = """## Runs

The bound is the time of reading the weights once from the disk, and of all products at the speed of float32 products
of 512 x 512 on all cores, both measured just before. The job is the same run with `--spill`, killed half way and
resumed. Opened is what `load` takes in a process that has imported it.

The run of 32 layers took 1.35 of its bound twice beside other processes (154 of 113.8 s, 168 of 124.8); the row is of
the machine alone (that of float32 had another job beside it). Where processor time went in between, by four layers
(int4, 1GB, the same machine at load 7, ahead of it): of 35.1 s the calls between attentions 31.0 (3.32 TFLOP at 107
GFLOP/s a thread; one alone reaches 132: its 4-bit products 148, the rest are offsets, sums of pieces and activations),
attention 1.7, opening engines 1.2, hashing 0.6. The bound's own products reach 124 a thread on two and 154 on one,
which makes 28 s of them: an eighth is beyond them in the same engines, a tenth elsewhere, and on the clock (39 s of two
threads) threads wait, for each other behind every stage or for other processes. Longer pieces would gain 2 %, larger
blocks nothing.

The same four layers in turns with their bound, later that day (ahead of a load of 15): 17.2 and 17.7 s, the bounds 13.4
and 14.1 s, so 1.29 and 1.25 of it. The run alone takes 15.9 s, the rest is the command's start. Of the clock 93 % are
calls between attentions, 5 % attention, 1.5 % waiting for weights. Threads wait for each other 2.3 % of their time: no
order of stages gains more. A call by operator, on one thread (0.81 s, 128 GFLOP/s): 4-bit products 89.8 %, sums of
their pieces 3.8, products of offsets 3.6, norms, rotations and activations 2.8, which ONNX Runtime has fused in part.
None of these alone gains 4 %.
"""

PHASES = """## Where the peak of compiling comes from

Peak of resident memory by phase, in MB, in the order of the work.
"""

VERIFIED = """## Verified layer by layer

`twoheads verify BUNDLE --against MODEL --streamed --length 64`: every layer beside the original's, neither side in
memory.
"""

PLANS = """## Plans

Of the configuration alone (`python -m tools.large_models SIZE plan`). Memory is what the run takes with its weights
read stage by stage.
"""

REAL = """## Models of real size

`python -m tools.large_models real MODEL --limit LIMIT`: compiled, then an input of some two thousand tokens with the
limit and without, for each output. SmolLM2 is the real one, with a text; qwen2.5-0.5b has that model's shape, and
random weights and tokens. Its head is computed some columns at a time within the limit.
"""

TURNS = """## Compile time before and after

`python -m tools.large_models turn MODEL --before CHECKOUT`: the same command, with the code of the commit that is named
and with today's, in turns; nothing of the source is in memory before. Medians. The aim is 10 s and three times reading
the source and writing the weights, measured in each turn.

Where SmolLM2's processor time goes (2026-11-29, 2 cores of an Intel Xeon, ahead of all other processes): 20.4 s, in
turn with 22.6 before all weights were read twice less. Imports of torch and transformers take 4.7, loading 1.6,
capturing and proving 4.3, trials of token-wise regions 1.4, weights 1.5, 158 engine files 6.6 (4.6 of them for
generating), the rest 0.3. One thread does almost all of it. Without any engine file it would be 13.8 s: the aim asks
for faster imports, too.
"""

LLAMA = """## Beside llama.cpp

The same GGUF file of random float16 weights (`python -m tools.large_models llama.cpp`), the same prompt, the memory of
either process held to a quarter of the file by a control group, file pages included; nothing of the file is in memory
before. llama.cpp (package llama-cpp-python) maps the file and computes with float16 weights where they lie: it is told
not to copy them into another layout (`use_extra_bufts`), as it does on processors with AMX, which the limit kills. Ours
has them in float32, and plans for 2 % more than the group has: its plan counts more than there is. Three runs each, in
turns; seconds of the prompt are medians.

Where ours takes its time (2 cores of an Intel Xeon, load 9.9; 16 layers, 512 tokens, a quarter of the file; once):
the run took 19.0 s. Reading the bundle's 4.4 GB alone takes 6.8 s (the file's own 2.2 GB 3.9), their sha256 5.5 s at
0.8 GB/s on one thread, the products 4.3 s at 260 GFLOP/s. These come one behind the other: there is no room to open the
next layer while one computes. In 1 GiB there is, and the run took 13.7 s; with all engines open before it 7.6 s; in the
quarter without hashing (`--check size`) 15.7 s. So bytes bound it: a bundle that kept float16 and expanded a layer
when it opens would read and hash half of them; there is none yet. Whether one weight is hashed at a time or two made no
difference in turns: 7.9 and 8.3 s against 8.5 and 7.9 (the shape of Qwen2.5-0.5B, 512 tokens, a group of 500 MB), and
19.8 and 25.4 against 19.5 and 25.4 without a group (four layers of 7b, int4, 2,048 tokens, 1GB).
"""


def render(results: Mapping[str, Any]) -> str:
    """The page of all ``results`` there are."""
    results, machines = _by_machine(results)
    models: Rows = results.get("models", {})
    lines = [*INTRODUCTION.splitlines(), "", *machines, ""]
    lines += table(_COMPILE, [_compiled(name, row) for name, row in models.items()], left=1)
    ran = [_ran(name, row) for name, row in models.items() if row.get("run_code") == 0]
    if ran:
        lines += [*RUNS.splitlines(), "", *table(_RUN, ran, left=1)]
    verified = [_verified(name, row) for name, row in models.items() if "verify_passed" in row]
    if verified:
        lines += [*VERIFIED.splitlines(), "", *table(_VERIFY, verified, left=1)]
    for text, section, make in (
        (PLANS, "plans", _plans),
        (REAL, "real", _real),
        (TURNS, "turns", _turns),
        (LLAMA, "llama.cpp", _llama),
    ):
        if section in results:
            lines += [*text.splitlines(), "", *make(results[section])]
    lines += _phases({**models, **results.get("real", {})})
    return "\n".join(lines).rstrip("\n") + "\n"


def _by_machine(results: Mapping[str, Rows]) -> tuple[dict[str, Rows], list[str]]:
    """The results, and the machines that they are of; where there are several, each row's name has its machine's."""

    def machine(row: Mapping[str, Any]) -> str:
        return f"{row['machine']}, {row['day']}"

    found = list(dict.fromkeys(machine(row) for rows in results.values() for row in rows.values()))
    if len(found) < 2:
        return dict(results), [f"On {text}." for text in found]
    letters = dict(zip(found, ascii_uppercase, strict=False))
    marked: dict[str, Rows] = {
        section: {f"{name} ({letters[machine(row)]})": row for name, row in rows.items()}
        for section, rows in results.items()
    }
    told = "; ".join(f"{letter}: {text}" for text, letter in letters.items())
    return marked, [f"Letters behind names tell the machine. {told}."]


_COMPILE = (
    *("compile", "weights in float32 or less, MB", "source, MB", "largest layer, MB", "peak, MB"),
    *("1.2 layers + 700 MB", "seconds", "processor seconds", "load"),
)
_RUN = (
    *("run", "tokens", "limit", "peak, MB", "seconds", "processor seconds", "bound: reading + products, s"),
    *("of the bound", "load", "largest distance, relative", "killed and resumed", "its peak, MB", "opened, s"),
)
_VERIFY = ("verified", "layers", "largest error in noise floors", "peak, MB", "seconds", "passed")


def _compiled(name: str, row: Mapping[str, Any]) -> list[str]:
    sizes = [_megabytes(row[key]) for key in ("bundle_bytes", "source_bytes", "layer_bytes", "compile_peak_bytes")]
    bound = _megabytes(1.2 * row["layer_bytes"] + 700e6)
    seconds = [f"{row[key]:,.0f}" for key in ("compile_seconds", "compile_cpu_seconds")]
    return [name, *sizes, bound, *seconds, f"{row['load']:.1f}"]


def _ran(name: str, row: Mapping[str, Any]) -> list[str]:
    seconds = [f"{row[key]:,.0f}" for key in ("run_seconds", "run_cpu_seconds")]
    bound = row["reading_seconds"] + row["product_seconds"]
    parts = f"{row['reading_seconds']:,.1f} + {row['product_seconds']:,.1f}"
    job = "the same, to the bit" if row["job_killed"] and row["job_same"] else "NOT the same"
    job = job if row["job_killed"] else "was done before"
    told = [parts, f"{row['run_seconds'] / bound:.2f}", f"{row['load']:.1f}", f"{row['distance']:.1e}", job]
    told += [
        _megabytes(row.get("job_resume_peak_bytes")),
        f"{row['open_seconds']:.2f}" if "open_seconds" in row else "",
    ]
    return [name, f"{row['tokens']:,}", row["limit"], _megabytes(row["run_peak_bytes"]), *seconds, *told]


def _verified(name: str, row: Mapping[str, Any]) -> list[str]:
    numbers = [
        f"{row['verify_worst_ratio']:.2f}",
        _megabytes(row["verify_peak_bytes"]),
        f"{row['verify_seconds']:,.0f}",
    ]
    return [name, str(row["verify_layers"]), *numbers, "yes" if row["verify_passed"] else "NO"]


def _plans(rows: Rows) -> list[str]:
    headings = ("plan", "tokens", "engine calls", "TFLOP", "weights, GB", "memory, GB", "limit", "seconds to plan")
    return table(headings, [_planned(name, row) for name, row in rows.items()], left=1)


def _planned(name: str, row: Mapping[str, Any]) -> list[str]:
    plan = row["plan"]
    sizes = [f"{count / 1e9:.1f}" for count in (plan["memory"]["weights"], plan["spill"]["peak_bytes"])]
    calls = f"{plan['engine_calls']:,}"
    return [name, f"{row['tokens']:,}", calls, f"{plan['flops'] / 1e12:,.0f}", *sizes, row["limit"], _one(row)]


def _one(row: Mapping[str, Any]) -> str:
    return f"{row['plan_seconds']:.1f}"


def _real(rows: Rows) -> list[str]:
    headings = (
        *("model", "largest weight, MB", "compile peak, MB", "1.2 layers + 700 MB", "output", "run, peak MB"),
        *("limit", "limited run, peak MB", "seconds", "limited", "load", "result"),
    )
    found = [(name, row, output) for name, row in rows.items() for output in row["outputs"]]
    return table(headings, [_real_row(*entry) for entry in found], left=1)


def _real_row(name: str, row: Mapping[str, Any], output: str) -> list[str]:
    largest, ran = row["largest_weight_bytes"], row["outputs"][output]
    sizes = map(_megabytes, (largest, row["compile_peak_bytes"], 1.2 * largest + 700e6))
    seconds = [f"{ran[f'{name}_seconds']:.1f}" for name in ("whole", "limited")]
    peaks = [_megabytes(ran[f"{name}_peak_bytes"]) for name in ("whole", "limited")]
    same = "the same, to the bit" if ran["same"] else "NOT the same"
    return [name, *sizes, output, peaks[0], row["limit"], peaks[1], *seconds, f"{row['load']:.1f}", same]


def _turns(rows: Rows) -> list[str]:
    headings = (
        *("model", "turns", "before", "seconds", "processor seconds", "peak, MB", "after, seconds"),
        *("processor seconds", "peak, MB", "the aim, s", "loads"),
    )
    return table(headings, [_turn_row(name, row["turns"]) for name, row in rows.items()], left=1)


def _turn_row(name: str, turns: Sequence[Mapping[str, Any]]) -> list[str]:
    def side(key: str) -> list[str]:
        seconds = [f"{median(turn[key][what] for turn in turns):,.0f}" for what in ("seconds", "cpu_seconds")]
        return [*seconds, _megabytes(median(turn[key]["peak_bytes"] for turn in turns))]

    aim = f"{10 + 3 * median(turn['least_seconds'] for turn in turns):,.0f}"
    loads = ", ".join(f"{turn['load']:.1f}" for turn in turns)
    commits = ", ".join(dict.fromkeys(turn["commit"] for turn in turns))
    return [name, str(len(turns)), commits, *side("before"), *side("after"), aim, loads]


def _llama(rows: Rows) -> list[str]:
    headings = ("model", "file, MB", "memory, MB", "tokens", "runner", "prompt, s", "tokens/s", "next token")
    return table(headings, [line for name, row in rows.items() for line in _runners(name, row)], left=1)


def _runners(name: str, row: Mapping[str, Any]) -> Iterator[list[str]]:
    sizes = [_megabytes(row["file_bytes"]), _megabytes(row["limit_bytes"]), f"{row['tokens']:,}"]
    for runner, runs in row["runs"].items():
        done = [run for run in runs if run["code"] == 0]
        if len(done) < len(runs):
            failed = next(run for run in runs if run["code"])
            yield [name, *sizes, runner, "failed", f"code {failed['code']}", " ".join(failed["told"])]
            continue
        seconds = median(run["prompt_seconds"] for run in done)
        token = ", ".join(dict.fromkeys(str(run["next_token"]) for run in done))
        yield [name, *sizes, runner, f"{seconds:.1f}", f"{row['tokens'] / seconds:,.1f}", token]


def _phases(rows: Rows) -> list[str]:
    names = list(dict.fromkeys(phase for row in rows.values() for phase in row["phases"]))
    found = [[row["phases"].get(name, {}).get("peak_bytes") for row in rows.values()] for name in names]
    peaks = [[name, *map(_megabytes, counts)] for name, counts in zip(names, found, strict=True)]
    return [*PHASES.splitlines(), "", *table(["phase", *rows], peaks, left=1)]


def _megabytes(count: float | None) -> str:
    return "" if count is None else f"{count / 1e6:,.0f}"
