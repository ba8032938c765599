"""The hosts: each takes the file and token numbers, and gives the file's last output and the seconds of the run."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import subprocess
import threading
import venv
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["HOSTS", "HostError", "Run"]

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
LONGEST = 1800
"""Seconds that a host may take for all inputs."""

Tokens = Sequence[int]


class HostError(Exception):
    """A host is not installed here, or failed; says which, and what to install."""


@dataclass(frozen=True, slots=True)
class Run:
    """One input through one host."""

    values: npt.NDArray[np.float32]
    seconds: float


def python(file: Path, inputs: Sequence[Tokens], scratch: Path) -> list[Run]:
    """Python in an environment that has ONNX Runtime alone."""
    environment = scratch / "alone"
    if not environment.exists():
        venv.create(environment, with_pip=True)
        _run([environment / "bin" / "pip", "install", "--quiet", "onnxruntime"])
    command = [environment / "bin" / "python", "-I", Path(__file__).with_name("run_python.py"), file]
    told = [json.loads(_run(command, json.dumps(list(tokens)))) for tokens in inputs]
    return [Run(np.array(one["data"], np.float32), one["seconds"]) for one in told]


def cpp(file: Path, inputs: Sequence[Tokens], scratch: Path) -> list[Run]:
    """The C++ example, built here."""
    program = scratch / "cpp" / "run"
    if not program.exists():
        cmake = _tool("cmake", "apt-get install cmake g++ libonnxruntime-dev")
        _run([cmake, "-S", EXAMPLES / "cpp", "-B", program.parent, "-DCMAKE_BUILD_TYPE=Release"])
        _run([cmake, "--build", program.parent])
    return [_example([program, file, "-"], " ".join(map(str, tokens))) for tokens in inputs]


def node(file: Path, inputs: Sequence[Tokens], _scratch: Path) -> list[Run]:
    """The Node example."""
    command = [_tool("node", "install Node.js 20"), _packages() / "node" / "run.mjs", file, "-"]
    return [_example([*command, *tokens]) for tokens in inputs]


def chromium(file: Path, inputs: Sequence[Tokens], scratch: Path, provider: str = "wasm") -> list[Run]:
    """onnxruntime-web in headless Chromium, by ``provider``: one session for all inputs."""
    site = scratch / "site"
    site.mkdir(exist_ok=True)
    data = file.with_name(file.name + ".data")
    links = [file, *([data] if data.exists() else []), _packages() / "node_modules"]
    for source in links:
        if not (site / source.name).exists():
            (site / source.name).symlink_to(source.resolve())
    (site / "index.html").write_text("<!doctype html><title>hosts</title>", encoding="utf-8")
    given = {"model": file.name, "data": data.name if data.exists() else None, "provider": provider}
    with _served(site) as url:
        script = Path(__file__).with_name("run_page.mjs")
        command = [_tool("node", "install Node.js 20"), script, EXAMPLES, url, _tool("chromium", "apt-get install it")]
        told = json.loads(_run(command, json.dumps({**given, "tokens": [list(tokens) for tokens in inputs]})))
    return [Run(np.array(one["data"], np.float32), one["seconds"]) for one in told]


HOSTS: dict[str, Callable[[Path, Sequence[Tokens], Path], list[Run]]] = {
    "Python, ONNX Runtime alone": python,
    "C++": cpp,
    "Node": node,
    "Chromium, WASM": chromium,
    "Chromium, WebGPU in software": functools.partial(chromium, provider="webgpu"),
}
"""By the name that the page has for each."""


def _example(command: Sequence[object], given: str = "") -> Run:
    """What an example prints: its outputs by name, and ``seconds``."""
    told = json.loads(_run(command, given))
    (output,) = (value for value in told.values() if isinstance(value, dict))
    return Run(np.array(output["data"], np.float32), told["seconds"])


def _run(command: Sequence[object], given: str = "") -> str:
    words = list(map(str, command))
    done = subprocess.run(words, input=given, capture_output=True, text=True, timeout=LONGEST, check=False)
    if done.returncode:
        raise HostError(f"{Path(words[0]).name} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    return done.stdout


def _tool(name: str, remedy: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise HostError(f"{name} is not installed: {remedy}")
    return found


def _packages() -> Path:
    if not (EXAMPLES / "node_modules" / "onnxruntime-web").is_dir():
        raise HostError("examples/node_modules is not there: ONNXRUNTIME_NODE_INSTALL=skip npm install in examples/")
    return EXAMPLES


class _Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and says nothing."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        pass


@contextmanager
def _served(site: Path) -> Generator[str]:
    handler = functools.partial(_Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()
