"""What ``verify`` prints and gives as JSON: every check, and counted, repeated and formula calls."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from twoheads.export.cli.verify.report import print_report
from twoheads.export.verification.check import ROUNDING, WITHIN_FLOORS, Check, Reference, compare
from twoheads.export.verification.collect import RunCount
from twoheads.export.verification.noise_floor import Floor
from twoheads.export.verification.report import BUNDLE, COMPILATION, ROUNDED_PRODUCTS, WIDENED, VerifyReport


def check(output: str, error: float, name: str = COMPILATION, candidate: str = WIDENED) -> Check:
    original = np.ones((3, 2), np.float32)
    bound = WITHIN_FLOORS if name == COMPILATION else ROUNDING
    reference = Reference(name, "the original", {output: original}, {output: Floor(1e-3, 1.0, finite=True)}, bound)
    return compare(candidate, output, original + np.float32(error), reference)


REPORT = VerifyReport(
    length=3,
    block_size=2,
    checks=(check("hidden", 1e-3), check("logits", 2e-3), check("hidden", 0.01, ROUNDED_PRODUCTS, BUNDLE)),
    runs=(
        RunCount(WIDENED, "hidden", 50, 50, 0, 1.0),
        RunCount(WIDENED, "logits", 57, 55, 2, 1.0),
        RunCount(BUNDLE, "hidden", 60, 60, 0, 1.0),
    ),
    seconds={"original": 1.0},
    approximations=(),
    precision="float16",
    perplexities=(),
    built=None,
    warnings=(),
)


def test_repeated_calls_are_told_as_run_tells_them(capsys):
    print_report(REPORT)
    out = " ".join(capsys.readouterr().out.split())
    assert "engine calls 57 (by the formula: 55; 2 repeated)" in out
    assert "verdict passed" in out
    assert "MISCOUNTED" not in out
    assert "compilation the bundle in float32, beside the original" in out
    assert "4 noise floors yes" in out
    assert "5% of the values yes" in out


def test_the_json_begins_with_the_worst_check_of_the_compilation():
    data = REPORT.to_json()
    assert (data["passed"], data["output"], data["positions_checked"]) == (True, "logits", 3)
    assert (data["engine_calls"], data["formula_calls"], data["repeated_calls"]) == (57, 55, 2)
    assert data["ratio"] == data["checks"][1]["ratio"]
    assert len(data["checks"]) == len(data["runs"]) == 3


def test_a_check_or_a_count_that_fails_fails_the_report(capsys):
    wrong = replace(REPORT, runs=(*REPORT.runs, RunCount(BUNDLE, "logits", 61, 60, 0, 1.0)))
    assert not wrong.passed
    print_report(wrong)
    assert "the bundle, logits: 61 calls, foretold 60" in " ".join(capsys.readouterr().out.split())
    late = replace(REPORT, checks=(*REPORT.checks, check("logits", 0.1, ROUNDED_PRODUCTS, BUNDLE)))
    assert not late.passed
    assert late.worst.passed


def test_without_a_length_all_of_the_text_or_of_the_tokens_runs(cli, tiny_llama, bundle, text, tmp_path):
    words = ("verify", bundle, "--against", tiny_llama, "--json")
    assert cli(*words, "--text", text).json["length"] == 36
    np.save(tmp_path / "t.npy", np.arange(21)[None] % 16)
    assert cli(*words, "--tokens", tmp_path / "t.npy").json["length"] == 21
    assert "no input is given" in cli(*words).refused()
