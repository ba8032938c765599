"""MiniLM's one file in hosts without Python: a C++ program, Node, and a page in headless Chromium."""

from __future__ import annotations

import functools
import http.server
import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.hosts.conftest import EXAMPLES, SENTENCES, Exported, missing, tool

pytestmark = pytest.mark.hosts

TOLERANCE = 2e-6  # embeddings are of length 1; other kernels round in other places

QUERY = "Somebody has lunch"


def run(command: list[object], given: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), input=given, capture_output=True, text=True, timeout=240, **options)


def near(found: list[float], expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(found, np.float32), expected, rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C++ example, built."""
    cmake, folder = tool("cmake", "apt-get install cmake g++"), tmp_path_factory.mktemp("cpp")
    made = run([cmake, "-S", EXAMPLES / "cpp", "-B", folder, "-DCMAKE_BUILD_TYPE=Release"])
    if made.returncode and "onnxruntime" in made.stderr:
        missing("ONNX Runtime for C++", "apt-get install libonnxruntime-dev")
    assert made.returncode == 0, made.stderr
    made = run([cmake, "--build", folder])
    assert made.returncode == 0, made.stdout + made.stderr
    return folder / "run"


def test_cpp(program: Path, minilm_file: Exported, inputs: list[list[int]]) -> None:
    for tokens in inputs:
        result = run([program, minilm_file.file, "-"], " ".join(map(str, tokens)))
        assert result.returncode == 0, result.stderr[-2000:]
        embedding = json.loads(result.stdout)["embedding"]
        assert embedding["shape"] == [1, 384]
        near(embedding["data"], minilm_file.embedding(tokens))
    given = run([program, minilm_file.file, *inputs[0]])
    near(json.loads(given.stdout)["embedding"]["data"], minilm_file.embedding(inputs[0]))


def test_cpp_tells_what_the_model_does_not_take(program: Path, minilm_file: Exported) -> None:
    for tokens, told in ((["101"] * 513, "the model takes 512 tokens at most"), (["40000"], "a number above 30521")):
        refused = run([program, minilm_file.file, "-"], " ".join(tokens))
        assert (refused.returncode, refused.stdout) == (1, "")
        assert told in refused.stderr
    assert "is no token number" in run([program, minilm_file.file, "hello"]).stderr
    assert run([program]).returncode == 2


def test_node(packages: Path, minilm_file: Exported, inputs: list[list[int]]) -> None:
    node, script = tool("node", "install Node.js 20"), packages / "node" / "run.mjs"
    for tokens in inputs:
        result = run([node, script, minilm_file.file, "-", *tokens])
        assert result.returncode == 0, result.stderr
        near(json.loads(result.stdout)["embedding"]["data"], minilm_file.embedding(tokens))
    told = json.loads(run([node, script, minilm_file.file, minilm_file.tokenizer_file, SENTENCES[0]]).stdout)
    assert told["tokens"] == inputs[0]
    refused = run([node, script, minilm_file.file, "-", "101", "-1"])
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "holds a number below 0" in refused.stderr
    assert run([node, script]).returncode == 2


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and says nothing."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        pass


@pytest.fixture
def site(packages: Path, minilm_file: Exported, tmp_path: Path) -> Iterator[str]:
    """The page beside its packages, the model and its tokenizer, on a local server."""
    page = tmp_path / "browser"
    page.mkdir()
    for file in (packages / "browser").iterdir():
        (page / file.name).write_bytes(file.read_bytes())
    (tmp_path / "node_modules").symlink_to((packages / "node_modules").resolve())
    (page / "minilm.onnx").symlink_to(minilm_file.file)
    (page / "tokenizer.json").symlink_to(minilm_file.tokenizer_file)
    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/browser/"
        server.shutdown()
        thread.join()


def drive(packages: Path, url: str, **given: Any) -> Any:
    if not (packages / "node_modules" / "playwright-core").is_dir():
        missing("playwright-core", "npm install --prefix examples")
    chromium = tool("chromium", "apt-get install chromium")
    script = Path(__file__).with_name("drive_page.mjs")
    result = run([tool("node", "install Node.js 20"), script, packages, url, chromium], json.dumps(given))
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_page_searches_in_chromium(packages: Path, site: str, minilm_file: Exported, inputs: list[list[int]]) -> None:
    long = " ".join(SENTENCES[1:] * 40)  # 960 tokens: two passages
    seen = drive(packages, site, query=QUERY, texts=[*SENTENCES, long], tokens=inputs)
    assert seen["loaded"].startswith("Ready after"), seen
    assert seen["searched"].startswith("4 texts, 5 passages"), seen
    for tokens, embedding in zip(inputs, seen["embeddings"], strict=True):
        near(embedding, minilm_file.embedding(tokens))
    assert "must be >= 0" in seen["failed"]  # the build for browsers leaves out which node stopped
    query = minilm_file.embedding(minilm_file.tokens(QUERY))
    scores = {text: float(query @ minilm_file.embedding(minilm_file.tokens(text))) for text in SENTENCES}
    for text, score in scores.items():
        assert f"{score:.3f}{text}" in seen["shown"]
    assert seen["shown"][0].endswith(SENTENCES[0])


def test_page_tells_what_is_missing(packages: Path, site: str) -> None:
    seen = drive(packages, f"{site}?tokenizer=nowhere.json", query="", texts=[], tokens=[])
    assert seen["loaded"] == "Could not load: nowhere.json: 404 File not found"


def test_examples_are_short() -> None:
    files = [file for folder in ("cpp", "node", "browser") for file in (EXAMPLES / folder).iterdir()]
    assert len(files) >= 5
    for file in files:
        assert len(file.read_text(encoding="utf-8").splitlines()) < 150, file
