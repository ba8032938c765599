"""The command line's measured profiles and predicted times."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.graphs.sample_profiles import profile_of
from tests.runtime.tiny_bundle import write_tiny
from tests.runtime.tiny_model import Tiny
from twoheads.export.cli import main
from twoheads.export.cli.plan.workers import parse_workers
from twoheads.graphs.errors import InputError
from twoheads.graphs.prediction.device_profile import profile_text, read_profile
from twoheads.runtime import load
from twoheads.runtime.measurement import engine_meter


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]):
    def run(*words: object, code: int = 0) -> Any:
        capsys.readouterr()
        assert main([str(word) for word in words]) == code
        captured = capsys.readouterr()
        if code:
            assert captured.err.count("error: ") == 1
            return captured.err
        return json.loads(captured.out) if "--json" in words else captured.out

    return run


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "b", Tiny())


@pytest.fixture
def device(tmp_path: Path, bundle: Path) -> Path:
    """A profile of the bundle with round numbers."""
    path = tmp_path / "device.json"
    path.write_text(profile_text(profile_of(load(bundle).program)), encoding="utf-8")
    return path


def test_profile_writes_what_plan_reads(cli, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_meter, "MEASURE_SECONDS", 0.0)
    path = tmp_path / "here.json"
    shown = cli("profile", bundle, "-o", path, "--threads", 2, "--network-gbit", 8, "--price-per-hour", 1.5)
    assert "attention.full_merge" in shown
    profile = read_profile(path)
    assert profile.network.bytes_per_second == 1e9
    assert profile.price_per_hour == 1.5
    assert cli("plan", bundle, "-n", 100, "--device", path, "--json")["device"]["threads"] == 2


def test_plan_predicts_the_time(cli, bundle: Path, device: Path) -> None:
    words = ("plan", bundle, "-n", 40, "--output", "hidden", "--device", device, "--threads", 1)
    # 3 layers of 3 blocks: 4 token-wise stages of 16 s a block, and attention of 2 + 9 + 13 s.
    assert cli(*words, "--json")["device"]["seconds"] == pytest.approx(4 * 3 * 16 + 3 * (2 + 9 + 13))
    shown = " ".join(cli(*words).split())
    assert "4 min 24 s with 1 thread of a machine of round numbers (tokenwise 3 min 12 s, attention 72.0 s)" in shown


def test_plan_tells_the_formats_of_a_bundle(cli, bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert cli("plan", bundle, "-n", 40, "--json")["precision"] == "float32"
    changed = manifest | {"weight_dtype": "int4", "products": "int8"}
    (bundle / "manifest.json").write_text(json.dumps(changed))
    assert "float32, weights int4, products int8" in cli("plan", bundle, "-n", 40)


def test_plan_refuses_other_profiles(cli, bundle: Path, device: Path, tmp_path: Path) -> None:
    other = write_tiny(tmp_path / "other", Tiny(block_size=32, key_tile=32))
    assert "was measured on the engines of tiny with blocks of 16" in cli(
        "plan", other, "-n", 40, "--device", device, code=1
    )
    assert "fix: make one" in cli("plan", bundle, "-n", 40, "--device", bundle / "program.json", code=1)
    assert "no such file" in cli("plan", bundle, "-n", 40, "--device", tmp_path / "none.json", code=1)
    assert "up to 2 threads" in cli("plan", bundle, "-n", 40, "--device", device, "--threads", 3, code=1)
    assert "--network-gbit: is 0" in cli("profile", bundle, "-o", tmp_path / "p.json", "--network-gbit", 0, code=1)


WORKERS_TABLE = """
attention workers calls read sent copied memory time speed-up efficiency cost
as compiled 1 46 0 B 0 B 0 B 111 MB 6 min 19 s 1 100% 0.316
as compiled 2 23 8.19 kB 6.27 kB 13.8 kB 111 MB 3 min 14 s 1.95 98% 0.323
window:16 1 37 0 B 0 B 0 B 111 MB 5 min 52 s 1 100% 0.293
window:16 2 20 4.35 kB 2.43 kB 13.8 kB 111 MB 3 min 8 s 1.87 94% 0.313
"""


def test_plan_of_several_workers(cli, bundle: Path, device: Path, tmp_path: Path) -> None:
    words = ("plan", bundle, "-n", 64, "--output", "hidden", "--device", device, "--threads", 1, "--workers", "1..2")
    shown = cli(*words, "--compare", "window:16", "--plot", tmp_path / "plot.png")
    table = shown[shown.index("attention ") :].splitlines()
    assert [" ".join(line.split()) for line in table] == WORKERS_TABLE.strip().splitlines()
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    figures = cli(*words, "--json")
    assert [(plan["workers"], plan["attention"]) for plan in figures["workers"]] == [
        (1, "as compiled"),
        (2, "as compiled"),
    ]
    assert figures["length"] == 64


@pytest.mark.parametrize(
    ("text", "expected"), [("3", (3,)), ("1,2,2,8", (1, 2, 8)), ("8..64", (8, 16, 32, 64)), ("3..10", (3, 6, 10))]
)
def test_numbers_of_workers(text: str, expected: tuple[int, ...]) -> None:
    assert parse_workers(text) == expected


@pytest.mark.parametrize("text", ["", "0", "some", "8..4", "0..4", "1,,2", "1..99999999"])
def test_no_numbers_of_workers(text: str) -> None:
    with pytest.raises(InputError, match="fix: give e"):
        parse_workers(text)


def test_plan_of_several_workers_refuses(
    cli, bundle: Path, device: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("plan", bundle, "-n", 64)
    measured = (*words, "--device", device, "--workers", 2)
    assert "twoheads profile BUNDLE" in cli(*words, "--workers", 2, code=1)
    assert "add --workers" in cli(*words, "--compare", "window:16", code=1)
    assert "no term of an attention policy" in cli(*measured, "--compare", "sometimes", code=1)
    assert "leave out --workers" in cli(*measured, "--memory-limit", "1GB", code=1)
    assert "end it in .png" in cli(*measured, "--plot", tmp_path / "plot.txt", code=1)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert 'pip install "twoheads[plot]"' in cli(*measured, "--plot", tmp_path / "plot.png", code=1)


def test_a_short_input_is_one_call_unless_there_is_a_limit(
    cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_meter, "MEASURE_SECONDS", 0.0)
    bundle, path = write_tiny(tmp_path / "short", Tiny(), with_one_block=True), tmp_path / "here.json"
    cli("profile", bundle, "-o", path, "--threads", 2)
    plan = cli("plan", bundle, "-n", 16, "--output", "hidden", "--device", path, "--json")
    assert plan["engine_calls"] == plan["formula_calls"] == 1
    assert plan["device"]["stages"][0]["kind"] == "model"
    assert plan["device"]["seconds"] > 0
    limited = cli("plan", bundle, "-n", 16, "--output", "hidden", "--memory-limit", "1GB", "--json")
    longer = cli("plan", bundle, "-n", 17, "--output", "hidden", "--json")
    assert limited["engine_calls"] == 2 * Tiny().layers + 1 < longer["engine_calls"]
    assert cli("inspect", bundle, "--json")["one_call_up_to"] == 16
