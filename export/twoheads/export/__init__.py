"""Engines to ONNX, the bundle writer, verification and the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import twoheads.graphs  # noqa: F401 # pyright: ignore[reportUnusedImport] - tells libraries what not to do

if TYPE_CHECKING:
    from twoheads.export.bundle.writer import write_bundle
    from twoheads.export.precision.narrow_values import narrow_values
    from twoheads.export.precision.quantise_weights import quantise_weights
    from twoheads.export.verification.report import VerifyReport
    from twoheads.export.verification.verifier import verify

__all__ = ["VerifyReport", "narrow_values", "quantise_weights", "verify", "write_bundle"]


def __getattr__(name: str) -> Any:
    # Lazy, so that the command line can import its own commands without onnx and torch.
    if name == "write_bundle":
        from twoheads.export.bundle.writer import write_bundle

        return write_bundle
    if name == "narrow_values":
        from twoheads.export.precision.narrow_values import narrow_values

        return narrow_values
    if name == "quantise_weights":
        from twoheads.export.precision.quantise_weights import quantise_weights

        return quantise_weights
    if name in ("VerifyReport", "verify"):
        from twoheads.export.verification import verifier

        return getattr(verifier, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
