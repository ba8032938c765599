"""A short, always equal share of the mutants, and that faults are seen."""

from __future__ import annotations

import subprocess
import sys
from random import Random

import pytest

from tools.fuzz.mutate.plain import mutated_bytes, mutated_json

KINDS = "manifest;program;engines;weights;tokenizer;arrays;lines"
"""Those that take milliseconds."""

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


def test_a_share_of_the_mutants() -> None:
    words = [sys.executable, "-m", "tools.fuzz", "--seed", "tests", "--count", "60", "--kinds", KINDS]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "seed tests: 60 mutants, 0 faults" in done.stdout
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
