"""An engine by the builder that TensorRT and TensorRT for RTX have in common, driven through Polygraphy.

The network is strongly typed: it computes in the types that the ONNX file gives its tensors. Every size is a number, so
the optimisation profile is static. Polygraphy imports the one or the other by ``POLYGRAPHY_USE_TENSORRT_RTX``, which
must be set before this module is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from polygraphy.backend.trt import (
    Profile,
    TrtRunner,
    create_config,
    engine_bytes_from_network,
    engine_from_bytes,
    network_from_onnx_path,
)


def build_engine(request: dict[str, Any], prepare: Callable[[Any], None]) -> None:
    """Writes ``NAME.engine``, and ``NAME.timing`` with what the builder measured, and runs the engine if asked.

    Args:
        request: As the harness gives it.
        prepare: Changes the builder's configuration.
    """
    base = Path(request["folder"]) / request["name"]
    builder, network, parser = network_from_onnx_path(request["onnx"], strongly_typed=True)
    config = create_config(builder, network, profiles=[_static_profile(network)])
    prepare(config)
    plan = engine_bytes_from_network((builder, network, parser), config, save_timing_cache=f"{base}.timing")
    Path(f"{base}.engine").write_bytes(memoryview(plan))
    if request["outputs"]:
        with np.load(request["inputs"]) as given, TrtRunner(engine_from_bytes(plan)) as runner:
            np.savez(request["outputs"], **runner.infer({name: given[name] for name in given.files}))


def _static_profile(network: Any) -> Profile:
    profile = Profile()
    for at in range(network.num_inputs):
        port = network.get_input(at)
        profile.add(port.name, *[tuple(port.shape)] * 3)
    return profile
