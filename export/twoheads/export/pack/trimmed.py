"""The bundle in a pack: one target's artifacts, and of everything else what they leave to the host."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from twoheads.export.bundle.weights_file import write_weights
from twoheads.export.bundle.writer import file_entry, write_json
from twoheads.graphs.serialization.bundle_format import (
    GENERATION,
    MANIFEST,
    PROGRAM,
    TARGETS,
    TOKENIZER,
    WEIGHTS,
    FileEntry,
    TargetEntry,
    WeightEntry,
)
from twoheads.graphs.serialization.json_codec import to_json
from twoheads.graphs.serialization.relative_path import RelativePath
from twoheads.graphs.variants.built.built_steps import built_stages, built_steps
from twoheads.graphs.variants.choose import fused_steps
from twoheads.runtime.backends.emulator import EMULATORS
from twoheads.runtime.bundle.reader import Bundle

__all__ = ["SOURCES", "write_trimmed"]

SOURCES = (".onnx", ".npz")
"""What a build keeps for a simulator beside an artifact: the model, and the calls whose ranges were taken."""


def write_trimmed(source: Bundle, target: str, folder: Path, *, sources: bool = False) -> None:
    """Writes the new folder ``folder``; weights that only artifacts read are declared and not stored.

    Args:
        source: The bundle.
        target: Of whose artifacts.
        folder: A place where nothing is.
        sources: Whether to keep what a build keeps for a simulator that takes no artifact.
    """
    manifest = source.manifest
    entry = manifest.targets[RelativePath(target)]
    if not sources and any(one.target == target and one.checked for one in EMULATORS.values()):
        entry = _without_sources(entry)
    left = {file for artifact in manifest.targets[RelativePath(target)].artifacts.values() for file in artifact.files}
    left -= {file for artifact in entry.artifacts.values() for file in artifact.files}
    leaves = {f"{TARGETS}/{target}/{file}" for file in left}
    kept = [name for name in manifest.files if _belongs(name, target) and name not in leaves]
    for name in kept:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.file(name), path)
    files = {name: manifest.files[name] for name in kept}
    entries = _write_weights(source, target, folder, files)
    built_in = {name: replace(weight, offset=0) for name, weight in manifest.weights.items() if name not in entries}
    trimmed = replace(
        manifest,
        weights=entries,
        packed_for=target,
        built_in=built_in,
        files=dict(sorted(files.items())),
        targets={RelativePath(target): entry},
        other_key_tiles=(),
    )
    write_json(folder / MANIFEST, to_json(trimmed))


def _without_sources(entry: TargetEntry) -> TargetEntry:
    """What was built, and nothing that it was built from."""
    artifacts = {
        name: replace(artifact, files=tuple(file for file in artifact.files if not file.endswith(SOURCES)))
        for name, artifact in entry.artifacts.items()
    }
    return replace(entry, artifacts=artifacts)


def _belongs(name: str, target: str) -> bool:
    return name in (PROGRAM, TOKENIZER, GENERATION) or name.startswith(f"{TARGETS}/{target}/")


def _write_weights(
    source: Bundle, target: str, folder: Path, files: dict[RelativePath, FileEntry]
) -> dict[str, WeightEntry]:
    """Those that the host reads: its parts of engines, and attention's sinks and biases."""
    manifest = source.manifest
    names = tuple(dict.fromkeys(_host_weights(source, target)))
    if not names:
        return {}
    (folder / WEIGHTS).parent.mkdir(parents=True, exist_ok=True)
    weights = source.open_weights()
    named = [(name, weights.view(name), manifest.weights[name].dtype) for name in names]
    entries, _ = write_weights(folder / WEIGHTS, named, progress=lambda _: None)
    files[RelativePath(WEIGHTS)] = file_entry(folder / WEIGHTS)
    return entries


def _host_weights(source: Bundle, target: str) -> Iterator[str]:
    program, manifest = source.program, source.manifest
    hosts = {
        stage: artifact.host
        for artifact in manifest.targets[RelativePath(target)].artifacts.values()
        for stage in artifact.stages
        if artifact.host is not None
    }
    in_engines = {name for stage, _ in program.bindings for name in stage.weights}
    yield from (name for name in program.weights() if name not in in_engines)
    programs = (program, *(steps for steps, _ in fused_steps(program, manifest.lowering)))
    bindings = [binding for one in programs for binding in one.bindings]
    if (extended := built_steps(program)) is not None:
        bindings += built_stages(extended)
    for stage, engine in bindings:
        host = hosts.get(stage.name)
        for port, name in zip(engine.weights, stage.weights, strict=True):
            if host is not None and port.name in host.weights:
                yield name
