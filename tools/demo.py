"""The demo: SmolLM2-135M compiled once at 256 tokens, run on a text of about 4,000, and proved against the original.

``make demo`` runs it. Every step is a ``twoheads`` command in a process of its own, shown as it is started.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.fetch_models import FetchError, fetch
from tools.measured_process import Measured, ProcessFailedError, measure_json, twoheads_command

__all__ = ["main"]

ROOT = Path(__file__).parent.parent
TEXT = ROOT / "tools" / "data" / "founding_documents.txt"
FOLDER = ROOT / "demo"
BLOCK_SIZE = 256
POSITIONS = "300,700,1500,2500,3400,-2"
"""Where predictions are shown; the position before the last, because the last one's successor is not in the text."""


def _step(title: str, *words: object, expected: Sequence[int] = (0,)) -> tuple[Measured, Any]:
    shown = shlex.join(_short(word) for word in words)
    sys.stdout.write(f"\n{title}\n  $ twoheads {shown}\n")
    sys.stdout.flush()
    return measure_json(twoheads_command(*words, "--json"), expected=expected, show_stderr=True)


def _short(word: object) -> str:
    """Paths as they are seen from the project's root."""
    return str(word.relative_to(ROOT)) if isinstance(word, Path) and word.is_relative_to(ROOT) else str(word)


def _demo() -> bool:
    """Runs all steps and prints the tables; whether the bundle passed."""
    FOLDER.mkdir(exist_ok=True)
    source = fetch("smollm2", ROOT / ".cache" / "models")
    bundle, logits, report = FOLDER / "SmolLM2-135M.bundle", FOLDER / "logits.npz", FOLDER / "report.json"
    compiled = _step(
        f"1. Compile once, for blocks of {BLOCK_SIZE} tokens",
        *("compile", source, "-o", bundle, "--block-size", BLOCK_SIZE, "--force"),
    )
    ran = _step(
        "2. Run a text that is many blocks long",
        *("run", bundle, "--text", TEXT, "-o", logits, "--positions", POSITIONS, "--report", report),
    )
    verified = _step(
        "3. Run the original over the whole text at once, and compare",
        *("verify", bundle, "--against", source, "--length", ran[1]["length"], "--text", TEXT),
        expected=(0, 1),
    )
    _print_figures(compiled, ran, verified)
    _print_predictions(bundle, logits)
    return bool(verified[1]["passed"])


def _print_figures(compiled: tuple[Measured, Any], ran: tuple[Measured, Any], verified: tuple[Measured, Any]) -> None:
    from twoheads.export.cli.shared.console import print_facts, seconds_text, size_text

    run, proof = ran[1], verified[1]
    ratio = proof["max_abs_error"] / proof["noise_floor"]
    agreement = proof["top1_agreement"]
    sys.stdout.write("\n")
    print_facts(
        (
            ("model", f"{compiled[1]['source']} ({compiled[1]['architecture']})"),
            (
                "compiled",
                f"in {seconds_text(compiled[1]['seconds'])}, peak memory {size_text(compiled[0].peak_bytes)}: "
                f"{compiled[1]['engines']} engines of fixed shape, {size_text(compiled[1]['bytes'])}",
            ),
            ("text", f"{TEXT.name}: {run['length']:,} tokens = {run['blocks']} blocks of {run['block_size']}"),
            ("engine calls", f"{run['engine_calls']:,} counted, {run['formula_calls']:,} by the formula"),
            ("run", f"{seconds_text(run['seconds'])}, peak memory {size_text(ran[0].peak_bytes)}"),
            (
                "error",
                f"{proof['max_abs_error']:.2g} at most; two evaluations of the original differ by "
                f"{proof['noise_floor']:.2g} (the noise floor), so {ratio:.2g} times that; 4 would pass",
            ),
            ("same best token", "not compared" if agreement is None else f"at {agreement:.2%} of the positions"),
            ("verdict", "PASSED" if proof["passed"] else "FAILED"),
        )
    )


def _print_predictions(bundle: Path, logits: Path) -> None:
    """What the model expects next at a few places of the text, and what follows there."""
    import numpy as np

    from twoheads.export.cli.shared.console import print_table
    from twoheads.runtime import load

    tokenizer = load(bundle, check="size").tokenizer
    if tokenizer is None:
        return
    tokens = tokenizer.encode(TEXT.read_text(encoding="utf-8"))
    with np.load(logits) as file:
        chosen = zip(file["positions"].tolist(), file["logits"].argmax(axis=-1).tolist(), strict=True)
    rows = [
        (
            str(position),
            "... " + " ".join(tokenizer.decode(tokens[max(0, position - 14) : position + 1]).split()),
            json.dumps(tokenizer.decode([predicted])),
            json.dumps(tokenizer.decode([tokens[position + 1]])),
        )
        for position, predicted in chosen
    ]
    sys.stdout.write("\n")
    print_table(
        "What the model expects next", (">position", "the text up to there", "expected", "the text goes on"), rows
    )


def main() -> int:
    """Runs the demo; 0 if the bundle passed, else 1."""
    try:
        return 0 if _demo() else 1
    except (FetchError, ProcessFailedError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
