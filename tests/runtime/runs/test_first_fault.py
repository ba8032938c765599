"""Results that are no numbers: told of once a run, with stage and token where they begin; refused of float16."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.tiny_bundle import read_manifest, write_tiny
from tests.runtime.tiny_model import Tiny
from twoheads.graphs.errors import InputError
from twoheads.graphs.program.program import Pooling, Value
from twoheads.runtime import LoadedBundle, load
from twoheads.runtime.jobs.job import Job
from twoheads.runtime.memory.finite_rows import FiniteRows, all_finite, first_odd_row, watched
from twoheads.runtime.runs import first_fault

TOKENS = np.array([3, 4, 5] * 12)
"""A hidden key that is no number makes no numbers of its whole block: nothing times NaN is NaN."""


def poke(folder: Path, tiny: Tiny, weight: str, row: int, number: float = np.nan) -> LoadedBundle:
    """A bundle one of whose weights holds ``number`` all along a row."""
    path = write_tiny(folder / "bundle", tiny)
    entry = read_manifest(path)["weights"][weight]
    file = next(path.rglob("weights.bin"))
    weights = np.memmap(file, np.float32, "r+", entry["offset"], tuple(entry["shape"]))
    weights[row] = number
    weights.flush()
    return load(path, threads=2, check="size")


def said(bundle: LoadedBundle, tokens: Any = TOKENS, **options: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = bundle.run(tokens, **options)
    told = [str(warning.message) for warning in caught]
    for result in results if isinstance(results, list) else [results]:
        assert list(result.report.warnings) == told
    return told


@pytest.mark.parametrize(
    ("weight", "row", "told"),
    [
        ("embed", 9, "from row 16 on: that begins in stage first, in its value 'h0' at token 20"),
        ("1.v", 0, "from row 0 on: that begins in stage mid1, in its value 'v1' at token 0"),
        ("1.k", 0, "from row 0 on: that begins in stage mid1, in its value 'k1' at token 0"),
        ("lm", 0, "from row 0 on: that begins in the head (norm, lm), as all hidden states are finite"),
    ],
)
def test_the_first_stage_and_token_are_named(tmp_path: Path, weight: str, row: int, told: str) -> None:
    tokens = TOKENS.copy()
    tokens[20] = 9
    bundle = poke(tmp_path, Tiny(), weight, row)
    (note,) = said(bundle, tokens)
    assert note == f"the result is not finite (NaN or infinity), {told}"


def test_infinity_counts_as_well(tmp_path: Path) -> None:
    (note,) = said(poke(tmp_path, Tiny(), "lm", 0, np.inf))
    assert "head" in note


@pytest.mark.parametrize("output", ["hidden", "logits", "last"])
def test_a_sink_and_rows_that_are_wanted(tmp_path: Path, output: str) -> None:
    bundle = poke(tmp_path, Tiny(), "1.v", 0)

    class Rows:
        def write(self, start_row: int, rows: Any) -> None:
            assert not np.isfinite(rows).all()

    assert "mid1" in said(bundle, output=output, sink=Rows())[0]
    if output != "last":
        assert "from row 0 on" in said(bundle, output=output, positions=[30, 2])[0]


def test_rows_that_are_finite_are_not_told_of(tmp_path: Path) -> None:
    tokens = TOKENS.copy()
    tokens[20] = 9
    bundle = poke(tmp_path, Tiny(), "embed", 9)
    assert said(bundle, tokens, positions=[3, 7]) == []
    assert "from row 1 on" in said(bundle, tokens, positions=[3, 30])[0]


def test_an_embedding(tmp_path: Path) -> None:
    bundle = poke(tmp_path, Tiny(masks=("full",), pooling=Pooling("mean", True)), "0.q", 0)
    assert said(bundle, output="embedding")[0].startswith("the result is not finite (NaN or infinity): that begins in")


def test_an_input_that_shares_blocks_spoils_no_other(tmp_path: Path) -> None:
    bundle = poke(tmp_path, Tiny(), "embed", 9)
    several = [TOKENS[:20], np.array([3, 4, 9, 5]), TOKENS[:30], np.array([9, 9])]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results: Any = bundle.run(several)
    assert [np.isfinite(result.array).all() for result in results] == [True, False, True, False]
    assert [str(note.message)[-15:] for note in caught] == ["'h0' at token 2", "'h0' at token 0"]
    assert [len(result.report.warnings) for result in results] == [0, 1, 0, 1]


@pytest.mark.parametrize("resumed", [False, True])
def test_a_job_names_them_too(tmp_path: Path, resumed: bool) -> None:
    bundle = poke(tmp_path, Tiny(), "1.v", 0)
    if resumed:
        stop = iter([False] * 8 + [True] * 100)

        def progress(_done: int, _total: int) -> None:
            if next(stop):
                raise KeyboardInterrupt

        with Job(tmp_path / "job") as job, pytest.raises(KeyboardInterrupt):
            bundle.run_job(job, TOKENS, progress=progress)
    with Job(tmp_path / "job", resume=resumed) as job, pytest.warns(UserWarning, match="begins in stage mid1, .*'v1'"):
        bundle.run_job(job, TOKENS)


def test_a_run_that_does_not_fit_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = poke(tmp_path, Tiny(), "1.v", 0)

    def refuse(*_: object, **__: object) -> None:
        raise InputError("here", "takes more than the memory limit", "")

    monkeypatch.setattr(first_fault, "_first_fault", refuse)
    (note,) = said(bundle)
    assert "from row 0 on; it can't be run once more" in note
    assert "takes more than the memory limit" in note


def test_features_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    bundle = load(write_tiny(tmp_path / "bundle", Tiny(features=True, head=False)))
    given = np.ones((1, 9, 12), np.float32)
    given[0, 4, 1] = np.inf
    with pytest.raises(InputError, match="NaN or infinity, first at token 4"):
        bundle.run(given)


def test_what_is_beyond_float16_is_an_error() -> None:
    rows = np.ones((4, 3), np.float32)
    watch = FiniteRows([Value("h", "float16", (1, "n", 3))])
    watch.see(rows)
    rows[2, 1] = np.inf
    with pytest.raises(InputError, match=r"row 12\).*65504"):
        watch.see(rows, 10)


def test_the_first_of_all_rows_is_kept() -> None:
    watch = FiniteRows([Value("h", "float32", (1, "n", 3))])
    rows = np.ones((4, 3), np.float32)
    rows[3] = np.nan
    taken: list[int] = []

    class Sink:
        def write(self, start_row: int, rows: Any) -> None:
            taken.append(start_row)

    for start in (20, 10, 30):
        watched(Sink(), watch).write(start, rows)
    assert watch.first == 13
    assert taken == [20, 10, 30]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_no_number_is_missed_and_large_ones_pass(bad: float) -> None:
    large = np.full((5, 4), 3e38, np.float32)
    assert all_finite(large)
    assert first_odd_row(large) is None
    large[3, 2] = bad
    assert first_odd_row(large) == 3
    assert first_odd_row(large, 1) == 2
    assert not all_finite((large / 1e36).astype(np.float16)[:, ::2])
