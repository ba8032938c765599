"""A compiled model into a bundle: the folder that :mod:`twoheads.graphs.serialization.bundle_format` describes."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twoheads.export.bundle.columns_file import write_columns
from twoheads.export.bundle.emitters import attention_models
from twoheads.export.bundle.engine_files import save_engine
from twoheads.export.bundle.signing import SigningKey, sign_bundle
from twoheads.export.bundle.staging import written_folder
from twoheads.export.bundle.step_files import write_steps
from twoheads.export.bundle.weights_file import NamedWeight, total_bytes, write_weights
from twoheads.export.emit.fused.emit import fused_model
from twoheads.export.emit.tokenwise import emit_tokenwise
from twoheads.export.progress import Progress, silent
from twoheads.graphs.errors import BundleError, CompileError, InternalError
from twoheads.graphs.program.engines.fused import FusedEngine
from twoheads.graphs.program.program import Engine, ExpertsEngine, Program, TokenwiseEngine
from twoheads.graphs.serialization.bundle_format import (
    DENSE_EXPERTS,
    ENGINES,
    FORMAT_VERSION,
    GENERATION,
    LEFT_OUT,
    MANIFEST,
    PROGRAM,
    SIGNATURE,
    TARGETS,
    TOKENIZER,
    WEIGHT_HASHES,
    WEIGHTS,
    FileEntry,
    Manifest,
    WeightEntry,
    tiles_folder,
)
from twoheads.graphs.serialization.json_codec import to_json
from twoheads.graphs.serialization.relative_path import RelativePath
from twoheads.graphs.variants.choose import fused_steps
from twoheads.graphs.variants.key_tiles import with_key_tile
from twoheads.graphs.variants.one_block import ONE_BLOCK
from twoheads.runtime.bundle.weights import Weights

if TYPE_CHECKING:
    import onnx

    from twoheads.compiler.compiled_model import CompiledModel

__all__ = ["check_is_bundle", "file_entry", "write_bundle", "write_json"]

_log = logging.getLogger(__name__)

_TOP_LEVEL = {MANIFEST, SIGNATURE, PROGRAM, ENGINES, Path(TOKENIZER).parts[0], TARGETS}


def write_bundle(
    compiled: CompiledModel,
    path: str | Path,
    *,
    overwrite: bool = False,
    sign: SigningKey | None = None,
    progress: Progress | None = None,
    generation: bool = True,
) -> Path:
    """Writes ``compiled`` as the folder ``path``, completely or not at all.

    Args:
        compiled: The result of ``compile_model``.
        path: The folder to create.
        overwrite: Replace an existing bundle; anything else in that place is never replaced.
        sign: Signs it; by default it has no signature.
        progress: Called as ``progress(phase, done, total)``.
        generation: Whether a decoder gets engines that extend a sequence token by token.

    Returns:
        The folder.

    Raises:
        BundleError: The target exists or is not a bundle, or the disk refuses; the path and the cause are named.
    """
    report = progress or silent
    with written_folder(Path(path), overwrite=overwrite, check_replaceable=check_is_bundle) as folder:
        _write_content(compiled, folder, Path(path), report, generation=generation)
        if sign is not None:
            sign_bundle(folder, sign)
        report("finish")
    _log.info("wrote %s", path)
    return Path(path)


def _write_content(
    compiled: CompiledModel, folder: Path, target: Path, progress: Progress, *, generation: bool
) -> None:
    program = compiled.program
    (folder / ENGINES).mkdir()
    stored = _stored_weights(compiled)
    total = total_bytes(stored)
    _check_space(folder, target, total)
    hashes: dict[str, str] = {}
    entries, weights = write_weights(
        folder / WEIGHTS,
        stored,
        progress=lambda done: progress("write weights", done, total),
        hashes=hashes,
        parted={name for stage in program.mixtures for name in stage.weights},
    )
    write_json(folder / WEIGHT_HASHES, hashes)
    progress("write weights", total, total)
    models = _write_engines(compiled, folder, entries, progress)
    if generation:
        write_steps(compiled, models, folder, entries, lambda done, total: progress("write step engines", done, total))
    write_json(folder / PROGRAM, to_json(program))
    if compiled.dense_experts:
        write_json(folder / DENSE_EXPERTS, dict(compiled.dense_experts))
    if compiled.left_out:
        write_json(folder / LEFT_OUT, list(compiled.left_out))
    if compiled.tokenizer_json is not None:
        (folder / TOKENIZER).parent.mkdir()
        (folder / TOKENIZER).write_bytes(compiled.tokenizer_json)
    if compiled.generation_json is not None:
        (folder / GENERATION).parent.mkdir(exist_ok=True)
        (folder / GENERATION).write_bytes(compiled.generation_json)
    progress("write manifest")
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        producer=f"twoheads {version('twoheads')}",
        source=compiled.identity,
        block_size=program.block_size,
        key_tile=program.key_tile,
        lowering=compiled.lowering,
        dtype=compiled.dtype,
        approximations=compiled.approximations,
        weights=entries,
        files=_files(folder, weights),
        weight_dtype=compiled.weight_dtype,
        products=compiled.products,
        quantised=dict(compiled.quantised),
        other_key_tiles=compiled.other_key_tiles,
    )
    write_json(folder / MANIFEST, to_json(manifest))


def _stored_weights(compiled: CompiledModel) -> list[NamedWeight]:
    """Every weight with the dtype of the port it is bound to; those that no port declares are float32."""
    program = compiled.program
    dtypes: dict[str, str] = {}
    for stage, engine in program.bindings:
        dtypes.update((name, port.dtype) for port, name in zip(engine.weights, stage.weights, strict=True))
    for mixture in program.mixtures:
        ports = program.engine_of(ExpertsEngine, mixture.engine).expert_ports
        dtypes.update((name, port.dtype) for port, name in zip(ports, mixture.weights, strict=True))
    names = program.weights()
    if missing := [name for name in names if name not in compiled.weights]:
        raise InternalError(f"program {program.name} binds {missing[0]!r}, which was not compiled")
    return [(name, compiled.weights[name], dtypes.get(name, "float32")) for name in names]


def _write_engines(
    compiled: CompiledModel, folder: Path, entries: dict[str, WeightEntry], progress: Progress
) -> dict[str, onnx.ModelProto]:
    """Writes the engines of blocks; returns the token-wise ones' models, their weights being inputs."""
    program = compiled.program
    models: dict[str, onnx.ModelProto] = {}
    for done, engine in enumerate(program.engines):
        progress("write engines", done, len(program.engines))
        if engine.name not in compiled.regions:
            _write_attention(program, engine, folder / ENGINES)
            continue
        declared = program.engine_of(TokenwiseEngine, engine.name)
        model = emit_tokenwise(compiled.regions[engine.name], declared)
        models[engine.name] = copy.deepcopy(model)
        _save_tokenwise(program, declared, model, folder, entries)
    for steps, engine in fused_steps(program, compiled.lowering, short=True):
        _write_fused(program, steps, engine, models, folder, entries)
    write_columns(program, models, folder, entries)
    for width in compiled.other_key_tiles:
        wider = with_key_tile(program, width)
        (folder / tiles_folder(width)).mkdir()
        for engine in wider.engines:
            if engine.kind == "attention":
                _write_attention(wider, engine, folder / tiles_folder(width))
    progress("write engines", len(program.engines), len(program.engines))
    return models


def _write_attention(program: Program, engine: Engine, folder: Path) -> None:
    for variant, model in attention_models(program, engine):
        save_engine(model, folder / f"{engine.name}.{variant}.onnx", *engine.ports(variant), {})


def _save_tokenwise(
    program: Program,
    engine: TokenwiseEngine,
    model: onnx.ModelProto,
    folder: Path,
    entries: dict[str, WeightEntry],
) -> None:
    """Writes ``model``, whose weights are inputs, with those of the first stage that uses it."""
    bound = _first_weights(program, engine, entries)
    save_engine(model, folder / ENGINES / f"{engine.name}.onnx", engine.inputs, engine.outputs, bound)


def _write_fused(
    program: Program,
    steps: Program,
    engine: FusedEngine,
    models: dict[str, onnx.ModelProto],
    folder: Path,
    entries: dict[str, WeightEntry],
) -> None:
    """An engine that ``steps`` declares in place of several of ``program``."""
    model = fused_model(program, steps, engine, models, Weights(folder / WEIGHTS, entries).view)
    if model is None:
        if engine.name == ONE_BLOCK:
            return  # short inputs then take the way of long ones
        problem = "has regions of different or old operator sets, with functions or subgraphs, which can't be joined"
        raise CompileError(program.name, problem, "choose --lowering tile")
    _save_tokenwise(steps, engine, model, folder, entries)


def _first_weights(
    program: Program, engine: TokenwiseEngine, entries: dict[str, WeightEntry]
) -> dict[str, WeightEntry]:
    """The weights of the first stage that uses ``engine``, by port, after checking those of all stages."""
    bound: dict[str, WeightEntry] | None = None
    for stage, used in program.bindings:
        if used.name != engine.name:
            continue
        for port, name in zip(engine.weights, stage.weights, strict=True):
            if (entries[name].dtype, entries[name].shape) != (port.dtype, port.shape):
                raise InternalError(f"stage {stage.name}: weight {name} does not fit the port {port}")
        bound = bound or {p.name: entries[name] for p, name in zip(engine.weights, stage.weights, strict=True)}
    if bound is None:
        raise InternalError(f"no stage of program {program.name} uses engine {engine.name}")
    return bound


def _check_space(folder: Path, target: Path, needed: int) -> None:
    """Refuses before the work rather than after it; a disk that fills up later is noticed while writing."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise BundleError(
            str(target),
            f"could not be written: the weights take {needed / 1e6:.0f} MB, the disk has {free / 1e6:.0f} MB left",
            "free some space or write to another disk",
        )


def check_is_bundle(target: Path) -> None:
    """Raises unless ``target`` is a bundle or an empty folder, which alone may be replaced."""
    entries = {entry.name for entry in target.iterdir()} if target.is_dir() else None
    if entries == set():
        return
    fix = "name another place, or remove it yourself"
    if entries is None or MANIFEST not in entries or not _is_manifest(target / MANIFEST):
        raise BundleError(str(target), "is not a bundle, so it is not overwritten", fix)
    if foreign := sorted(entries - _TOP_LEVEL):
        raise BundleError(str(target), f"holds {foreign[0]!r}, which no bundle has, so it is not overwritten", fix)


def _is_manifest(path: Path) -> bool:
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and "format_version" in data


def write_json(path: Path, data: Any) -> None:
    """Writes what :func:`to_json` gave, for people to read."""
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def file_entry(path: Path) -> FileEntry:
    """The size and hash of a file."""
    with path.open("rb") as file:
        return FileEntry(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def _files(folder: Path, weights: FileEntry) -> dict[RelativePath, FileEntry]:
    """Every file of the folder by relative path; the weights' hash is known already."""
    files: dict[RelativePath, FileEntry] = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent) / name
            relative = RelativePath(path.relative_to(folder).as_posix())
            if relative == WEIGHTS:
                files[relative] = weights
                continue
            files[relative] = file_entry(path)
    return dict(sorted(files.items()))
