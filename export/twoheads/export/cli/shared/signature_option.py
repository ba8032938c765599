"""``--require-signature``, which every command that reads a bundle takes, and none has to know."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from twoheads.export.cli.shared.load_options import Check
from twoheads.graphs.errors import InputError
from twoheads.runtime.bundle.signature import signature_required

__all__ = ["RequireSignature", "takes_signature"]

RequireSignature = Annotated[
    Path | None,
    typer.Option(
        "--require-signature",
        metavar="PUBKEY",
        envvar="TWOHEADS_REQUIRE_SIGNATURE",
        help="Refuse bundles that are not signed by this ed25519 key; all files are checked in full.",
    ),
]


def takes_signature(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` with the option: while it runs, no bundle is read that the key did not sign."""
    hints = get_type_hints(command, include_extras=True)
    own = inspect.signature(command).parameters.values()
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [parameter.replace(annotation=hints[parameter.name], kind=keyword) for parameter in own]
    parameters.append(inspect.Parameter("require_signature", keyword, default=None, annotation=RequireSignature))

    @functools.wraps(command)
    def parsed(*, require_signature: Path | None = None, **given: Any) -> None:
        if require_signature is not None and given.get("check") == Check.SIZE:
            problem = "signs the sha256 of files, and with --check size these are not compared"
            raise InputError("--require-signature", problem, "leave out --check size")
        with signature_required(require_signature):
            command(**given)

    del parsed.__wrapped__  # or Typer would look at the command's own parameters
    parsed.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    parsed.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return parsed
