"""A short, always equal share of the mutants, and that faults are seen."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tools.fuzz.differences import changed_places, explained, places_of
from tools.fuzz.judge import Verdict
from tools.fuzz.mutate.plain import mutated_bytes, mutated_json
from tools.fuzz.page import render
from tools.machine import machine

KINDS = "manifest;program;engines;weights;tokenizer;onnx;onnx, external;job;results;requests;arrays;lines"
"""Those that take milliseconds, and need no model compiled by torch but that of the bundle."""

JUDGED = """
import os, sys, time
from tools.fuzz import judge
from tools.fuzz.watch import Watch
from twoheads.graphs.errors import InputError

judge.SECONDS = 1
same = judge.Answer(b"1", 1_000_000)

def refuse(): raise InputError("here", "is wrong")
def fail(): return 1 / 0
def wait(): time.sleep(60)
def fill(): return judge.Answer(b"1" if b"x" * 300_000_000 else b"")
def crash(): os.abort()

def write(): open("/tmp/outside-of-all", "w")
def start(): os.system("true")
def differ(): raise judge.TwoAnswersError("short and long")
def planned(): return judge.Answer(b"1" if b"x" * 300_000_000 else b"", 300_000_000)

calls = (lambda: same, lambda: judge.Answer(b"2"), refuse, fail, wait, fill, crash, write, start, differ, planned)
print([judge.judge(call, same, Watch((), ())).outcome for call in calls])
"""


def test_every_fault_of_the_past_and_a_share_of_the_mutants() -> None:
    words = [sys.executable, "-m", "tools.fuzz", "--seed", "tests", "--count", "40", "--kinds", KINDS]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"corpus: \d\d cases, 0 faults\n", done.stdout)
    assert "seed tests: 40 mutants, 0 faults" in done.stdout
    assert "refused" in done.stdout


def test_faults_are_seen() -> None:
    done = subprocess.run([sys.executable, "-c", JUDGED], capture_output=True, text=True, check=True)
    found = ["same", "different", "refused", "traceback", "hang", "memory", "crash"]
    assert done.stdout.strip() == str([*found, "outside", "outside", "two answers", "same"])


@pytest.mark.parametrize("mutate", [mutated_bytes, mutated_json])
def test_mutants_follow_from_their_seed_and_differ(mutate: object) -> None:
    assert callable(mutate)
    data = b'{"a": [1, 2, {"b": "text"}], "c": 1.5, "d": "path/to"}'
    mutants = [mutate(data, Random(seed)) for seed in range(50)]
    assert mutants == [mutate(data, Random(seed)) for seed in range(50)]
    assert len(set(mutants)) > 30


def test_a_difference_needs_a_rule_for_every_place_that_was_changed(tmp_path: Path) -> None:
    base, mutant = tmp_path / "base", tmp_path / "mutant"
    tree = {"body": [{"mask": "causal", "engine": "a"}], "hidden": "h"}
    for folder in (base, mutant):
        folder.mkdir()
        (folder / "program.json").write_text(json.dumps(tree))
    found = Verdict("different")

    def told() -> tuple[str, str]:
        places = places_of("program", base / "program.json", mutant / "program.json")
        verdict = explained("program", places, found)
        return verdict.outcome, verdict.detail

    assert told()[0] == "unexplained", "nothing was changed, and the answer is another"
    tree["body"] = [{"mask": "full", "engine": "a"}]
    (mutant / "program.json").write_text(json.dumps(tree))
    assert told() == ("different", "the mask of an attention")
    tree["body"] = [{"mask": "full", "engine": "b"}]
    (mutant / "program.json").write_text(json.dumps(tree))
    assert told()[0] == "unexplained"
    (mutant / "program.json").write_text("{")
    assert told()[0] == "unexplained"


def test_places_of_two_trees() -> None:
    before = {"a": [1, {"b": 2}], "c": [1, 2], "d": 1}
    after = {"a": [1, {"b": 3}], "c": [1], "e": 1}
    assert set(changed_places(before, after)) == {"a.*.b", "c", "d", "e"}
    assert not list(changed_places(before, json.loads(json.dumps(before))))
    assert set(changed_places(1, True)) == {""}


def test_the_page_counts_kinds_rules_and_faults() -> None:
    runs: list[dict[str, Any]] = [
        {"seed": seed, "seconds": {kind: seconds}, "grown": {kind: grown}, "counts": [[kind, *counts]]}
        for seed, kind, seconds, grown, counts in (
            ("s", "program", 0.2, 10**7, ["refused", "", 3]),
            ("s", "onnx", 0.1, 0, ["different", "another model", 2]),
            ("t", "program", 0.5, 0, ["hang", "", 1]),
        )
    ]
    page = render(runs, machine(()))
    assert "6 mutants, 2 of them sources." in page
    assert "| `s` | 5 | 0 |\n| `t` | 1 | 1 |" in page
    assert "| program | 4 | 3 | 0 | 0 | 1 | 0.5 | 10 |" in page
    assert "| **all** | 6 | 3 | 0 | 2 | 1 |" in page
    assert "| onnx | another model | 2 |" in page
