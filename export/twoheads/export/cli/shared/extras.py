"""Which extra of the distribution brings which package, for commands that find one missing."""

from __future__ import annotations

from twoheads.graphs.errors import InputError

__all__ = ["EXTRAS", "missing_package"]

EXTRAS = {
    "accelerate": "compile",
    "gguf": "compile",
    "onnx": "compile",
    "onnx_ir": "compile",
    "onnxscript": "compile",
    "psutil": "compile",
    "safetensors": "compile",
    "torch": "compile",
    "transformers": "compile",
    "jinja2": "text",
    "llguidance": "constrained",
    "tokenizers": "text",
    "matplotlib": "plot",
    "openvino": "openvino",
    "polygraphy": "tensorrt",
    "cryptography": "signing",
    "ray": "cluster",
    "tensorrt": "tensorrt",
}
"""Package, by the name under which it is imported: the extra that brings it."""


def missing_package(error: ModuleNotFoundError) -> InputError | None:
    """What to tell where an import failed because an extra is not installed; ``None`` where that is not the reason."""
    package = (error.name or "").split(".")[0]
    extra = EXTRAS.get(package)
    if extra is None:
        return None
    return InputError(f"the package {package}", "is not installed", f'pip install "twoheads[{extra}]"')
