"""MiniLM whole through every compiler whose runtime, or emulator, works on this processor: built, packed, run."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tools.devices.journey import STAND_INS, runnable
from tools.devices.original import TEXT, Original, load_original
from twoheads.compiler import compile_model
from twoheads.export import write_bundle
from twoheads.export.accelerators.build import build_target
from twoheads.export.accelerators.target import load_target
from twoheads.export.pack.canary import run_canary
from twoheads.export.pack.pack import pack_bundle
from twoheads.graphs.errors import InputError
from twoheads.runtime import load

pytestmark = pytest.mark.targets

TOKENS = 130
"""Two blocks, the second nearly empty: partial results are merged, and the emulators' minutes are few."""

MOST = {"fp32": 1e-5, "fp16": 3e-2, "int8": 1e-1}
"""What may lie between a run and the original in float32, as a share of its norm."""

Bundles = Callable[[str], Path]


@pytest.fixture(scope="module")
def original() -> Original:
    return load_original("minilm", TOKENS)


@pytest.fixture(scope="module")
def bundles(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """MiniLM's bundle by lowering, to which every target adds its artifacts."""

    @cache
    def made(lowering: str) -> Path:
        folder = tmp_path_factory.mktemp(lowering)
        return write_bundle(compile_model(minilm, block_size=128, lowering=lowering), folder / "bundle")

    return made


def build(bundle: Path, target: str, precision: str) -> None:
    """Skips where the compiler is not installed; where targets are demanded, it fails."""
    text = TEXT.read_text(encoding="utf-8")[-40_000:] if precision == "int8" else None
    try:  # what a simulator runs is kept by a build that is checked; int8 costs more than passes unasked
        build_target(bundle, target, calibrate=text, check=target in STAND_INS, allow_loss=True)
    except InputError as error:
        if "its compiler can't be used" not in error.problem or os.environ.get("TWOHEADS_REQUIRE_TARGETS"):
            raise
        pytest.skip(f"{error.problem}; {error.fix}")


@pytest.mark.parametrize("target", runnable())
def test_a_pack_proves_itself_and_runs_the_whole_model(
    target: str, bundles: Bundles, original: Original, tmp_path: Path
) -> None:
    chip = load_target(target)
    bundle, precision = bundles(chip.lowering), chip.precisions[0]
    build(bundle, target, precision)
    packed = pack_bundle(bundle, target, tmp_path / "pack", backend=STAND_INS.get(target))
    canary = run_canary(packed.path, threads=1)
    assert canary.passed, canary
    loaded = load(packed.path / "bundle", backend=packed.pack.backend, threads=1)
    error, _ = original.compare(np.asarray(loaded.run(original.tokens, output="hidden").array))
    assert error <= MOST[precision]
    assert error > 0  # the numbers are the target's, and not the original's handed on
