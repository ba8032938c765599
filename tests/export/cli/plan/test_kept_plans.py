"""A GGUF file that was planned before is planned without torch, and what differs in anything is planned anew."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import twoheads.compiler
from tests.compiler.frontend.torch.weights.test_gguf_header import write
from twoheads.compiler import plan_model
from twoheads.export.cli import main
from twoheads.export.cli.plan import kept_plans
from twoheads.export.cli.plan.kept_plans import keep_plan, kept_plan, plan_file

OPTIONS = {"block_size": 16, "attention": "full"}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty one: nobody's plans are read or written."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    return tmp_path / "home"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(tmp_path / "model.gguf", vocabulary=None, head=True)


def test_a_second_plan_makes_no_program(
    home: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan(length: int, *more: str) -> Any:
        assert main(["plan", str(model), "--length", str(length), "--block-size", "16", "--json", *more]) == 0
        return json.loads(capsys.readouterr().out)

    made: list[Any] = []

    def told(source: Path, **options: Any) -> Any:
        made.append(source)
        return plan_model(source, **options)

    monkeypatch.setattr(twoheads.compiler, "plan_model", told)
    first = plan(100)
    assert plan(100) == first
    assert plan(40)["blocks"] == 3
    assert made == [model]
    assert plan(100, "--key-tile", "32") != first
    assert made == [model, model]
    (kept, _) = sorted((home / ".cache/twoheads/plans").iterdir(), key=lambda file: file.stat().st_mtime_ns)
    assert kept_plan(kept) == plan_model(model, block_size=16)


def test_whatever_it_is_made_of_has_a_place_of_its_own(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = plan_file(model, OPTIONS)
    assert place is not None
    assert plan_file(model, dict(OPTIONS)) == place
    others = [
        plan_file(model, {**OPTIONS, "block_size": 32}),
        plan_file(model.rename(model.with_name("other.gguf")), OPTIONS),
        plan_file(write(model, vocabulary=None, head=False), OPTIONS),
        plan_file(write(model, vocabulary=41, head=True), OPTIONS),
    ]
    write(model, vocabulary=None, head=True)
    with monkeypatch.context() as patch:
        patch.setattr(kept_plans, "version", lambda name: f"{name} of tomorrow")
        others.append(plan_file(model, OPTIONS))
    code = model.parent / "code"
    code.mkdir()
    monkeypatch.setattr(twoheads.compiler, "__path__", [str(code)])
    for size in (0, 1):
        (code / "pass.py").write_text("#" * size, encoding="utf-8")
        others.append(plan_file(model, OPTIONS))
    os.utime(code / "pass.py", ns=(1, 1))
    others.append(plan_file(model, OPTIONS))
    assert None not in others
    assert len({place, *others}) == 1 + len(others)


def test_what_is_no_whole_gguf_has_none(model: Path, tmp_path: Path) -> None:
    assert plan_file(tmp_path, OPTIONS) is None
    assert plan_file(tmp_path / "none.gguf", OPTIONS) is None
    model.write_bytes(model.read_bytes()[:100])
    assert plan_file(model, OPTIONS) is None
    model.write_bytes(b"")
    assert plan_file(model, OPTIONS) is None


@pytest.mark.parametrize("held", [b"", b"{", b'{"kind": "Program"}', b"[" * 100_000, b"\xff"])
def test_a_damaged_one_is_as_good_as_none(tmp_path: Path, held: bytes) -> None:
    (tmp_path / "kept.plan").write_bytes(held)
    assert kept_plan(tmp_path / "kept.plan") is None


def test_a_changed_byte_is_noticed(model: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.plan"
    keep_plan(kept, plan_model(model, block_size=16))
    whole = kept.read_bytes()
    assert kept_plan(kept) is not None
    for at in (3, 64, whole.index(b"16"), len(whole) - 9):
        kept.write_bytes(whole[:at] + b"7" + whole[at + 1 :])
        assert kept_plan(kept) is None


def test_the_oldest_go_and_a_full_disk_is_no_error(
    home: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = plan_model(model, block_size=16)
    folder = home / "plans"
    monkeypatch.setattr(kept_plans, "MOST", 2)
    for at in range(4):
        keep_plan(folder / f"{at}.plan", program)
        os.utime(folder / f"{at}.plan", ns=(at, at))
    assert sorted(file.name for file in folder.iterdir()) == ["2.plan", "3.plan"]
    (tmp_path / "file").write_bytes(b"")
    keep_plan(tmp_path / "file" / "x.plan", program)
