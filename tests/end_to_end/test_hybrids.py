"""Models with recurrent layers: whole runs equal the library's own code, and `verify` catches what a scan can lose."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.compiler.hybrids import hybrid
from tests.runtime.generation import decoders
from tests.tiers import with_long
from twoheads.compiler import compile_model
from twoheads.compiler.frontend.torch.model_outputs import hugging_face_outputs
from twoheads.export import verify, write_bundle
from twoheads.runtime import load
from twoheads.runtime.stages.scan import _Chain  # pyright: ignore[reportPrivateUsage]

KINDS = ("lfm2", "kimi_linear", "falcon_h1", "minimax", "jamba", "recurrent_gemma", "rwkv", "xlstm")
"""One of each scan, of decays by head and by channel, with attention beside or behind it."""

FIRST = ("lfm2", "recurrent_gemma", "rwkv", "xlstm")
"""A convolution, a state by channel, and states that tests of generation compile as well; those with maxima."""

RUNS = "test_runs_of_any_length_equal_the_library"
SCANS = "tests/compiler/frontend/torch/hugging_face/test_library_scans.py"
"""Every kind of scan that is not among the first here is captured there and compared with the library."""

BLOCK = 16

LENGTHS = (1, 16, 17, 53)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path]]:
    """Models and their bundles by kind, filled on demand."""
    return {}


def built(kind: str, bundles: dict[str, tuple[Any, Path]], factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    if kind not in bundles and kind in decoders.MODELS:
        bundles[kind] = decoders.MODELS[kind](), decoders.bundle_folder(kind)
    if kind not in bundles:
        model = hybrid(kind)
        bundles[kind] = (
            model,
            write_bundle(compile_model(model, block_size=BLOCK), factory.mktemp(kind) / "bundle", generation=False),
        )
    return bundles[kind]


@pytest.mark.parametrize("kind", with_long(KINDS, FIRST, RUNS, SCANS))
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


def _named(model: Any, ending: str) -> list[Any]:
    """The parameters and buffers of such names; there are some."""
    found = [tensor for name, tensor in (*model.named_parameters(), *model.named_buffers()) if name.endswith(ending)]
    assert found, ending
    return found


def _other_decay(model: Any) -> None:
    """By a tenth of a percent, as the exponential of 0.001 is."""
    for parameter in _named(model, "A_log"):
        parameter += 0.001


def _other_gate(model: Any) -> None:
    """RG-LRU's decay is a multiple of its softplus."""
    for parameter in _named(model, "recurrent_param"):
        parameter += torch.nn.functional.softplus(parameter) / torch.sigmoid(parameter) * 0.001


def _other_time_decay(model: Any) -> None:
    """RWKV's decay is the exponential of this."""
    for parameter in _named(model, "time_decay"):
        parameter += 0.001


def _other_bonus(model: Any) -> None:
    for parameter in _named(model, "time_first"):
        parameter += 0.001


def _other_forget_gate(model: Any) -> None:
    """xLSTM's decay is the logarithm of a gate's sigmoid."""
    for parameter in _named(model, "fgate_preact.bias"):
        parameter += torch.nn.functional.logsigmoid(parameter) / torch.sigmoid(-parameter) * 0.001


def _short_of_a_row(model: Any) -> None:
    for parameter in _named(model, "conv1d.weight"):
        parameter[..., 0] = 0


def _short_of_a_gated_row(model: Any) -> None:
    for parameter in _named(model, "conv.conv.weight"):
        parameter[..., 0] = 0


def _other_experts(model: Any) -> None:
    """The first two change places, in all layers."""
    for parameter in (*_named(model, "experts.gate_up_proj"), *_named(model, "experts.down_proj")):
        parameter[:2] = parameter[[1, 0]]


MUTATIONS = [
    ("falcon_h1", _other_decay),
    ("falcon_h1", _short_of_a_row),
    ("kimi_linear", _other_decay),
    ("jamba", _other_decay),
    ("jamba", _other_experts),
    ("recurrent_gemma", _other_gate),
    ("lfm2", _short_of_a_gated_row),
    ("rwkv", _other_time_decay),
    ("rwkv", _other_bonus),
    ("xlstm", _other_forget_gate),
]


@pytest.mark.parametrize(
    ("kind", "mutate"),
    with_long(
        MUTATIONS,
        [case for case in MUTATIONS if case[0] in FIRST],
    ),
)
def test_verify_catches_a_recurrence_that_is_a_little_different(
    kind: str, mutate: Any, bundles: dict[str, tuple[Any, Path]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    model, path = built(kind, bundles, tmp_path_factory)
    other = copy.deepcopy(model)
    with torch.no_grad():
        mutate(other)
    assert not verify(path, other, length=53).passed


@pytest.mark.parametrize("kind", with_long(KINDS, FIRST))
def test_verify_catches_a_state_that_is_lost_between_blocks(
    kind: str,
    bundles: dict[str, tuple[Any, Path]],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, path = built(kind, bundles, tmp_path_factory)
    assert verify(path, model, length=BLOCK + 1).passed
    block = _Chain.block

    def from_zeros(chain: Any, at: int) -> None:
        chain._states[0][...] = 0
        block(chain, at)

    monkeypatch.setattr(_Chain, "block", from_zeros)
    assert not verify(path, model, length=BLOCK + 1).passed
