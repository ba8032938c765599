"""What starting costs: a command loads its own modules, and a run none of the others'."""

import subprocess
import sys

import pytest

from twoheads.export.cli.app import GARBAGE

SAYS_MODULES = """
import sys
{what}
print(*(name for name in sys.modules if name.startswith("twoheads.")))
"""


def _loaded(what: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", SAYS_MODULES.format(what=what)], capture_output=True, check=True)
    return set(done.stdout.decode().split())


@pytest.mark.parametrize("rooms", ["runtime.generation", "runtime.device", "runtime.measurement", "runtime.cluster"])
def test_the_runtime_loads_only_what_a_run_on_the_host_needs(rooms: str) -> None:
    loaded = _loaded("import twoheads.runtime")
    assert "twoheads.runtime.runs.session" in loaded
    assert not [name for name in loaded if name.startswith(f"twoheads.{rooms}.")]


def test_the_command_line_loads_the_command_that_is_asked_for() -> None:
    loaded = _loaded(
        "from twoheads.export.cli.app import app; import typer; typer.main.get_command(app).commands['run']"
    )
    commands = "twoheads.export.cli."
    assert f"{commands}run.command" in loaded
    assert not [name for name in loaded if name.startswith((f"{commands}plan.", f"{commands}generate."))]


ENDS = """
import atexit, gc, sys
from twoheads.export.cli.app import main

class Told:
    def __del__(self):
        print("freed at the end")

{loads}
told = Told()
sys.argv = ["twoheads", "{argument}"]
code = main()
atexit.register(print, "said when it leaves", gc.get_threshold()[0])
sys.exit(code)
"""


@pytest.mark.parametrize("loads", ["sys.modules['torch'] = None", ""])
@pytest.mark.parametrize(("argument", "code"), [("--version", 0), ("--unknown", 1)])
def test_a_process_with_torch_ends_without_freeing_it_and_with_all_that_was_written(loads, argument, code):
    command = [sys.executable, "-c", ENDS.format(loads=loads, argument=argument)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert ("twoheads " in done.stdout) == (code == 0)
    assert f"said when it leaves {GARBAGE}" in done.stdout
    assert ("freed at the end" in done.stdout) == (not loads)
