"""MiniLM's one file in hosts without Python: a C++ program, Node, and a page in headless Chromium."""

from __future__ import annotations

import functools
import http.server
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.hosts.conftest import EXAMPLES, SENTENCES, Continued, Exported, missing, tool
from tests.runtime.tiny_bundle import write_tiny
from tests.runtime.tiny_model import Tiny
from twoheads.export.one_file.export import export_one_file
from twoheads.graphs.program.program import Pooling
from twoheads.runtime import load

pytestmark = pytest.mark.hosts

TOLERANCE = 2e-6  # embeddings are of length 1; other kernels round in other places

QUERY = "Somebody has lunch"


def run(command: Sequence[object], given: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), input=given, capture_output=True, text=True, timeout=240, **options)


def near(found: list[float], expected: Any, tolerance: float = TOLERANCE) -> None:
    np.testing.assert_allclose(np.asarray(found, np.float32), expected, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the C++ examples, built."""
    cmake, folder = tool("cmake", "apt-get install cmake g++"), tmp_path_factory.mktemp("cpp")
    made = run([cmake, "-S", EXAMPLES / "cpp", "-B", folder, "-DCMAKE_BUILD_TYPE=Release"])
    if made.returncode and "onnxruntime" in made.stderr:
        missing("ONNX Runtime for C++", "apt-get install libonnxruntime-dev")
    assert made.returncode == 0, made.stderr
    made = run([cmake, "--build", folder])
    assert made.returncode == 0, made.stdout + made.stderr
    return folder


@pytest.fixture
def program(programs: Path) -> Path:
    return programs / "run"


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


def continues(command: Sequence[object], continued: Continued, before: tuple[object, ...] = ()) -> None:
    """A host generates what the runtime does, and tells what is no file for generation, or no token."""
    for prompt in continued.prompts():
        result = run([*command, continued.file, continued.count, *before, *prompt])
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout)["tokens"] == continued.expected(prompt)
    refused = run([*command, continued.file, 3, *before, 1, 4000])
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "holds a number above" in refused.stderr
    assert run([*command]).returncode == 2


def test_python_with_onnx_runtime_alone_generates(continued: Continued) -> None:
    continues([sys.executable, "-I", EXAMPLES / "python" / "generate.py"], continued)


def test_node_generates(packages: Path, continued: Continued) -> None:
    continues([tool("node", "install Node.js 20"), packages / "node" / "generate.mjs"], continued, ("-",))


def test_cpp_generates(programs: Path, continued: Continued) -> None:
    continues([programs / "generate"], continued)


def test_a_file_for_whole_inputs_generates_nothing(packages: Path, programs: Path, minilm_file: Exported) -> None:
    node = [tool("node", "install Node.js 20"), packages / "node" / "generate.mjs", minilm_file.file, 3, "-", 101]
    python = [sys.executable, "-I", EXAMPLES / "python" / "generate.py", minilm_file.file, 3, 101]
    for command in (node, python, [programs / "generate", minilm_file.file, 3, 101]):
        refused = run(command)
        assert refused.returncode == 1
        assert "does not extend a sequence: export it with --step" in refused.stderr


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


def small_model(site_folder: Path) -> tuple[Path, Any]:
    """A small embedding model's file, as the page's own take minutes on Chromium's software for a GPU."""
    tiny = Tiny(masks=("full",), pooling=Pooling("mean", normalize=True))
    bundle = write_tiny(site_folder / "tiny.bundle", tiny)
    return export_one_file(bundle, site_folder / "browser" / "tiny.onnx", outputs=["embedding"]).file, load(bundle)


def test_page_runs_on_webgpu(packages: Path, site: str, tmp_path: Path) -> None:
    file, loaded = small_model(tmp_path)
    tokens = [[3], list(range(1, 20)), [7, 1] * 30]  # token 0 is the padding, of which the model makes NaN
    seen = drive(packages, f"{site}?model={file.name}&ep=webgpu", query="", texts=[], tokens=tokens, gpu=True)
    assert re.match(r"Ready after .* s, on webgpu\. The GPU is google swiftshader\.", seen["loaded"]), seen
    for given, embedding in zip(tokens, seen["embeddings"], strict=True):  # this GPU's exponents are less exact
        expected = np.asarray(loaded.run(given, output="embedding").array)
        assert np.isfinite(expected).all()
        near(embedding, expected, 2e-4)


def test_page_goes_on_without_a_gpu_and_says_so(packages: Path, site: str, tmp_path: Path) -> None:
    file, loaded = small_model(tmp_path)
    seen = drive(packages, f"{site}?model={file.name}", query="", texts=[], tokens=[[5, 6]], choose="webgpu")
    assert seen["loaded"].startswith("Ready after"), seen
    assert re.search(r"on wasm\. (WebGPU finds no GPU|This browser has no WebGPU)", seen["loaded"]), seen
    near(seen["embeddings"][0], np.asarray(loaded.run([5, 6], output="embedding").array))


def test_page_tells_what_is_missing(packages: Path, site: str) -> None:
    seen = drive(packages, f"{site}?tokenizer=nowhere.json", query="", texts=[], tokens=[])
    assert seen["loaded"] == "Could not load: nowhere.json: 404 File not found"


def test_examples_are_short() -> None:
    files = [file for folder in ("cpp", "node", "python", "browser") for file in (EXAMPLES / folder).iterdir()]
    assert len(files) >= 8
    for file in files:
        assert len(file.read_text(encoding="utf-8").splitlines()) < 150, file
