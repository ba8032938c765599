"""Warnings are lines of reports, and the call that the user made gives each of them once, where the user made it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.runtime.tiny_bundle import write_tiny
from tests.runtime.tiny_model import Tiny, random_tokens
from twoheads.runtime import Job, LoadedBundle, load, run_documents

TRAINED = Tiny(layers=1, trained_length=20, approximations=("window:9",))
CALLS: dict[str, Callable[[LoadedBundle, Path], object]] = {
    "one": lambda bundle, _: bundle.run(random_tokens(TRAINED, 21)),
    "many": lambda bundle, _: bundle.run([random_tokens(TRAINED, 21)] * 5, pack="off"),
    "job": lambda bundle, folder: _in_a_job(bundle, folder),
    "documents": lambda bundle, folder: run_documents(bundle, folder / "texts.jsonl", folder / "out", output="last"),
}


def _in_a_job(bundle: LoadedBundle, folder: Path) -> None:
    with Job(folder / "job") as job:
        bundle.run_job(job, random_tokens(TRAINED, 21))


@pytest.mark.parametrize("name", sorted(CALLS))
def test_each_warning_once_where_the_user_is(tmp_path: Path, name: str) -> None:
    bundle = load(write_tiny(tmp_path / "bundle", TRAINED))
    lines = [json.dumps({"input_ids": random_tokens(TRAINED, 21, at).tolist()}) for at in range(3)]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        CALLS[name](bundle, tmp_path)
    approximate, trained = (str(warning.message) for warning in told)
    assert approximate.startswith("approximate: compiled with --attention window:9")
    assert trained.startswith("21 tokens exceed the 20 that tiny was trained on")
    assert {warning.filename for warning in told} == {__file__}


def test_nothing_to_tell(tmp_path: Path) -> None:
    bundle = load(write_tiny(tmp_path / "bundle", Tiny(layers=1, trained_length=20)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bundle.run(random_tokens(TRAINED, 20)).report.warnings == ()
