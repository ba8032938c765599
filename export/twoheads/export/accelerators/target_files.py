"""What compilers make, as files: of one engine, linked from an earlier build, and written into the bundle."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from twoheads.export.bundle.signing import SigningKey, sign_bundle
from twoheads.export.bundle.staging import written_folder
from twoheads.export.bundle.writer import check_is_bundle, file_entry, write_json
from twoheads.graphs.serialization.bundle_format import MANIFEST, TARGETS, Artifact, TargetEntry
from twoheads.graphs.serialization.json_codec import to_json
from twoheads.graphs.serialization.relative_path import RelativePath
from twoheads.runtime.bundle.reader import Bundle

__all__ = ["artifact_files", "link_file", "made_files", "write_target"]


def made_files(folder: Path, job: str) -> tuple[RelativePath, ...]:
    """The files below ``folder`` that are the artifact ``job``, which may be a folder itself: ``JOB.mlpackage/...``."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    ours = (path.as_posix() for path in found if path.parts[0].rpartition(".")[0] == job)
    return tuple(RelativePath(name) for name in sorted(ours))


def write_target(bundle: Bundle, name: str, entry: TargetEntry, scratch: Path, sign: SigningKey | None = None) -> None:
    """Replaces the bundle by one with the artifacts in ``scratch``, signed by ``sign`` if there is one.

    The signature of the bundle as it was is of another manifest: it is not kept.
    """
    with written_folder(bundle.path, overwrite=True, check_replaceable=check_is_bundle) as folder:
        ours = f"{TARGETS}/{name}/"
        entries = {file: entry for file, entry in bundle.manifest.files.items() if not file.startswith(ours)}
        for file in entries:
            link_file(bundle.file(file).resolve(), folder / file)
        for path in artifact_files(scratch / name, entry.artifacts.values()):
            file = RelativePath(ours + path.relative_to(scratch / name).as_posix())
            link_file(path, folder / file)
            entries[file] = file_entry(path)
        targets = {**bundle.manifest.targets, RelativePath(name): entry}
        manifest = replace(bundle.manifest, files=dict(sorted(entries.items())), targets=targets)
        write_json(folder / MANIFEST, to_json(manifest))
        if sign is not None:
            sign_bundle(folder, sign)


def artifact_files(folder: Path, artifacts: Collection[Artifact]) -> list[Path]:
    """The files of ``artifacts``, those of the host's parts among them, below ``folder``."""
    hosts = [artifact.host.file for artifact in artifacts if artifact.host is not None]
    return [folder / file for file in (*(file for artifact in artifacts for file in artifact.files), *hosts)]


def link_file(source: Path, target: Path) -> None:
    """Gives a file a second name, or a copy where the disk can't; never in the place of another file.

    Raises:
        OSError: ``target`` is there already, or the disk refuses.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        with source.open("rb") as content, target.open("xb") as copy:
            shutil.copyfileobj(content, copy)
