"""The page about one file in other hosts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tools.hosts import __main__ as command
from tools.hosts.beside import Beside
from tools.hosts.hosts import HOSTS, HostError, Run
from tools.hosts.page import render
from tools.machine import machine

BESIDE = (Beside(np.array([1.0, 2.0], np.float32), 1e-6, 2e-6, 0.5),)


def through(monkeypatch: pytest.MonkeyPatch, outcome: Any) -> dict[str, Any]:
    def host(*_given: Any) -> list[Run]:
        if isinstance(outcome, Exception):
            raise outcome
        return [Run(np.array(outcome, np.float32), 0.25)]

    monkeypatch.setitem(HOSTS, "Node", host)
    return command._through("Node", Path("x.onnx"), [[1]], BESIDE, Path())


def test_a_host_is_compared_with_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    found = through(monkeypatch, [1.0, 2.1])
    assert found["errors"] == [pytest.approx(0.05, rel=1e-3)]
    assert found["seconds"] == [0.25]
    assert through(monkeypatch, HostError("node is not\ninstalled")) == {"problem": "node is not installed"}


def test_the_page_says_what_each_host_gave() -> None:
    found = {
        "lengths": [16, 1024],
        "output": "last",
        "block_size": 128,
        "file_bytes": 1_500_000,
        "weights_bytes": 540_000_000,
        "floor": [1e-6, 2e-6],
        "runtime": {"seconds": [0.5, 2.0], "errors": [1e-6, 3e-6]},
        "hosts": {
            "C++": {"seconds": [0.6, 2.2], "errors": [1e-6, 4e-6]},
            "Chromium": {"lengths": [16], "seconds": [9.0], "errors": [5e-6]},
            "Node": {"problem": "not here"},
        },
    }
    page = render({"models": {"smollm2": found}, "machine": machine(())})
    assert "**smollm2**, `last`, blocks of 128: a file of 1.5 MB, 540 MB of weights beside it" in page
    assert "| C++ | 1.0e-06 | 4.0e-06 | 0.60 | 2.20 |" in page
    assert "| Chromium | 5.0e-06 |  | 9.00 |  |" in page
    assert "| floor | 1.0e-06 | 2.0e-06 |  |  |" in page
    assert "- Node: not here" in page


def test_the_page_in_the_docs_is_what_its_figures_say() -> None:
    figures = json.loads(command.PAGE.with_suffix(".json").read_text(encoding="utf-8"))
    assert command.PAGE.read_text(encoding="utf-8") == render(figures)
