"""Assembles the commands and turns what they raise into messages and exit codes.

Exit codes: 0 done; 1 the user can do something about it (or ``verify`` did not pass); 70 a bug of ours, with its
traceback; 130 interrupted; 143 terminated.
"""

import atexit
import contextlib
import gc
import importlib.metadata
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from twoheads.export.cli.shared.console import print_error, stderr_console
from twoheads.export.cli.shared.extras import missing_package
from twoheads.export.cli.shared.logs import logging_at
from twoheads.export.cli.shared.options_object import help_text
from twoheads.export.cli.shared.signature_option import takes_signature
from twoheads.graphs.errors import TwoheadsError

__all__ = ["app", "main"]

COMMANDS = {
    "compile": "commands.compile",
    "build": "commands.build",
    "lint": "commands.lint",
    "targets": "device.targets",
    "pack": "device.pack",
    "canary": "device.canary",
    "debug": "commands.debug",
    "export": "commands.export",
    "plan": "plan.command",
    "profile": "commands.profile",
    "inspect": "inspect.command",
    "run": "run.command",
    "batch": "batch.command",
    "resume": "commands.resume",
    "generate": "generate.command",
    "chat": "generate.chat",
    "status": "commands.status",
    "verify": "verify.command",
    "bench": "commands.bench",
    "models": "commands.models",
}
"""The commands in the order in which help lists them, and the module of each, below this package."""

NO_BUNDLE = frozenset({"compile", "status", "models", "targets", "canary"})
"""Those that read no bundle of others."""

GARBAGE = 20_000
"""Objects made between two looks for garbage; Python's own number, 700, is an eighth of what compiling takes."""

USER_ERROR, BUG, INTERRUPTED, TERMINATED = 1, 70, 130, 143

logger = logging.getLogger(__name__)


class _Interrupted(BaseException):
    """Ctrl-C, carried past typer, which would print a message of its own."""


class _Commands(Mapping[str, Any]):
    """The commands by name, each imported when it is asked for: a run needs nothing of the others."""

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)

    def __getitem__(self, name: str) -> Any:
        return _command(name)


@cache
def _command(name: str) -> Any:
    if name not in COMMANDS:
        raise KeyError(name)
    command = import_module(f"{__package__}.{COMMANDS[name]}").command
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
    alone.command(name, help=help_text(command))(command if name in NO_BUNDLE else takes_signature(command))
    return typer.main.get_command(alone)


class _Group(TyperGroup):
    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.commands: Any = _Commands()  # Typer only reads them

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
            "--verbose",
            "-v",
            count=True,
            help="Log phases and their times; given twice, everything that any library logs.",
        ),
    ] = 0,
) -> None:
    """Compile a transformer once at block length M, run any length N.

    Example: twoheads compile model.gguf -o model.bundle && twoheads run model.bundle --text book.txt -o out.npz
    """
    # Until :func:`main` has told what was raised; a caller of the app without it has only this context.
    enter = context.obj.enter_context if isinstance(context.obj, contextlib.ExitStack) else context.with_resource
    enter(logging_at(verbose))


_told: list[int] = []
"""The exit codes of the signals that came: an import that one interrupts may raise anything, and that is no bug."""


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    """Leaves as Ctrl-C does, so that temporary files are removed."""
    _told.append(TERMINATED)
    raise SystemExit(TERMINATED)


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    _told.append(INTERRUPTED)
    raise KeyboardInterrupt


def _heed_signals() -> None:
    _told.clear()
    with contextlib.suppress(ValueError):  # not the main thread, where no handler can be set
        signal.signal(signal.SIGTERM, _terminate)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # in the background it may be ignored
            signal.signal(signal.SIGINT, _interrupt)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line (default: the process's) and returns its exit code."""
    if arguments is None:
        atexit.register(_end)  # before a command loads what registers more: it is called last
        gc.set_threshold(GARBAGE)
    code = _run(arguments)
    _codes.append(code)
    return code


_codes: list[int] = []
"""The exit code, once the command line has run."""


def _end() -> None:
    """Ends the process at once: to free what torch has loaded, object by object, takes half a second and more."""
    if not _codes or "torch" not in sys.modules:
        return
    logging.shutdown()
    with contextlib.suppress(OSError, ValueError):  # closed by whoever read them
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(_codes[-1])


def _run(arguments: Sequence[str] | None) -> int:
    _heed_signals()
    try:
        with contextlib.ExitStack() as stack:
            try:
                app(args=None if arguments is None else list(arguments), prog_name="twoheads", obj=stack)
            except BaseException as error:  # noqa: BLE001 - the last resort is to say that it is our bug
                return _exit_code(error)
    except (KeyboardInterrupt, SystemExit) as error:  # a signal that came when all was done
        return _exit_code(error)
    return 0


def _exit_code(error: BaseException) -> int:
    """Tells what was raised, and with which code to leave."""
    if isinstance(error, SystemExit):
        # typer leaves with 2 when an option is wrong; that is a user's error like any other.
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else USER_ERROR
        return USER_ERROR if code == 2 else code
    if isinstance(error, _Interrupted | KeyboardInterrupt) or INTERRUPTED in _told:
        stderr_console().print("interrupted")
        return INTERRUPTED
    if TERMINATED in _told:
        return TERMINATED
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
