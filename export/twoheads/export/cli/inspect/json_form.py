"""What ``inspect --json`` prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twoheads.export.cli.inspect.facts import (
    attention_stages,
    engines_of,
    left_out,
    mask_counts,
    one_call_up_to,
    packs_up_to,
)
from twoheads.graphs.program.printer import print_program
from twoheads.graphs.program.program import (
    Engine,
    Port,
    Program,
)
from twoheads.graphs.serialization.bundle_format import TOKENIZER, WEIGHTS, Manifest

__all__ = ["bundle_to_json"]


def bundle_to_json(path: Path, manifest: Manifest, program: Program, *, program_text: bool) -> dict[str, Any]:
    """All of it; the program as text where that is asked for. Sizes are in bytes."""
    limit = program.max_length
    data: dict[str, Any] = {
        "bundle": str(path),
        "format_version": manifest.format_version,
        "producer": manifest.producer,
        "source": _named(manifest.source, "name", "form", "architecture", "sha256"),
        "block_size": manifest.block_size,
        "key_tile": manifest.key_tile,
        "other_key_tiles": list(manifest.other_key_tiles),
        "lowering": manifest.lowering,
        "dtype": manifest.dtype,
        "weight_dtype": manifest.weight_dtype,
        "products": manifest.products,
        "quantised": sorted(manifest.quantised),
        "approximations": list(manifest.approximations),
        "inputs": [
            {
                "name": entry.value.name,
                "dtype": entry.value.dtype,
                "shape": list(entry.value.shape),
                "source": entry.source,
            }
            for entry in program.inputs
        ],
        "outputs": list(program.outputs),
        "default_output": program.default_output,
        "left_out": list(left_out(path, manifest)),
        "max_length": None if limit is None else _named(limit, "length", "reason"),
        "other_limits": {other.axis: _named(other, "length", "reason") for other in program.other_limits},
        "trained_length": program.trained_length,
        "tokenizer": TOKENIZER in manifest.files,
        "packs_up_to": packs_up_to(manifest, program),
        "one_call_up_to": one_call_up_to(manifest, program),
        "targets": {
            name: _named(entry, "compiler", "version", "precision", "device")
            for name, entry in manifest.targets.items()
        },
        "masks": dict(mask_counts(program)),
        "layers": [{"name": stage.name, "mask": str(stage.mask)} for stage in attention_stages(program)],
        "weights": len(manifest.weights),
        "weights_bytes": manifest.files[WEIGHTS].size if WEIGHTS in manifest.files else 0,
        "files": len(manifest.files) + 1,
        "bytes": sum(entry.size for entry in manifest.files.values()),
        "stages": len(program.body) + len(program.head),
        "engines": [_engine_to_json(engine) for engine in engines_of(manifest, program)],
    }
    if program_text:
        data["program"] = print_program(program)
    return data


def _named(entry: object, *names: str) -> dict[str, Any]:
    return {name: getattr(entry, name) for name in names}


def _engine_to_json(engine: Engine) -> dict[str, Any]:
    def ports(group: tuple[Port, ...]) -> list[dict[str, Any]]:
        return [{"name": port.name, "dtype": port.dtype, "shape": list(port.shape)} for port in group]

    facts: dict[str, Any] = {"name": engine.name, "kind": engine.kind}
    groups = {
        variant: dict(zip(("inputs", "outputs"), map(ports, engine.ports(variant)), strict=True))
        for variant in engine.variants
    }
    if engine.variants == ("",):
        facts |= groups[""] | {"weights": ports(engine.weights)}
    else:
        facts["variants"] = groups
    return facts | {"flops": engine.call_flops()}
