"""Writes a bundle as one ONNX file, completely or not at all, and checks it by running it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx

from twoheads.export.bundle.staging import partial_folder, write_error
from twoheads.export.one_file.comparison import LengthCheck
from twoheads.export.one_file.forms import STEP, WHOLE, Unfinished
from twoheads.export.one_file.weights import (
    LARGEST_INSIDE,
    holds_weights,
    total_bytes,
    weights_beside,
    weights_inside,
    write_weights,
)
from twoheads.export.progress import Progress, silent
from twoheads.graphs.errors import InputError, InternalError
from twoheads.runtime.bundle.reader import Bundle, read_bundle

__all__ = ["Exported", "export_one_file"]

LARGEST_FILE = 2_000_000_000
"""Bytes; the format's files end at 2 GiB."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written.

    Attributes:
        file: The model.
        weights: The file beside it that holds the weights, or ``None`` where they are inside.
        inputs, outputs: Name to shape, in numbers and axes.
        key_tile: Keys of one attention call.
        checks: The file beside the runtime.
    """

    file: Path
    weights: Path | None
    inputs: dict[str, tuple[int | str, ...]]
    outputs: dict[str, tuple[int | str, ...]]
    key_tile: int
    checks: tuple[LengthCheck, ...]


def export_one_file(
    bundle: str | Path,
    file: str | Path,
    *,
    outputs: Sequence[str] = (),
    key_tile: int | None = None,
    weights: str = "auto",
    weights_file: str | None = None,
    step: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Writes ``bundle`` as the ONNX file ``file`` and runs it beside the runtime.

    Args:
        bundle: A bundle of the tile programs in float32, exact or with a window; its weights may be quantised.
        file: The file to write; where weights lie beside it, they are in ``FILE.data``.
        outputs: ``hidden``, ``logits``, ``last``, ``embedding``; the program's default, or ``last`` of a step, if
            there are none.
        key_tile: Keys of one attention call, a multiple of the block size; the bundle's own if not given.
        weights: ``inside``, ``beside``, or ``auto``: inside up to :data:`LARGEST_INSIDE` bytes.
        weights_file: The name of the file beside that holds the weights. One that is there and holds just these is
            shared.
        step: The file extends a sequence: it takes new tokens and what is kept of those before, and gives what is
            kept then beside its outputs.
        overwrite: Replace files that are there.
        progress: Called as ``progress(phase, done, total)``.

    Raises:
        InputError: The bundle can't be written so, or an argument is not one of the choices; names which and why.
        CompileError: An operator has no form in the file's operator set.
        BundleError: The bundle is damaged, the disk refuses, or the file does not compute what the runtime does.
    """
    report = progress or silent
    source, target = read_bundle(bundle), Path(file)
    program = source.program
    form = STEP if step else WHOLE
    names = tuple(outputs) or (form.default_output(program),)
    form.check(source, names)
    width = program.key_tile if key_tile is None else key_tile
    if width < program.block_size or width % program.block_size:
        raise InputError("--key-tile", f"is {width}", f"give a multiple of the block size, {program.block_size}")
    report("building the graph")
    model = form.build(source, names, width)
    data = _data_file(target, weights_file) if _is_beside(source, model, weights, weights_file) else None
    try:
        shared = data is not None and weights_file is not None and _is_shared(source, model, data)
        _check_targets([target, *([] if data is None or shared else [data])], overwrite=overwrite)
        compare = partial(form.compare, outputs=names)
        proto, checks = _write(source, model, target, data, compare, report, shared=shared)
    except OSError as error:
        raise write_error(target, error) from error
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise InternalError(f"{target} is not valid ONNX: {error}") from error
    return Exported(target, data, _shapes(proto.graph.input), _shapes(proto.graph.output), width, checks)


def _write(
    source: Bundle,
    model: Unfinished,
    target: Path,
    data: Path | None,
    compare: Callable[..., tuple[LengthCheck, ...]],
    report: Progress,
    *,
    shared: bool,
) -> tuple[onnx.ModelProto, tuple[LengthCheck, ...]]:
    """Writes the model, and its weights to ``data`` if that is given, and puts both in place where they agree.

    What ``data`` is already, where it is ``shared``, stays; the model runs on a copy, as ONNX follows no links.
    """
    with partial_folder(target) as folder:
        written = folder / target.name
        report("writing the weights")
        place = None if data is None else folder / data.name
        if place is None:
            proto = model.model(weights_inside(source, model.weights))
        else:
            proto = model.model(weights_beside(source, model.weights, place.name))
            write_weights(source, model.weights, place)
        written.write_bytes(proto.SerializeToString(deterministic=True))
        report("running it")
        onnx.checker.check_model(str(written), full_check=True)
        checks = compare(written, source.path, told=str(target))
        _put(written, target, None if shared else place, data)
    return proto, checks


def _put(written: Path, target: Path, weights: Path | None, data: Path | None) -> None:
    """Moves the model to ``target``, and its weights, if they lie beside it, to ``data``."""
    if weights is not None and data is not None:
        target.unlink(missing_ok=True)  # or a kill could leave the old model with weights that are not its own
        os.replace(weights, data)
    os.replace(written, target)


def _data_file(target: Path, name: str | None) -> Path:
    """Where weights beside ``target`` lie."""
    if name is not None and (Path(name).name != name or name == target.name):
        raise InputError("--weights-file", f"is {name!r}", "say the name of a file beside the model, without a folder")
    return target.with_name(name or target.name + ".data")


def _is_beside(bundle: Bundle, model: Unfinished, weights: str, weights_file: str | None) -> bool:
    """Whether the weights go to a file of their own."""
    size = total_bytes(bundle, model.weights)
    if weights not in ("auto", "inside", "beside"):
        raise InputError("--weights", f"is {weights!r}", "say auto, inside or beside")
    if weights == "inside" and weights_file is not None:
        raise InputError("--weights-file", "is of no use to weights inside of the model", "say --weights beside")
    if weights == "inside" and size > LARGEST_FILE:
        raise InputError("--weights", f"of {size / 1e9:.1f} GB do not fit inside of one ONNX file", "say beside")
    return weights == "beside" or weights_file is not None or (weights == "auto" and size > LARGEST_INSIDE)


def _is_shared(bundle: Bundle, model: Unfinished, data: Path) -> bool:
    """Whether the weights are in place already.

    Raises:
        InputError: There are others.
    """
    if not data.exists():
        return False
    if not data.is_file() or not holds_weights(bundle, model.weights, data):
        raise InputError(
            str(data), "is there and does not hold just this model's weights", "name another --weights-file"
        )
    return True


def _check_targets(files: list[Path], *, overwrite: bool) -> None:
    for file in files:
        if file.exists() and not overwrite:
            raise InputError(str(file), "exists already", "name another place, or replace it with --force")
        if file.is_dir():
            raise InputError(str(file), "is a folder, and the output is a file", "name a file in it")


def _shapes(ports: Sequence[onnx.ValueInfoProto]) -> dict[str, tuple[int | str, ...]]:
    return {
        port.name: tuple(dim.dim_param or dim.dim_value for dim in port.type.tensor_type.shape.dim) for port in ports
    }
