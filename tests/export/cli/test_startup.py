"""What starting costs: a command loads its own modules, and a run none of the others'."""

import subprocess
import sys

import pytest

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
