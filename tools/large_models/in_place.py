"""Tells which share of a bundle's weights has the very bytes that a tensor of the source's safetensors has.

python -m tools.large_models.in_place MODEL_FOLDER BUNDLE
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

from twoheads.graphs.serialization.bundle_format import ALIGNMENT
from twoheads.runtime.bundle.reader import read_bundle

__all__ = ["shares"]


def shares(model: Path, bundle: Path) -> dict[str, int]:
    """Bytes of the bundle's weights; of those, bytes that lie in the source; and of these, where kernels want them."""
    places = _places(model)
    read = read_bundle(bundle, check="size", engines=False)
    weights = read.open_weights()
    found = {"bytes": 0, "in_source": 0, "aligned": 0}
    for name in read.manifest.weights:
        array = np.ascontiguousarray(weights.view(name))
        offset = places.get(hashlib.sha256(array.tobytes()).hexdigest())
        weights.let_go([name])
        found["bytes"] += array.nbytes
        found["in_source"] += array.nbytes if offset is not None else 0
        found["aligned"] += array.nbytes if offset is not None and offset % ALIGNMENT == 0 else 0
    return found


def _places(model: Path) -> dict[str, int]:
    """Where each tensor of the source begins in its file, by the sha256 of its bytes."""
    found: dict[str, int] = {}
    for path in model.glob("*.safetensors"):
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
            for name, entry in header.items():
                if name != "__metadata__":
                    start, stop = entry["data_offsets"]
                    file.seek(8 + size + start)
                    found.setdefault(hashlib.sha256(file.read(stop - start)).hexdigest(), 8 + size + start)
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(shares(Path(sys.argv[1]), Path(sys.argv[2]))) + "\n")
