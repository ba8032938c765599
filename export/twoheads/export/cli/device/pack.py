"""``twoheads pack``: what a device needs of a bundle, as one folder or archive."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twoheads.export.accelerators.target import load_target
from twoheads.export.cli.shared import arguments, options
from twoheads.export.cli.shared.console import print_facts, print_json, size_text
from twoheads.export.cli.shared.progress import PhaseProgress
from twoheads.graphs.serialization.json_codec import to_json
from twoheads.runtime.bundle.reader import require_bundle

if TYPE_CHECKING:
    from twoheads.export.pack.pack import Packed

__all__ = ["command"]


def command(
    bundle: options.Bundle,
    target: options.Target,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR|FILE.tar.gz", help="The folder or archive to create.")
    ],
    backend: Annotated[
        str | None,
        typer.Option("--backend", metavar="NAME", help="What will run the pack, if not the device: an emulator."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a pack that exists.")] = False,
    as_json: options.Json = False,
) -> None:
    """Pack what a device needs of a bundle that was built for it, and nothing else.

    A pack holds what was built, what that leaves to the host, the tokenizer, this project's wheel, a script that runs
    it, and a small input with its expected result, for `twoheads canary`. Equal bundles give equal bytes.

    Example: twoheads pack smollm2.bundle --target qnn -o smollm2-qnn.tar.gz
    """
    load_target(target)
    require_bundle(bundle)  # a wrong path is told before anything else
    arguments.check_output_path(out, folder=not out.name.endswith(".tar.gz"))

    from twoheads.export.pack.pack import pack_bundle

    with PhaseProgress() as progress:
        packed = pack_bundle(bundle, target, out, backend=backend, overwrite=force, progress=progress)
    if as_json:
        facts = {key: value for key, value in to_json(packed.pack).items() if key != "files"}
        print_json({"path": str(out), **facts, "sizes": dict(packed.sizes)})
    else:
        _report(packed)


def _report(packed: "Packed") -> None:
    pack, canary = packed.pack, packed.pack.canary
    measured = "not run here" if canary.error is None else f"off by {canary.error:.1e} here"
    print_facts(
        (
            ("pack", str(packed.path)),
            ("target", ", ".join(filter(None, (pack.target, pack.device, pack.precision)))),
            ("runs by", pack.backend),
            ("canary", f"{canary.output}, {measured}; {canary.limit:.1e} passes"),
            *((part, size_text(size)) for part, size in packed.sizes.items()),
            ("next", "on the device: see README.md in it, then twoheads canary"),
        )
    )
