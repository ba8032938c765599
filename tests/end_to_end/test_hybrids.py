"""Models with recurrent layers: whole runs equal the library's own code, and `verify` catches what a scan can lose."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.compiler.hybrids import hybrid
from twoheads.compiler import compile_model
from twoheads.compiler.frontend.torch.model_outputs import hugging_face_outputs
from twoheads.export import verify, write_bundle
from twoheads.runtime import load
from twoheads.runtime.stages.scan import _Chain  # pyright: ignore[reportPrivateUsage]

KINDS = ("lfm2", "kimi_linear", "falcon_h1", "minimax", "jamba", "recurrent_gemma")
"""One of each scan, of decays by head and by channel, with attention beside or behind it."""

BLOCK = 16

LENGTHS = (1, 15, 16, 17, 53, 200)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path]]:
    """Models and their bundles by kind, filled on demand."""
    return {}


def built(kind: str, bundles: dict[str, tuple[Any, Path]], factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    if kind not in bundles:
        model = hybrid(kind)
        bundles[kind] = model, write_bundle(compile_model(model, block_size=BLOCK), factory.mktemp(kind) / "bundle")
    return bundles[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_runs_of_any_length_equal_the_library(
    kind: str, bundles: dict[str, tuple[Any, Path]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    model, path = built(kind, bundles, tmp_path_factory)
    bundle = load(path)
    for length in LENGTHS:
        ids = np.random.default_rng(length).integers(0, 190, (1, length))
        with torch.no_grad():
            own = hugging_face_outputs(model, {"input_ids": torch.from_numpy(ids)})
        for output, want in own.items():
            found = bundle.run({"input_ids": ids}, output=output).array
            assert found is not None
            assert np.abs(found - want[0].numpy()).max() <= 2e-5 * float(want.abs().max()), (length, output)


def test_a_scan_is_a_call_for_every_block(
    bundles: dict[str, tuple[Any, Path]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    _, path = built("lfm2", bundles, tmp_path_factory)
    bundle = load(path)
    scans = [stage.name for stage in bundle.program.scans]
    assert scans
    for blocks in (10, 20):
        report = bundle.run({"input_ids": np.zeros((1, BLOCK * blocks), np.int64)}, output="last").report
        assert report.engine_calls == report.formula_calls
        assert {stage.name: stage.calls for stage in report.stages if stage.name in scans} == dict.fromkeys(
            scans, blocks
        )


def _other_decay(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if name.endswith("A_log"):
            parameter += 0.001  # exp(0.001): a tenth of a percent


def _short_of_a_row(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if name.endswith("conv1d.weight"):
            parameter[..., 0] = 0


@pytest.mark.parametrize("mutate", [_other_decay, _short_of_a_row])
def test_verify_catches_a_recurrence_that_is_a_little_different(
    mutate: Any, bundles: dict[str, tuple[Any, Path]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    model, path = built("falcon_h1", bundles, tmp_path_factory)
    assert verify(path, model, length=53).passed
    other = copy.deepcopy(model)
    with torch.no_grad():
        mutate(other)
    assert not verify(path, other, length=53).passed


def test_verify_catches_a_state_that_is_lost_between_blocks(
    bundles: dict[str, tuple[Any, Path]], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = built("falcon_h1", bundles, tmp_path_factory)
    block = _Chain.block

    def from_zeros(chain: Any, at: int) -> None:
        chain._states[0][...] = 0
        block(chain, at)

    monkeypatch.setattr(_Chain, "block", from_zeros)
    assert verify(path, model, length=BLOCK).passed
    assert not verify(path, model, length=BLOCK + 1).passed
