"""The page of precisions says how right a form is, and what it costs."""

from __future__ import annotations

from tools.precision import Row, page
from twoheads.export.verification.report import AS_BUILT, AS_IT_RUNS, COMPILATION

PROOF = [
    {"name": COMPILATION, "output": "hidden", "relative": 1e-6},
    {"name": COMPILATION, "output": "logits", "top1_agreement": 1.0},
]


def report(*checks, **named):
    plain = {"passed": True, "ratio": 1.234, "built": None, "checks": [*PROOF, *checks]}
    return {**plain, "perplexities": [{"original": 20.0, "bundle": 20.5}], **named}


def cells(row):
    line = next(line for line in page([row], "A machine.").splitlines() if line.startswith("| form of"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_an_exact_form_is_as_the_original():
    found = cells(Row("smollm2", "form of 32 bits", 540_000_000, report()))
    assert found[1:] == ["540 MB", "1.23", "to rounding", "100.00%", "20.50 (20.00)", ""]


def test_a_lower_form_tells_its_distance_and_one_that_is_wrong_says_so():
    lowered = (
        {"name": AS_IT_RUNS, "output": "hidden", "relative": 0.0123},
        {"name": AS_IT_RUNS, "output": "logits", "top1_agreement": 0.987},
    )
    found = cells(Row("smollm2", "form of 8 bits", 147_000_000, report(*lowered, passed=False)))
    assert found[1:] == ["147 MB", "not passed", "1.23%", "98.70%", "20.50 (20.00)", ""]


def test_what_was_built_is_told_as_it_runs():
    built = (
        {"name": AS_BUILT, "output": "hidden", "relative": 0.0123},
        {"name": AS_BUILT, "output": "embedding", "cosine": 0.99},
    )
    found = cells(Row("minilm", "form of products", 30_000_000, report(*built, built={}, perplexities=[])))
    assert found[1:] == ["30 MB", "", "1.23%", "", "", "0.9900"]
