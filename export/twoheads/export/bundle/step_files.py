"""The engines that extend a sequence, as files of a bundle; see :mod:`twoheads.graphs.variants.steps`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from twoheads.export.bundle.engine_files import save_engine
from twoheads.export.bundle.resized_engines import ResizedEngines
from twoheads.export.emit.fused.batch import batch_attention_model
from twoheads.export.emit.fused.batch_in_place import batch_in_place_model
from twoheads.export.emit.fused.in_place import HIDDEN_ROWS, in_place_model
from twoheads.export.emit.fused.step import step_model
from twoheads.export.emit.scans.scan import scan_model
from twoheads.export.emit.tile_attention import attention_model
from twoheads.graphs.program.engines.scan import STEP as SCAN_STEP
from twoheads.graphs.serialization.bundle_format import ENGINES, WEIGHTS, WeightEntry
from twoheads.graphs.variants.batch_steps import BATCH_ROWS, BatchSteps
from twoheads.graphs.variants.in_place.batch_in_place import batches_in_place
from twoheads.graphs.variants.in_place.in_place_steps import InPlaceSteps, in_place_steps
from twoheads.graphs.variants.in_place.rounded_steps import rounded_steps
from twoheads.graphs.variants.steps import SMALL_ROWS, StepEngine, Steps, step_steps
from twoheads.runtime.bundle.weights import Weights

if TYPE_CHECKING:
    import onnx

    from twoheads.compiler.compiled_model import CompiledModel

__all__ = ["write_steps"]


def write_steps(
    compiled: CompiledModel,
    models: Mapping[str, onnx.ModelProto],
    folder: Path,
    entries: Mapping[str, WeightEntry],
    tell: Callable[[int, int], None],
) -> None:
    """Writes them, where the model generates: a few KB a layer each, as weights lie in the bundle's file.

    Args:
        compiled: What is written.
        models: The token-wise engines of whole blocks by name, their weights being inputs.
        folder: The bundle, whose weights are written already.
        entries: Where every weight lies.
        tell: Told how many files are done, of how many.
    """
    steps = step_steps(compiled.program)
    if steps is None:
        return
    engines = tuple(steps.engines)
    resized = ResizedEngines(compiled, models, steps.program)
    in_place = (in_place_steps(compiled.program), rounded_steps(compiled.program))
    total = len(engines) + len(SMALL_ROWS)
    done = 0
    for rows in steps.rows:
        used = models if rows == compiled.program.block_size else resized.of(rows)
        for engine in engines:
            if engine.rows == rows:
                tell(done, total)
                if not _write_step(steps, engine, used, folder, entries):
                    return
                done += 1
        for each in in_place:
            if each is not None and rows in each.rows:
                _write_in_place(each, rows, used, folder, entries)
        if rows in SMALL_ROWS:
            _write_heads(steps, rows, used, folder, entries)
            done += 1
        _write_tiles(steps, rows, folder)
        if rows != compiled.program.block_size:
            _write_regions(steps, rows, used, folder, entries)
    _write_batch(steps, in_place[0], models, resized, folder, entries)


def _write_batch(
    steps: Steps,
    in_place: InPlaceSteps | None,
    models: Mapping[str, onnx.ModelProto],
    resized: ResizedEngines,
    folder: Path,
    entries: Mapping[str, WeightEntry],
) -> None:
    """What extends many sequences at once, beside what one takes."""
    for rows in BATCH_ROWS:
        block = rows == steps.program.block_size
        if block or rows not in steps.rows:
            used = models if block else resized.of(rows)
            _write_heads(steps, rows, used, folder, entries)
            if not block:
                _write_regions(steps, rows, used, folder, entries)
    for engine in BatchSteps(steps).attentions:
        path = folder / ENGINES / f"{engine.name}.onnx"
        save_engine(batch_attention_model(engine), path, engine.inputs, engine.outputs, {})
    for written in () if in_place is None else batches_in_place(in_place):
        path = folder / ENGINES / f"{written.name}.onnx"
        save_engine(batch_in_place_model(written), path, written.inputs, written.outputs, {}, unsized=HIDDEN_ROWS)


def _write_step(
    steps: Steps,
    engine: StepEngine,
    models: Mapping[str, onnx.ModelProto],
    folder: Path,
    entries: Mapping[str, WeightEntry],
) -> bool:
    """Writes an engine; whether it can be made at all."""
    model = step_model(steps, engine, models, Weights(folder / WEIGHTS, dict(entries)).view)
    if model is None:
        return False
    bound = {port.name: entries[name] for name, port in steps.body.weights.items()}
    save_engine(model, folder / ENGINES / f"{engine.name}.onnx", engine.inputs, engine.outputs, bound)
    return True


def _write_in_place(
    steps: InPlaceSteps,
    rows: int,
    models: Mapping[str, onnx.ModelProto],
    folder: Path,
    entries: Mapping[str, WeightEntry],
) -> None:
    """What takes so many rows on ONNX Runtime's processors."""
    view = Weights(folder / WEIGHTS, dict(entries)).view
    bound = {port.name: entries[name] for name, port in steps.steps.body.weights.items()}
    for engine in steps.engines:
        model = in_place_model(steps, engine, models, view) if engine.rows == rows else None
        if model is not None:
            path = folder / ENGINES / f"{engine.name}.onnx"
            save_engine(model, path, engine.inputs, engine.outputs, bound, unsized=HIDDEN_ROWS)


def _write_heads(
    steps: Steps, rows: int, models: Mapping[str, onnx.ModelProto], folder: Path, entries: Mapping[str, WeightEntry]
) -> None:
    for original, (stage, engine) in zip(steps.program.head, steps.heads(rows), strict=True):
        bound = {port.name: entries[name] for port, name in zip(engine.weights, stage.weights, strict=True)}
        model = models[original.engine]
        save_engine(model, folder / ENGINES / f"{engine.name}.onnx", engine.inputs, engine.outputs, bound)


def _write_tiles(steps: Steps, rows: int, folder: Path) -> None:
    """Scans, and attention tile by tile, of a step over more keys than any capacity; scans of a batch, too."""
    used = steps.kept or rows == steps.rows[1]
    for scan in {steps.scan(scanned, rows) for scanned, _ in steps.body.scans} if used else ():
        file = folder / ENGINES / f"{scan.name}.{SCAN_STEP}.onnx"
        save_engine(scan_model(scan, SCAN_STEP), file, *scan.ports(SCAN_STEP), {})
    for tile, variants in steps.tiles(rows).items():
        for variant in variants:
            file = folder / ENGINES / f"{tile.name}.{variant}.onnx"
            save_engine(attention_model(tile, variant), file, *tile.ports(variant), {})


def _write_regions(
    steps: Steps, rows: int, models: Mapping[str, onnx.ModelProto], folder: Path, entries: Mapping[str, WeightEntry]
) -> None:
    """The token-wise engines of such a step, and of one for many sequences."""
    for name, stage in {stage.engine: stage for stage, _ in reversed(steps.body.regions)}.items():
        region = steps.region(stage, rows)
        bound = {port.name: entries[weight] for port, weight in zip(region.weights, stage.weights, strict=True)}
        save_engine(models[name], folder / ENGINES / f"{region.name}.onnx", *region.ports(), bound)
