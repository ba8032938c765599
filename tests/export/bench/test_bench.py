"""``twoheads bench`` on a tiny bundle: what it prints is complete and consistent. No test asserts a speed."""

from __future__ import annotations

import json

import pytest

from tests.runtime.tiny_bundle import write_tiny
from tests.runtime.tiny_model import Tiny
from twoheads.export.bench.matrix_peak import SIZE, MatrixPeak
from twoheads.export.cli import main
from twoheads.runtime import load
from twoheads.runtime.backends.registry import open_backend


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("bench") / "tiny.bundle", Tiny())


def test_figures_are_consistent(folder, capsys):
    assert main(["bench", str(folder), "-n", "70", "-n", "5", "--repeats", "2", "--threads", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["output"], report["block_size"], report["threads"]) == ("hidden", 16, 2)
    assert report["peak_flops_per_second"] > 1e8
    assert [row["length"] for row in report["rows"]] == [5, 70]
    for row in report["rows"]:
        schedule = load(folder).schedule(row["length"], "hidden")
        assert (row["flops"], row["engine_calls"]) == (schedule.flops, schedule.engine_calls)
        assert len(row["all_seconds"]) == 2
        assert min(row["all_seconds"]) <= row["seconds"] <= max(row["all_seconds"])
        assert row["tokens_per_second"] == pytest.approx(row["length"] / row["seconds"])
        rate = row["flops"] / row["seconds"]
        assert row["share_of_peak"] == pytest.approx(rate / report["peak_flops_per_second"])
        assert row["peak_bytes"] > 1e7
        assert row["breakdown"]["head"] == 0 < row["breakdown"]["attention"]


def test_people_get_two_tables(folder, capsys):
    assert main(["bench", str(folder), "-n", "40", "--repeats", "1", "--output", "logits"]) == 0
    out = capsys.readouterr().out
    assert "GFLOP/s at their peak" in out
    for heading in ("of the peak", "planned", "token-wise engines", "attention, merging", "scheduling, copies", "idle"):
        assert heading in out


@pytest.mark.parametrize(
    ("words", "message"),
    [(["-n", "0"], "--length"), (["--repeats", "0"], "--repeats"), (["--output", "embedding"], "does not give")],
)
def test_what_makes_no_sense_is_refused(folder, capsys, words, message):
    assert main(["bench", str(folder), *words]) == 1
    assert message in capsys.readouterr().err


def test_the_peak_multiplies_matrices():
    backend = open_backend("onnxruntime")
    assert MatrixPeak(backend, 2).measure(0.0) > 2 * SIZE**3  # more than one product a second
