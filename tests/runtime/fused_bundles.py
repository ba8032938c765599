"""What the tests of engines that hold several stages share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.runtime.runs.test_session import assert_close
from tests.runtime.tiny_bundle import read_manifest, write_manifest, write_tiny
from tests.runtime.tiny_model import Tiny
from twoheads.graphs.errors import BundleError
from twoheads.runtime import Report, load

__all__ = ["assert_as_tiles", "assert_needs_its_engine"]


def assert_as_tiles(
    folder: Path, tiny: Tiny, lowering: str, tokens: npt.NDArray[np.int64], output: str
) -> tuple[Report, Report]:
    """Compares the runs of both bundles of ``tiny`` on ``tokens``; their reports, that of tiles last."""
    found, want = (
        load(write_tiny(folder / chosen, tiny, lowering=chosen), threads=2).run(tokens, output=output)
        for chosen in (lowering, "tile")
    )
    assert want.array is not None
    assert_close(found.array, want.array)
    return found.report, want.report


def assert_needs_its_engine(folder: Path, tiny: Tiny, lowering: str, engine: str, obstacle: str) -> None:
    """A bundle that lacks the engine ``engine`` is refused, and one whose program has ``obstacle`` to the lowering."""
    lacking = write_tiny(folder / "lacking", tiny, lowering=lowering)
    manifest: dict[str, Any] = read_manifest(lacking)
    del manifest["files"][f"engines/{engine}.onnx"]
    (lacking / "engines" / f"{engine}.onnx").unlink()
    write_manifest(lacking, manifest)
    with pytest.raises(BundleError, match=engine):
        load(lacking)
    plain = write_tiny(folder / "plain", Tiny())
    write_manifest(plain, read_manifest(plain) | {"lowering": lowering})
    with pytest.raises(BundleError, match=obstacle):
        load(plain)
