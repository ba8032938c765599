"""One type: its small model compiled, run and compared with the library's own code, in a process of its own."""

from __future__ import annotations

import copy
import inspect
import logging
import resource
import tempfile
import time
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from tools.breadth.image_sizes import OWN_IMAGES
from tools.breadth.own_sizes import BY_CLASS, DEFAULTS
from tools.breadth.shrink import ORDINARY, shrunk
from twoheads.compiler import CompiledModel, compile_model
from twoheads.compiler.frontend.torch.model_outputs import hugging_face_outputs
from twoheads.compiler.ir.size_formula import lengths_for
from twoheads.compiler.original.cut_products import CutProducts
from twoheads.export import verify, write_bundle
from twoheads.export.verification.noise_floor import LARGEST_RELATIVE
from twoheads.graphs.errors import CompileError
from twoheads.graphs.program.axes import axis_inputs, axis_length, parse_axis
from twoheads.graphs.program.lengths import input_axes
from twoheads.graphs.program.program import SequenceStage
from twoheads.graphs.program.sequence_operators import sought_tokens
from twoheads.runtime import LoadedBundle, load

__all__ = ["measure", "send_measure"]

BLOCK = 16

LENGTHS = (1, 15, 17, 53, 200)
"""Tokens of the inputs; a model of one input size has only that."""

LARGEST = 40_000_000
"""Parameters of a model that is small."""

SPREAD = 0.12
"""Standard deviation of the weights: enough for attention to matter."""

ALLOWED = 4.0

SMALLEST = 1e-6
"""The bound is never below this share of the magnitude, times :data:`ALLOWED`."""


IMAGES = ("pixel_values", "pixel_values_videos")

TOKENS = 53
"""Of a model whose tokens can't be cut: the only length that it is compiled for."""

ONLY = {**dict.fromkeys(IMAGES, 0), "input_values": 4003, "input_features": 239, "input_ids": TOKENS}
"""The only length by a main argument: samples, frames or tokens. Images have a size instead."""

IMAGE = 64
"""Height and width of an image of a model of any size."""


class _NotSmallError(Exception):
    """No small model of the type can be made; it says nothing about the compiler."""


def measure(kind: str, architecture: str) -> dict[str, Any]:
    """What became of the type: ``exact``, ``off``, ``refused``, ``crash`` or ``unmade``, with its message."""
    torch.set_num_threads(1)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    began = time.process_time()
    row: dict[str, Any] = {}
    try:
        model = _model(kind, architecture)
    except Exception as error:  # noqa: BLE001 - whatever the library raises
        return {"outcome": "unmade", "message": _words(error)}
    try:
        own = {name: _copy(model, name) for name in ("eager", "sdpa")}
        with tempfile.TemporaryDirectory() as folder:
            start = time.process_time()
            compiled, tiled = _compiled(model)
            row |= {} if tiled is None else {"whole": tiled}
            bundle = write_bundle(compiled, Path(folder) / "bundle")
            row["compile_seconds"] = round(time.process_time() - start, 1)
            row |= _compared(loaded := load(bundle), own, tiled)
            given = [_axis_lengths(loaded, n) if n else None for n in row["lengths"]]  # one size has no length
            row["verified"] = all(verify(bundle, model, length=lengths).passed for lengths in given)
    except CompileError as error:
        row |= {"outcome": "refused", "message": str(error)}
    except Exception as error:  # noqa: BLE001 - it is what the sweep looks for
        row |= {"outcome": "crash", "message": _words(error), "trace": traceback.format_exc()[-1500:]}
    row["seconds"] = round(time.process_time() - began, 1)
    row["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return row


def _compiled(model: Any) -> tuple[CompiledModel, str | None]:
    """The model by tiles, or as one engine of one size: then also why it can't be tiled.

    Raises:
        CompileError: Why it can't be tiled, of a model that can't be one engine either.
    """
    try:
        return compile_model(model, block_size=BLOCK), None
    except CompileError as error:
        try:
            return compile_model(model, block_size=BLOCK, lowering="whole", **_only_size(model)), str(error)
        except CompileError:
            raise error from None


def _only_size(model: Any) -> dict[str, Any]:
    """What says the size of a model that is to be one engine: an image, where its configuration says none; a length."""
    taken = inspect.signature(model.forward).parameters
    main = model.main_input_name if model.main_input_name in taken else next((n for n in ONLY if n in taken), "")
    if main not in IMAGES:
        return {"length": ONLY.get(main, TOKENS)}
    return {"example_inputs": _image(model, main)}


def _image(model: Any, name: str) -> dict[str, Tensor] | None:
    """An example of the image ``name`` of a model whose configuration says no size."""
    config = getattr(model.config, "vision_config", model.config)
    if getattr(config, "image_size", None) or getattr(config, "crop_size", None):
        return None
    side = OWN_IMAGES.get(config.model_type, IMAGE)
    return {name: torch.zeros((1, 3, side, side))}


def send_measure(kind: str, architecture: str, memory: int, seconds: int, result: Connection) -> None:
    """Sends what :func:`measure` returns, in a process that may take ``memory`` bytes and ``seconds`` of a core."""
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    result.send(measure(kind, architecture))


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _model(kind: str, architecture: str) -> Any:
    config_class = transformers.CONFIG_MAPPING[kind]
    entries = {**shrunk(config_class(**DEFAULTS.get(kind, {})).to_dict()), **BY_CLASS.get(architecture, {})}
    config = config_class.from_dict({name: value for name, value in entries.items() if name != "transformers_version"})
    model_class = getattr(transformers, architecture)
    if not isinstance(config, model_class.config_class):  # the table names a wrapper's type, and a model inside
        config = next((part for part in _parts(config) if isinstance(part, model_class.config_class)), config)
    torch.manual_seed(0)
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in model_class(copy.deepcopy(config)).parameters())
    if count > LARGEST:
        raise _NotSmallError(f"{count} parameters")
    model = model_class(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            # Convolutions upon convolutions neither explode nor vanish so.
            spread = (2 / parameter[0].numel()) ** 0.5 if parameter.ndim > 3 else SPREAD
            torch.nn.init.normal_(parameter, std=spread)
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            _as_trained(part)
    return model


@torch.no_grad()
def _as_trained(norm: torch.nn.BatchNorm2d) -> None:
    """Factors and statistics that matter: a new model's are ones and zeros, or next to nothing."""
    for numbers in (norm.weight, norm.running_var):
        if numbers is not None:
            torch.nn.init.uniform_(numbers, 0.5, 1.5)
    for numbers in (norm.bias, norm.running_mean):
        if numbers is not None:
            torch.nn.init.normal_(numbers, std=0.1)


def _parts(config: Any) -> list[Any]:
    """The configurations within one."""
    return [getattr(config, name) for name in config.sub_configs if getattr(config, name, None) is not None]


def _copy(model: Any, implementation: str) -> Any:
    """The same model made apart, with one of the library's own attentions."""
    made = type(model)._from_config(copy.deepcopy(model.config), attn_implementation="eager")
    made.load_state_dict(model.state_dict())
    if implementation != "eager":
        try:
            made.set_attn_implementation(implementation)
        except ValueError:
            return None
    return made.eval()


def _compared(bundle: LoadedBundle, own: Mapping[str, Any], tiled: str | None) -> dict[str, Any]:
    """How far the bundle is from the library; ``tiled`` is why it is one engine, if it is.

    Raises:
        CompileError: It is one engine, and the library's own evaluations are of two models.
    """
    axes = input_axes(bundle.program)
    limits = [limit.length for limit in bundle.program.limits]
    rows = bundle.program.value(bundle.program.hidden).axis or "n"
    lengths = [n for n in (_of_input(rows, tokens) for tokens in LENGTHS) if n <= min([n, *limits])] if axes else [0]
    if not lengths:
        raise _NotSmallError(f"takes at most {min(limits)} tokens")
    worst: dict[str, Any] = {"ratio": -1.0}
    whole = tiled is not None
    for length in lengths:
        given = _inputs(bundle, length)
        tensors = {name: torch.from_numpy(array) for name, array in given.items()}
        eager, others = _outputs(own["eager"], tensors), _roundings(own, tensors)
        if whole and "logits" in eager and bundle.program.logits is None:  # a row a token: a whole model's results
            eager, *others = ({"hidden": found["logits"]} for found in (eager, *others))
        for output, want in eager.items():
            result = bundle.run(given, output=output).array
            assert result is not None
            magnitude = float(want.abs().max())
            other = max(float((rounded[output] - want).abs().max()) for rounded in others)
            if other > LARGEST_RELATIVE * magnitude:  # more than rounding: there is nothing to compare with
                apart = f"the library's own evaluations of {output} are {other:.1e} of {magnitude:.1e} apart"
                if tiled is not None:
                    raise CompileError(tiled.split("\n")[0], f"as one engine, {apart}", "compile another model")
                return {"output": apart, "at": length, "error": other, "magnitude": magnitude, "lengths": lengths,
                        "outcome": "off"}  # fmt: skip
            bound = ALLOWED * max(other, SMALLEST * magnitude)
            error = float(np.abs(result.reshape(-1) - want.numpy().reshape(-1)).max())
            if not error / bound <= worst["ratio"]:
                worst = {"ratio": error / bound, "error": error, "magnitude": magnitude, "at": length, "output": output}
    return {**worst, "lengths": lengths, "outcome": "exact" if worst["ratio"] <= 1 else "off"}


def _of_input(rows: str, tokens: int) -> int:
    """How many rows of the input make ``tokens`` of the hidden states: samples of a waveform, or as many."""
    if not axis_inputs(rows) or parse_axis(rows).div == 1:
        return tokens
    return lengths_for(rows, tokens)[axis_inputs(rows)[0]]


@torch.no_grad()
def _outputs(model: Any, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = hugging_face_outputs(model, given)
    return {name: _rows(tensor) for name, tensor in found.items()}


def _rows(tensor: Tensor) -> Tensor:
    """Rows ``[tokens, width]``; a map ``[1, channels, height, width]`` has one for every place, along its lines."""
    if tensor.ndim > 3:
        return tensor[0].reshape(tensor.shape[1], -1).T
    return tensor[0] if tensor.ndim == 3 else tensor


def _roundings(own: Mapping[str, Any], given: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The library's own results with its fused attention, and with every product cut in two: rounded otherwise."""
    found: list[dict[str, Tensor]] = []
    for share in (2, 3):
        with CutProducts(share):
            found.append(_outputs(own["eager"], given))
    return found if own["sdpa"] is None else [*found, _outputs(own["sdpa"], given)]


def _axis_lengths(bundle: LoadedBundle, length: int) -> dict[str, int]:
    """``length`` tokens along ``n``, another number along every other axis."""
    return {axis: length if axis == "n" else _other_length(bundle, axis, length) for axis in input_axes(bundle.program)}


def _other_length(bundle: LoadedBundle, axis: str, length: int) -> int:
    """How long another input is; samples of a waveform are as many as make such a number of rows."""
    rows = 1 + 37 * length % 71
    made = {value.axis for value in bundle.program.values() if value.axis and axis_inputs(value.axis) == (axis,)}
    deepest = max(made, key=lambda each: parse_axis(each).div, default=axis)
    return _of_input(deepest, rows)


def _inputs(bundle: LoadedBundle, length: int) -> dict[str, np.ndarray[Any, Any]]:
    """An array for every argument: ``length`` tokens along ``n``, another number along every other axis."""
    generator = np.random.default_rng(length)
    lengths = _axis_lengths(bundle, length)
    made: dict[str, np.ndarray[Any, Any]] = {}
    for entry in bundle.program.inputs:
        value = entry.value
        if entry.source != "argument":
            continue
        shape = value.block_shape(0 if value.axis is None else axis_length(value.axis, lengths))
        if np.dtype(value.dtype).kind == "f":
            made[value.name] = generator.standard_normal(shape).astype(value.dtype)
        else:
            made[value.name] = generator.integers(0, min(entry.limit or 2, ORDINARY), shape)
    for name, token in sought_tokens(
        stage for stage in bundle.program.body if isinstance(stage, SequenceStage)
    ).items():
        if name in made:
            made[name][..., -1] = token
    return made
