"""Caches lie where the user says that caches lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from twoheads.export.cli.plan.kept_plans import plan_file
from twoheads.graphs.errors import InputError
from twoheads.graphs.user_cache import needed_cache, user_cache
from twoheads.runtime.backends.emulator import environment_of


def test_it_is_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert user_cache() == needed_cache("a plan") == tmp_path / "caches" / "twoheads"
    assert environment_of("litert") == tmp_path / "caches" / "twoheads" / "environments" / "litert"


@pytest.mark.parametrize("said", [None, "", "caches"])
def test_else_it_is_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str | None) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if said is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", said)
    assert user_cache() == tmp_path / ".cache" / "twoheads"


def test_who_has_no_home_has_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert user_cache() is None
    assert plan_file(tmp_path / "model.gguf", {}) is None
    with pytest.raises(InputError, match=r"the environment of litert: has no place.*\n.*XDG_CACHE_HOME"):
        environment_of("litert")
