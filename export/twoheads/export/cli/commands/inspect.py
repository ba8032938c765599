"""``twoheads inspect``: what a bundle holds."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from twoheads.export.cli.shared import options
from twoheads.export.cli.shared.console import (
    approximations_text,
    print_facts,
    print_json,
    print_table,
    print_text,
    size_text,
)
from twoheads.graphs.program.printer import print_program
from twoheads.graphs.program.program import (
    AttentionStage,
    Engine,
    Input,
    OracleEngine,
    Port,
    Program,
)
from twoheads.graphs.serialization.bundle_format import ENGINES, SIGNATURE, TOKENIZER, WEIGHTS, Manifest, TargetEntry
from twoheads.graphs.variants.choose import fused_steps
from twoheads.graphs.variants.model_steps import MODEL
from twoheads.graphs.variants.one_block import ONE_BLOCK, one_block
from twoheads.graphs.variants.packing import longest_packable, packed_variant
from twoheads.graphs.variants.window_steps import WINDOW
from twoheads.runtime.bundle.reader import read_bundle
from twoheads.runtime.bundle.signature import required_key

__all__ = ["NAME", "command"]

NAME = "inspect"

LOWERING_NOTES = {
    WINDOW: ": a windowed layer of a single input is one call a block",
    MODEL: ": all layers of a single input are one call a block",
}


def command(
    bundle: options.Bundle,
    program: Annotated[bool, typer.Option("--program", help="Print the block program.")] = False,
    engines: Annotated[bool, typer.Option("--engines", help="Print the signature of every engine.")] = False,
    as_json: options.Json = False,
) -> None:
    """Tell what a bundle is: its source, sizes, the masks of its layers, its limits, its engines.

    Example: twoheads inspect smollm2.bundle --program
    """
    loaded = read_bundle(bundle, check="size", engines=False)
    if as_json:
        print_json(_to_json(bundle, loaded.manifest, loaded.program, program_text=program))
        return
    _print_summary(bundle, loaded.manifest, loaded.program)
    if engines:
        declared = _engines(loaded.manifest, loaded.program)
        print_table("\nengines", ("engine", "inputs", "outputs", "weights"), map(_signature, declared))
    if program:
        print_text("\n" + print_program(loaded.program))
        for steps in (loaded.fused.steps, loaded.fused.model):
            if steps is not None:
                print_text(f"\n# what single inputs run (lowering {loaded.manifest.lowering})\n{print_program(steps)}")


def _attention_stages(program: Program) -> list[AttentionStage]:
    return list(program.attentions)


def _mask_counts(program: Program) -> Counter[str]:
    """How many attention layers have which mask; those that look at another axis say so."""
    values = {value.name: value for value in program.values()}

    def text(stage: AttentionStage) -> str:
        queries, keys = stage.axes(values)
        return str(stage.mask) + ("" if queries == keys else f" from {queries} to {keys}")

    return Counter(map(text, _attention_stages(program)))


def _packs_up_to(manifest: Manifest, program: Program) -> int:
    """The longest input that shares calls with others in a run of a list, in tokens; 0 if none does."""
    longest = longest_packable(program)
    needed = {
        f"{ENGINES}/{stage.engine}.{packed_variant(stage.mask, longest)}.onnx" for stage in _attention_stages(program)
    }
    return longest if longest and needed <= manifest.files.keys() else 0


def _one_call_up_to(manifest: Manifest, program: Program) -> int:
    """The longest single input whose body is one call, in tokens; 0 if there is none."""
    held = f"{ENGINES}/{ONE_BLOCK}.onnx" in manifest.files and one_block(program) is not None
    return program.block_size if held or manifest.lowering == MODEL else 0


def _engines(manifest: Manifest, program: Program) -> list[Engine]:
    """Those of the program, then those that hold several of its stages for inputs of any length."""
    return [*program.engines, *(engine for _, engine in fused_steps(program, manifest.lowering))]


def _to_json(path: Path, manifest: Manifest, program: Program, *, program_text: bool) -> dict[str, Any]:
    limit = program.max_length
    data: dict[str, Any] = {
        "bundle": str(path),
        "format_version": manifest.format_version,
        "producer": manifest.producer,
        "source": {
            "name": manifest.source.name,
            "form": manifest.source.form,
            "architecture": manifest.source.architecture,
            "sha256": manifest.source.sha256,
        },
        "block_size": manifest.block_size,
        "key_tile": manifest.key_tile,
        "other_key_tiles": list(manifest.other_key_tiles),
        "lowering": manifest.lowering,
        "dtype": manifest.dtype,
        "weight_dtype": manifest.weight_dtype,
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
        "max_length": None if limit is None else {"length": limit.length, "reason": limit.reason},
        "other_limits": {
            other.axis: {"length": other.length, "reason": other.reason} for other in program.other_limits
        },
        "trained_length": program.trained_length,
        "tokenizer": TOKENIZER in manifest.files,
        "packs_up_to": _packs_up_to(manifest, program),
        "one_call_up_to": _one_call_up_to(manifest, program),
        "targets": {
            name: {
                "compiler": entry.compiler,
                "version": entry.version,
                "precision": entry.precision,
                "device": entry.device,
            }
            for name, entry in manifest.targets.items()
        },
        "masks": dict(_mask_counts(program)),
        "layers": [{"name": stage.name, "mask": str(stage.mask)} for stage in _attention_stages(program)],
        "weights": len(manifest.weights),
        "weights_bytes": manifest.files[WEIGHTS].size if WEIGHTS in manifest.files else 0,
        "files": len(manifest.files) + 1,
        "bytes": sum(entry.size for entry in manifest.files.values()),
        "stages": len(program.body) + len(program.head),
        "engines": [_engine_to_json(engine) for engine in _engines(manifest, program)],
    }
    if program_text:
        data["program"] = print_program(program)
    return data


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


def _print_summary(path: Path, manifest: Manifest, program: Program) -> None:
    source = manifest.source
    size = sum(entry.size for entry in manifest.files.values())
    limit = program.max_length
    trained = program.trained_length
    short, alone = _packs_up_to(manifest, program), _one_call_up_to(manifest, program)
    moved = sum(stage.on_host for stage in program.body)
    moving = f" ({moved} of them move rows and call no engine)" if moved else ""
    longest = "any" if limit is None else f"up to {limit.length} tokens ({limit.reason})"
    longest += "".join(f"; {other.axis} up to {other.length} ({other.reason})" for other in program.other_limits)
    print_facts(
        (
            ("bundle", f"{path} (format {manifest.format_version}, written by {manifest.producer})"),
            ("source", f"{source.name}: {source.architecture} from a {source.form}"),
            ("identity", source.sha256),
            ("blocks", _blocks_text(manifest)),
            ("lowering", manifest.lowering + LOWERING_NOTES.get(manifest.lowering, "")),
            ("precision", _precision_text(manifest)),
            ("approximations", approximations_text(manifest.approximations, manifest.precision)),
            ("length", longest + ("" if trained is None else f"; trained on {trained}")),
            ("packing", f"inputs of up to {short} tokens share calls" if short else "no: every input runs alone"),
            ("short inputs", f"one call and the head's up to {alone} tokens" if alone else "in blocks, as long ones"),
            ("inputs", ", ".join(_input_text(entry) for entry in program.inputs if entry.source == "argument")),
            ("outputs", ", ".join(program.outputs) + f" (default: {program.default_output})"),
            ("tokenizer", "yes" if TOKENIZER in manifest.files else "no: runs take token numbers"),
            ("attention", "; ".join(f"{count} x {mask}" for mask, count in _mask_counts(program).items()) or "none"),
            ("stages", f"{len(program.body)} in the body{moving}, {len(program.head)} in the head"),
            ("engines", ", ".join(engine.name for engine in _engines(manifest, program))),
            ("targets", ", ".join(map(_target_text, manifest.targets.items())) or "none built"),
            ("signature", _signature_text(path)),
            ("size", f"{size_text(size)} in {len(manifest.files) + 1} files, {len(manifest.weights)} weights"),
        )
    )


def _signature_text(path: Path) -> str:
    key = required_key()
    if key is not None:  # or there would be no bundle to look at
        return f"by {key}"
    return "not checked: --require-signature PUBKEY" if (path / SIGNATURE).exists() else "none"


def _precision_text(manifest: Manifest) -> str:
    """The formats, and how many weights are quantised to which."""
    bits = Counter(entry.bits for entry in manifest.quantised.values())
    counts = ", ".join(f"{count} weights of {width} bits" for width, count in sorted(bits.items()))
    return manifest.precision + (f" ({counts})" if counts else "")


def _blocks_text(manifest: Manifest) -> str:
    """The sizes of blocks and key tiles, and which tiles a run may choose instead."""
    others = " or ".join(map(str, manifest.other_key_tiles))
    return f"{manifest.block_size} tokens, key tiles of {manifest.key_tile}" + (
        f" (or {others}: --tune)" if others else ""
    )


def _target_text(item: tuple[str, TargetEntry]) -> str:
    name, entry = item
    return f"{name} ({entry.compiler} {entry.version}, {entry.precision}{f', {entry.device}' if entry.device else ''})"


def _input_text(entry: Input) -> str:
    return f"{entry.value.name} {entry.value.dtype}[{', '.join(map(str, entry.value.shape))}]"


def _signature(engine: Engine) -> tuple[str, str, str, str]:
    def ports(group: tuple[Port, ...]) -> str:
        return "\n".join(f"{port.name}: {port.dtype}[{', '.join(map(str, port.shape))}]" for port in group)

    if engine.kind == "tokenwise":
        size = sum(port.nbytes for port in engine.weights)
        inputs, outputs = engine.ports("")
        return engine.name, ports(inputs), ports(outputs), f"{len(engine.weights)}, {size_text(size)}"
    if isinstance(engine, OracleEngine):
        inputs, outputs = engine.ports(engine.mask)
        return engine.name, ports(inputs[:1]), ports(outputs), f"{len(inputs) - 1} parameters as inputs; {engine.mask}"
    # The masked variant (of tiles: the merging one) has every port there is.
    inputs, outputs = engine.ports("masked_merge" if "masked_merge" in engine.variants else "masked")
    return engine.name, ports(inputs), ports(outputs), f"none; variants: {', '.join(engine.variants)}"
