"""Every call of a vendor's package in a compiler's driver fits the signature that is recorded of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recorded_signatures import calls_bound
from twoheads.export.accelerators import vendors

DRIVERS = {
    ("build_coreml", "coremltools"): {
        *("convert", "rename_feature", "load_spec", "palettize_weights", "OpPalettizerConfig", "OptimizationConfig"),
        *("MLModel.__init__", "MLModel.get_spec", "MLModel.save"),
    },
    ("build_rknn", "rknn-toolkit2"): {
        f"RKNN.{name}"
        for name in (
            *("__init__", "config", "load_onnx", "build", "export_rknn", "init_runtime", "inference", "release"),
        )
    },
}


@pytest.mark.parametrize(("driver", "package"), DRIVERS)
def test_every_call_of_a_driver_fits_the_recorded_signature(driver: str, package: str) -> None:
    assert calls_bound(Path(vendors.__file__).parent / f"{driver}.py", package) == DRIVERS[driver, package]
