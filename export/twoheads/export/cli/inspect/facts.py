"""What a bundle can, derived from its program and its manifest."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, cast

from twoheads.graphs.errors import BundleError
from twoheads.graphs.program.program import (
    AttentionStage,
    Engine,
    ExpertsEngine,
    Program,
    ScanEngine,
    TokenwiseEngine,
)
from twoheads.graphs.schedule.head_columns import head_columns
from twoheads.graphs.serialization.bundle_format import DENSE_EXPERTS, ENGINES, LEFT_OUT, LOSSLESS, Manifest
from twoheads.graphs.variants.choose import fused_steps
from twoheads.graphs.variants.model_steps import MODEL
from twoheads.graphs.variants.one_block import ONE_BLOCK, one_block
from twoheads.graphs.variants.packing import longest_packable, packed_variant

__all__ = [
    "attention_stages",
    "dense_experts",
    "engines_of",
    "full_matrices",
    "head_pieces",
    "left_out",
    "left_out_text",
    "mask_counts",
    "mixture_counts",
    "one_call_up_to",
    "packs_up_to",
    "precision_text",
    "scan_counts",
]


def precision_text(manifest: Manifest) -> str:
    """The formats, and how many weights are quantised to which; of a lossless one, how many matrices are not."""
    bits = Counter(entry.bits for entry in manifest.quantised.values())
    counts = [f"{count} weights of {width} bits" for width, count in sorted(bits.items())]
    if manifest.weight_dtype == LOSSLESS:
        counts += [f"{len(full_matrices(manifest))} matrices of float32"]
    return manifest.precision + (f" ({', '.join(counts)})" if counts else "")


def full_matrices(manifest: Manifest) -> list[str]:
    """The weights of two dimensions or more that are stored as they are."""
    stored = {name for entry in manifest.quantised.values() for name in entry.stored}
    return [name for name, entry in manifest.weights.items() if len(entry.shape) > 1 and name not in stored]


def attention_stages(program: Program) -> list[AttentionStage]:
    """In the order of the body."""
    return list(program.attentions)


def mask_counts(program: Program) -> Counter[str]:
    """How many attention layers have which mask; those that look at another axis say so."""
    values = {value.name: value for value in program.values()}

    def text(stage: AttentionStage) -> str:
        queries, keys = stage.axes(values)
        return str(stage.mask) + ("" if queries == keys else f" from {queries} to {keys}")

    return Counter(map(text, attention_stages(program)))


def scan_counts(program: Program) -> Counter[str]:
    """How many layers hand on a state, by operator."""
    return Counter(program.engine_of(ScanEngine, stage.engine).operator for stage in program.scans)


def mixture_counts(program: Program) -> Counter[str]:
    """How many layers gather tokens by expert, by how many of the experts a token takes."""
    engines = (program.engine_of(ExpertsEngine, stage.engine) for stage in program.mixtures)
    return Counter(f"{engine.chosen} of {engine.experts}, gathered by expert" for engine in engines)


def dense_experts(path: Path, manifest: Manifest) -> dict[str, str]:
    """Why mixtures of experts of the bundle in ``path`` are computed densely, by the paths of their modules.

    Raises:
        BundleError: The file says something else.
    """
    if DENSE_EXPERTS not in manifest.files:
        return {}
    found = json.loads((path / DENSE_EXPERTS).read_bytes())
    entries: dict[str, Any] = cast("dict[str, Any]", found) if isinstance(found, dict) else {"": None}
    if not all(isinstance(reason, str) for reason in entries.values()):
        raise BundleError(str(path / DENSE_EXPERTS), "does not list reasons", "compile the model again")
    return entries


def left_out(path: Path, manifest: Manifest) -> tuple[str, ...]:
    """The results of the source, by its names, that the bundle in ``path`` does not give.

    Raises:
        BundleError: The file says something else.
    """
    if LEFT_OUT not in manifest.files:
        return ()
    found = json.loads((path / LEFT_OUT).read_bytes())
    names: list[Any] = found if isinstance(found, list) else [None]
    if not all(isinstance(name, str) for name in names):
        raise BundleError(str(path / LEFT_OUT), "does not list names", "compile the model again")
    return tuple(names)


def left_out_text(names: tuple[str, ...]) -> str:
    """What to do about results that are left out."""
    return f"{', '.join(names)} (the source's results that runs do not give; choose with compile --result NAME)"


def packs_up_to(manifest: Manifest, program: Program) -> int:
    """The longest input that shares calls with others in a run of a list, in tokens; 0 if none does."""
    longest = longest_packable(program)
    needed = {
        f"{ENGINES}/{stage.engine}.{packed_variant(stage.mask, longest)}.onnx" for stage in attention_stages(program)
    }
    return longest if longest and needed <= manifest.files.keys() else 0


def one_call_up_to(manifest: Manifest, program: Program) -> int:
    """The longest single input whose body is one call, in tokens; 0 if there is none."""
    held = f"{ENGINES}/{ONE_BLOCK}.onnx" in manifest.files and one_block(program) is not None
    return program.block_size if held or manifest.lowering == MODEL else 0


def engines_of(manifest: Manifest, program: Program) -> list[Engine]:
    """Those of the program, those that hold several of its stages for inputs of any length, and that of pieces."""
    pieces = head_pieces(manifest, program)
    return [
        *program.engines,
        *(engine for _, engine in fused_steps(program, manifest.lowering)),
        *(() if pieces is None else (pieces,)),
    ]


def head_pieces(manifest: Manifest, program: Program) -> TokenwiseEngine | None:
    """The engine of some columns of the head; ``None`` where the bundle holds none."""
    columns = head_columns(program)
    if columns is None:
        return None
    engine = columns.engine_of(TokenwiseEngine, columns.head[0].engine)
    return engine if f"{ENGINES}/{engine.name}.onnx" in manifest.files else None
