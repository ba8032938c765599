"""Assembles the commands and turns what they raise into messages and exit codes.

Exit codes: 0 done; 1 the user can do something about it (or ``verify`` did not pass); 70 a bug of ours, with its
traceback; 130 interrupted; 143 terminated.
"""

import contextlib
import importlib.metadata
import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from twoheads.export.cli.batch import command as batch_command
from twoheads.export.cli.commands import bench as bench_command
from twoheads.export.cli.commands import build as build_command
from twoheads.export.cli.commands import compile as compile_command
from twoheads.export.cli.commands import debug as debug_command
from twoheads.export.cli.commands import export as export_command
from twoheads.export.cli.commands import lint as lint_command
from twoheads.export.cli.commands import models as models_command
from twoheads.export.cli.commands import profile as profile_command
from twoheads.export.cli.commands import resume as resume_command
from twoheads.export.cli.commands import status as status_command
from twoheads.export.cli.device import canary as canary_command
from twoheads.export.cli.device import pack as pack_command
from twoheads.export.cli.device import targets as targets_command
from twoheads.export.cli.generate import chat as chat_command
from twoheads.export.cli.generate import command as generate_command
from twoheads.export.cli.inspect import command as inspect_command
from twoheads.export.cli.plan import command as plan_command
from twoheads.export.cli.run import command as run_command
from twoheads.export.cli.shared.console import print_error, stderr_console
from twoheads.export.cli.shared.extras import missing_package
from twoheads.export.cli.shared.logs import logging_at
from twoheads.export.cli.shared.options_object import help_text
from twoheads.export.cli.shared.signature_option import takes_signature
from twoheads.export.cli.verify import command as verify_command
from twoheads.graphs.errors import TwoheadsError

__all__ = ["app", "main"]

USER_ERROR, BUG, INTERRUPTED, TERMINATED = 1, 70, 130, 143

logger = logging.getLogger(__name__)


class _Interrupted(BaseException):
    """Ctrl-C, carried past typer, which would print a message of its own."""


class _Group(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _Interrupted from error


app = typer.Typer(
    name="twoheads",
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
_NO_BUNDLE = (compile_command, status_command, models_command, targets_command, canary_command)
"""Commands that read no bundle of others."""

for _command in (
    compile_command,
    build_command,
    lint_command,
    targets_command,
    pack_command,
    canary_command,
    debug_command,
    export_command,
    plan_command,
    profile_command,
    inspect_command,
    run_command,
    batch_command,
    resume_command,
    generate_command,
    chat_command,
    status_command,
    verify_command,
    bench_command,
    models_command,
):
    _takes = _command.command if _command in _NO_BUNDLE else takes_signature(_command.command)
    app.command(_command.NAME, help=help_text(_command.command))(_takes)


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"twoheads {importlib.metadata.version('twoheads')}\n")
        raise typer.Exit


@app.callback()
def _common(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    verbose: Annotated[
        int,
        typer.Option(
            "--verbose", "-v", count=True, help="Log phases and their times; twice: all logs of all libraries."
        ),
    ] = 0,
) -> None:
    """Compile a transformer once at block length M, run any length N.

    Example: twoheads compile model.gguf -o model.bundle && twoheads run model.bundle --text book.txt -o out.npz
    """
    # Until :func:`main` has told what was raised; a caller of the app without it has only this context.
    enter = context.obj.enter_context if isinstance(context.obj, contextlib.ExitStack) else context.with_resource
    enter(logging_at(verbose))


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    """Leaves as Ctrl-C does, so that temporary files are removed."""
    raise SystemExit(TERMINATED)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line (default: the process's) and returns its exit code."""
    with contextlib.suppress(ValueError):  # not the main thread, where no handler can be set
        signal.signal(signal.SIGTERM, _terminate)
    with contextlib.ExitStack() as stack:
        try:
            app(args=None if arguments is None else list(arguments), prog_name="twoheads", obj=stack)
        except BaseException as error:  # noqa: BLE001 - the last resort is to say that it is our bug
            return _exit_code(error)
    return 0


def _exit_code(error: BaseException) -> int:
    """Tells what was raised, and with which code to leave."""
    if isinstance(error, SystemExit):
        # typer leaves with 2 when an option is wrong; that is a user's error like any other.
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else USER_ERROR
        return USER_ERROR if code == 2 else code
    if isinstance(error, _Interrupted | KeyboardInterrupt):
        stderr_console().print("interrupted")
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains again at exit
        return USER_ERROR
    if (message := _message(error)) is None:
        traceback.print_exception(error)
        print_error("this is a bug in twoheads, not in your input; please report it with the traceback above")
        return BUG
    print_error(message)
    logger.debug("raised at", exc_info=error)
    return USER_ERROR


def _message(error: BaseException) -> str | None:
    """What a user can do something about; ``None`` for a bug of ours."""
    if isinstance(error, TwoheadsError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
    missing = missing_package(error) if isinstance(error, ModuleNotFoundError) else None
    return None if missing is None else str(missing)
