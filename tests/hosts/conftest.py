"""What programs of other hosts need: MiniLM in one file, and the tools, whose lack is told."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.generation.decoders import BLOCK, bundle, bundle_folder
from tests.runtime.generation.decoders import tokens as random_tokens
from twoheads.compiler import compile_model
from twoheads.export import write_bundle
from twoheads.export.one_file.export import export_one_file
from twoheads.runtime import load

EXAMPLES = Path(__file__).parents[2] / "examples"

SENTENCES = (
    "A man is eating a piece of bread in the kitchen.",
    "The stock market fell sharply after the announcement.",
    "Two kittens play with a ball of wool.",
)


def missing(what: str, remedy: str) -> None:
    """Skips a test whose tools are not there; where hosts are demanded, it fails."""
    message = f"{what} is not installed: {remedy}"
    if os.environ.get("TWOHEADS_REQUIRE_HOSTS"):
        pytest.fail(message)
    pytest.skip(message)


def tool(name: str, remedy: str) -> str:
    """The path of a command."""
    found = shutil.which(name)
    if found is None:
        missing(name, remedy)
    return str(found)


@pytest.fixture(scope="session")
def packages() -> Path:
    """The folder whose node_modules hold what the examples need."""
    if not (EXAMPLES / "node_modules" / "onnxruntime-web").is_dir():
        missing("onnxruntime-web", "ONNXRUNTIME_NODE_INSTALL=skip npm install --prefix examples")
    return EXAMPLES


class Exported:
    """MiniLM's bundle, its file, and what the runtime says of it."""

    def __init__(self, bundle: Path, file: Path) -> None:
        self.bundle, self.file = load(bundle), file
        self.tokenizer_file = bundle / "tokenizer" / "tokenizer.json"

    def tokens(self, text: str) -> list[int]:
        assert self.bundle.tokenizer is not None
        return [int(token) for token in self.bundle.tokenizer.encode(text)]

    def embedding(self, tokens: list[int]) -> Any:
        return np.asarray(self.bundle.run(tokens, output="embedding").array)


@pytest.fixture(scope="session")
def minilm_file(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("hosts")
    bundle = write_bundle(compile_model(minilm, block_size=128), folder / "bundle")
    return Exported(bundle, export_one_file(bundle, folder / "minilm.onnx").file)


@pytest.fixture(scope="session")
def inputs(minilm_file: Exported) -> list[list[int]]:
    """Token numbers of three lengths: a few, over the edge of a block, and nearly all that the model takes."""
    random = np.random.default_rng(0)
    long = [[101, *map(int, random.integers(1000, 29000, length - 2)), 102] for length in (129, 500)]
    return [minilm_file.tokens(SENTENCES[0]), *long]


class Continued:
    """A small decoder's file for generation, and what the runtime generates behind prompts."""

    count = 24

    def __init__(self, name: str, file: Path) -> None:
        self.name, self.file = name, file

    def prompts(self) -> list[list[int]]:
        return [random_tokens(length, seed=length) for length in (1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5)]

    def expected(self, prompt: list[int]) -> list[int]:
        """The most likely tokens, whatever they end."""
        found: list[int] = []
        with bundle(self.name).open_context() as context:
            logits = context.append(prompt)
            for _ in range(self.count):
                found.append(int(logits.argmax()))
                logits = context.step(found[-1])
        return found


@pytest.fixture(scope="session", params=["llama", "qwen"])
def continued(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Continued:
    """Of keys and values alone, and with states beside them."""
    file = tmp_path_factory.mktemp("steps") / "step.onnx"
    return Continued(request.param, export_one_file(bundle_folder(request.param), file, step=True).file)
