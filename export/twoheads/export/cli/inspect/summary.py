"""What ``inspect`` prints: a bundle as facts, and the signatures of its engines."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from twoheads.export.cli.inspect.facts import (
    dense_experts,
    engines_of,
    head_pieces,
    left_out,
    left_out_text,
    mask_counts,
    mixture_counts,
    one_call_up_to,
    packs_up_to,
    precision_text,
    scan_counts,
)
from twoheads.export.cli.shared.console import (
    approximations_text,
    print_facts,
    size_text,
)
from twoheads.graphs.program.lengths import input_axes
from twoheads.graphs.program.program import (
    Engine,
    ExpertsEngine,
    Input,
    OracleEngine,
    Port,
    Program,
    ScanEngine,
    TokenwiseEngine,
)
from twoheads.graphs.serialization.bundle_format import SIGNATURE, TOKENIZER, WHOLE, Manifest, TargetEntry
from twoheads.graphs.variants.model_steps import MODEL
from twoheads.graphs.variants.window_steps import WINDOW
from twoheads.runtime.bundle.signature import required_key

__all__ = ["engine_signature", "print_summary"]


LOWERING_NOTES = {
    WINDOW: ": a windowed layer of a single input is one call a block",
    MODEL: ": all layers of a single input are one call a block",
    WHOLE: ": one engine of the only input size",
}


_OF_TILES = frozenset({"blocks", "packing", "short inputs", "tokenizer", "attention", "scans"})
"""Facts that a model has which is cut into blocks, and not one that is whole."""


def print_summary(path: Path, manifest: Manifest, program: Program) -> None:
    """Prints what the bundle in ``path`` is, one fact a line."""
    source = manifest.source
    size = sum(entry.size for entry in manifest.files.values())
    limit = program.max_length
    trained = program.trained_length
    short, alone = packs_up_to(manifest, program), one_call_up_to(manifest, program)
    moved = sum(stage.on_host for stage in program.body)
    moving = f" ({moved} of them move rows and call no engine)" if moved else ""
    free = "any" if input_axes(program) else "one size"
    longest = free if limit is None else f"up to {limit.length} tokens ({limit.reason})"
    longest += "".join(f"; {other.axis} up to {other.length} ({other.reason})" for other in program.other_limits)
    facts = (
        ("bundle", f"{path} (format {manifest.format_version}, written by {manifest.producer})"),
        ("source", f"{source.name}: {source.architecture} from a {source.form}"),
        ("identity", source.sha256),
        ("blocks", _blocks_text(manifest)),
        ("lowering", manifest.lowering + LOWERING_NOTES.get(manifest.lowering, "")),
        ("precision", precision_text(manifest)),
        ("approximations", approximations_text(manifest.approximations, manifest.precision)),
        ("length", longest + ("" if trained is None else f"; trained on {trained}")),
        ("packing", f"inputs of up to {short} tokens share calls" if short else "no: every input runs alone"),
        ("short inputs", f"one call and the head's up to {alone} tokens" if alone else "in blocks, as long ones"),
        ("inputs", ", ".join(_input_text(entry) for entry in program.inputs if entry.source == "argument")),
        ("outputs", ", ".join(program.outputs) + f" (default: {program.default_output})"),
        *((("left out", left_out_text(names)),) if (names := left_out(path, manifest)) else ()),
        ("tokenizer", "yes" if TOKENIZER in manifest.files else "no: runs take token numbers"),
        ("attention", "; ".join(f"{count} x {mask}" for mask, count in mask_counts(program).items()) or "none"),
        ("scans", "; ".join(f"{count} x {name}" for name, count in scan_counts(program).items()) or "none"),
        *((("experts", text),) if (text := _experts_text(path, manifest, program)) else ()),
        ("stages", f"{len(program.body)} in the body{moving}, {len(program.head)} in the head"),
        *((("large head", _pieces_text(pieces)),) if (pieces := head_pieces(manifest, program)) else ()),
        ("engines", ", ".join(engine.name for engine in engines_of(manifest, program))),
        ("targets", ", ".join(map(_target_text, manifest.targets.items())) or "none built"),
        ("signature", _signature_text(path)),
        ("size", f"{size_text(size)} in {len(manifest.files) + 1} files, {len(manifest.weights)} weights"),
    )
    print_facts((name, text) for name, text in facts if manifest.lowering != WHOLE or name not in _OF_TILES)


def _experts_text(path: Path, manifest: Manifest, program: Program) -> str:
    """Mixtures of experts, those that are computed densely with the reason; empty where there is none."""
    gathered = [f"{count} x {text}" for text, count in mixture_counts(program).items()]
    reasons = Counter(dense_experts(path, manifest).values())
    return "; ".join([*gathered, *(f"{count} x dense: {reason}" for reason, count in reasons.items())])


def _pieces_text(pieces: TokenwiseEngine) -> str:
    return f"{pieces.outputs[0].shape[-1]:,} columns at a time where a memory limit has no room for it ({pieces.name})"


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


def engine_signature(engine: Engine) -> tuple[str, str, str, str]:
    """Name, inputs, outputs and weights, as cells of a table."""

    def ports(group: tuple[Port, ...]) -> str:
        return "\n".join(f"{port.name}: {port.dtype}[{', '.join(map(str, port.shape))}]" for port in group)

    if engine.kind == "tokenwise":
        size = sum(port.nbytes for port in engine.weights)
        inputs, outputs = engine.ports("")
        return engine.name, ports(inputs), ports(outputs), f"{len(engine.weights)}, {size_text(size)}"
    if isinstance(engine, ScanEngine):
        inputs, outputs = engine.ports()
        return engine.name, ports(inputs), ports(outputs), f"as inputs; {engine.operator}"
    if isinstance(engine, ExpertsEngine):
        inputs, outputs = engine.ports(engine.variants[-1])
        text = f"as inputs, of {engine.experts} experts; variants: {', '.join(engine.variants)}"
        return engine.name, ports(inputs), ports(outputs), text
    if isinstance(engine, OracleEngine):
        inputs, outputs = engine.ports(engine.mask)
        return engine.name, ports(inputs[:1]), ports(outputs), f"{len(inputs) - 1} parameters as inputs; {engine.mask}"
    # The masked variant (of tiles: the merging one) has every port there is.
    inputs, outputs = engine.ports("masked_merge" if "masked_merge" in engine.variants else "masked")
    return engine.name, ports(inputs), ports(outputs), f"none; variants: {', '.join(engine.variants)}"


def _signature_text(path: Path) -> str:
    key = required_key()
    if key is not None:  # or there would be no bundle to look at
        return f"by {key}"
    return "not checked: --require-signature PUBKEY" if (path / SIGNATURE).exists() else "none"
