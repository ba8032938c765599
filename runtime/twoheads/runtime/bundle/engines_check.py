"""Whether the engines that a program declares are possible, and have files beside it."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite

from twoheads.graphs.program.engines.experts import expert_problem
from twoheads.graphs.program.engines.scan import engine_problem
from twoheads.graphs.program.program import (
    AnyAttention,
    AttentionEngine,
    Engine,
    ExpertsEngine,
    Port,
    Program,
    ScanEngine,
    TokenwiseEngine,
)
from twoheads.graphs.serialization.bundle_format import ENGINES, Manifest, tiles_folder
from twoheads.graphs.serialization.relative_path import RelativePath
from twoheads.graphs.variants.choose import fused_steps
from twoheads.graphs.variants.model_steps import MODEL
from twoheads.graphs.variants.window_steps import WINDOW
from twoheads.runtime.bundle.weights_table import DTYPES

__all__ = ["engines_problem"]


def engines_problem(program: Program, manifest: Manifest) -> str | None:
    """The first thing that is wrong with the engines of ``program``, in words; ``None`` where nothing is.

    Args:
        program: What declares them.
        manifest: Of the bundle that holds them.
    """
    return next(_problems(program, manifest), None)


def _problems(program: Program, manifest: Manifest) -> Iterator[str]:
    yield from _other_tiles(program, manifest)
    if len({engine.name for engine in program.engines}) < len(program.engines):
        yield "declares two engines of one name"
    for engine in program.engines:
        yield from _names_and_files(engine, manifest)
        yield from (f"engine {engine.name}: {problem}" for problem in _form(engine, program))
    if manifest.lowering in (WINDOW, MODEL):
        yield from _steps(program, manifest)


def _other_tiles(program: Program, manifest: Manifest) -> Iterator[str]:
    """The widths that the manifest offers are possible, and every attention has engines for them."""
    widths = manifest.other_key_tiles
    for width in widths:
        fits = width > 0 and width % program.block_size == 0 and width != program.key_tile
        if not fits or widths.count(width) > 1:
            yield f"can't have key tiles of {width} tokens beside its own"
        for engine in program.engines:
            files = (f"{tiles_folder(width)}/{engine.name}.{variant}.onnx" for variant in engine.VARIANTS)
            if isinstance(engine, AnyAttention) and not any(file in manifest.files for file in files):
                yield f"engine {engine.name} has no file for key tiles of {width} tokens"
    if widths and any(stage.average is not None for stage in program.attentions):
        yield "samples keys by tiles, so that it has no others beside its own"


def _steps(program: Program, manifest: Manifest) -> Iterator[str]:
    """The engines that hold several stages are there."""
    engines = [engine for _, engine in fused_steps(program, manifest.lowering)]
    if not engines:
        what = "no windowed layer" if manifest.lowering == WINDOW else "a layer that is no causal window"
        yield f"has {what}, and the manifest says that it is lowered so"
    for engine in engines:
        file = f"{ENGINES}/{engine.name}.onnx"
        if file not in manifest.files:
            yield f"engine {engine.name} has no file {file}"


def _names_and_files(engine: Engine, manifest: Manifest) -> Iterator[str]:
    """Its name is that of a file, which is there; of experts all are. A pack holds what was made of them instead."""
    if not _is_file_name(engine.name):
        yield f"engine {engine.name!r}: its name is no plain name of a file"
    variants = [""] if isinstance(engine, TokenwiseEngine) else [f".{variant}" for variant in engine.VARIANTS]
    files = [f"{ENGINES}/{engine.name}{variant}.onnx" for variant in variants]
    missing = [file for file in files if file not in manifest.files]
    wanted = missing if isinstance(engine, ExpertsEngine) or len(missing) == len(files) else []
    if wanted and manifest.packed_for is None:
        yield f"engine {engine.name} has no file {wanted[0]}"


def _form(engine: Engine, program: Program) -> Iterator[str]:
    """Its sizes, types and ports fit each other, and the program's blocks."""
    if isinstance(engine, TokenwiseEngine):
        yield from _ports((*engine.inputs, *engine.outputs, *engine.weights))
    elif isinstance(engine, ScanEngine):
        problem = engine_problem(engine, program.block_size)
        yield from [] if problem is None else [problem]
    elif isinstance(engine, ExpertsEngine):
        problem = expert_problem(engine, program.block_size)
        if problem is not None or engine.dtype not in DTYPES:
            yield problem or engine.dtype
    else:
        yield from _attention(engine, program)


def _ports(ports: tuple[Port, ...]) -> Iterator[str]:
    for port in ports:
        if port.dtype not in DTYPES:
            yield f"port {port.name} has dtype {port.dtype!r}"
    if len({port.name for port in ports}) < len(ports):
        yield "has two ports of one name"


def _attention(engine: AnyAttention, program: Program) -> Iterator[str]:
    if engine.dtype not in DTYPES:
        yield f"dtype {engine.dtype!r}"
    fits = (
        (engine.block_size, engine.key_tile) == (program.block_size, program.key_tile)
        and engine.kv_num_heads > 0
        and engine.q_num_heads % engine.kv_num_heads == 0
        and (engine.kind == "oracle" or engine.mask_heads in (1, engine.q_num_heads))
        and (not isinstance(engine, AttentionEngine) or _distances_fit(engine))
    )
    if not fits:
        yield "its heads or tiles do not fit the program"
    softcap = engine.softcap if isinstance(engine, AttentionEngine) else 0.0
    for name, number, possible in (("scale", engine.scale, engine.scale > 0), ("softcap", softcap, softcap >= 0)):
        if not possible or not isfinite(number):
            yield f"its {name} is {number:g}"


def _distances_fit(engine: AttentionEngine) -> bool:
    """Whether columns of scores by distance leave others, and every head has keys of its own."""
    alike = engine.q_num_heads == engine.kv_num_heads and engine.mask_heads == 1 and not engine.softcap
    return engine.distances == 0 or (alike and 0 < engine.distances < engine.head_dim)


def _is_file_name(text: str) -> bool:
    try:
        return RelativePath(text).is_name
    except ValueError:
        return False
