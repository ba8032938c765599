"""Environments of vendors' compilers: made, refused, and told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from twoheads.export.accelerators import environments
from twoheads.export.accelerators.compiler_process import find_compiler
from twoheads.export.accelerators.environments import install_target
from twoheads.export.accelerators.target import load_target
from twoheads.graphs.errors import InputError
from twoheads.runtime.backends.emulator import environment_of


def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, target: str, pip: Any) -> None:
    """An environment with the packages of this one, where ``pip`` answers in the place of pip."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    python = environment_of(target) / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(environments, "subprocess", SimpleNamespace(run=pip))


def test_a_compiler_that_asks_for_a_device_is_installed_with_the_targets_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """OpenVINO's driver looks for the device that it is asked for, and there is always a CPU."""
    asked: list[list[str]] = []

    def pip(command: list[str], **_: Any) -> Any:
        asked.append(command[1:])
        return subprocess.CompletedProcess(command, 0, "", "")

    kept(monkeypatch, tmp_path, "openvino", pip)
    compiler = install_target("openvino")
    assert (compiler.name, compiler.python) == ("openvino", environment_of("openvino") / "bin" / "python")
    assert asked == [["-m", "pip", "--disable-pip-version-check", "install", "--quiet", "openvino"]]


def test_what_pip_refuses_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = "Collecting iree\nERROR: No matching distribution found for iree-base-compiler\nERROR: more\n"
    kept(monkeypatch, tmp_path, "iree", lambda command, **_: subprocess.CompletedProcess(command, 1, "", said))
    with pytest.raises(InputError, match="pip can't install it: ERROR: No matching distribution found for iree-base"):
        install_target("iree")


def test_a_compiler_that_is_not_installed_is_told_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Unless that command just ran: then to run it again would help nobody."""
    kept(monkeypatch, tmp_path, "rknn", lambda command, **_: subprocess.CompletedProcess(command, 0, "", ""))
    python = environment_of("rknn") / "bin" / "python"
    for call, fix in (
        (lambda: find_compiler(load_target("rknn")), "twoheads targets install rknn"),
        (lambda: find_compiler(load_target("rknn"), python), f"{python} -m pip install "),
        (lambda: install_target("rknn"), f"its packages are there: see what is wrong with them by {python} -m pip"),
    ):
        with pytest.raises(InputError, match="target rknn: its compiler can't be used in") as told:
            call()
        assert told.value.fix.startswith(fix)


def test_a_name_that_is_no_target_is_not_blamed_on_an_option() -> None:
    with pytest.raises(InputError, match=r"(?s)^targets install: 'nix' is unknown.*use one of: coreml, ethos-u"):
        install_target("nix")
