"""Fixtures that several packages' tests share: a tiny model with a tokenizer, and real models if fetched."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator
from pathlib import Path
from typing import Protocol

import pytest
from hypothesis import settings

from tests.exported_once import export_once
from tests.shared_folder import make_shared_folder, remove_shared_folder
from tests.tiers import problems
from tools.fetch_models import model_path

ROOT = Path(__file__).parent.parent

settings.register_profile("thousand", max_examples=1000)
"""Of properties that leave to the profile how often they are tried: ``pytest --hypothesis-profile=thousand``."""

WORDS = ("[UNK]", "the", "cat", "sat", "on", "a", "mat", "and", "saw", "dog", "run", "to", "red", "house", "by", "sea")


GARBAGE = 20_000
"""Objects made between two looks for garbage, where Python's own number is 700."""


def pytest_configure(config: pytest.Config) -> None:
    """Python looks for garbage seldom: with the libraries loaded it is 7 % of what compiling a tiny model takes."""
    gc.set_threshold(GARBAGE)
    if not _started_by_another(config):
        make_shared_folder()


def pytest_unconfigure(config: pytest.Config) -> None:
    """The process that started the others ends last."""
    if not _started_by_another(config):
        remove_shared_folder()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Before any are left out: a test of the second tier names what shows its faults in the first.

    Who asks for single cases has not collected the others.
    """
    chosen = any("::" in word for word in config.args) or config.getoption("lf", default=False)
    if not chosen and (found := problems(items, ROOT)):
        raise pytest.UsageError("\n".join(found))


def _started_by_another(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


class _HasFileno(Protocol):
    def fileno(self) -> int: ...


def _checked(file: int | _HasFileno) -> None:
    """``os.fsync`` but for the disk's part: what is no open file is still an error."""
    os.fstat(file if isinstance(file, int) else file.fileno())


@pytest.fixture(scope="session", autouse=True)
def nobody_waits_for_the_disk() -> Generator[None]:
    """A bundle has fifty files that are forced to disk, which nothing can see short of a machine that loses its power.

    Tests of a full disk put their own ``os.fsync`` in its place; processes that tests start and kill keep the real one.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", _checked)
        yield


@pytest.fixture(autouse=True)
def equal_engines_are_exported_once() -> None:
    """Of 228 exports that the tests of bundles, precisions and commands ask for, 164 are of an engine that was made."""
    export_once()


def _real_model(name: str) -> Path:
    path = model_path(name, ROOT / ".cache" / "models")
    if path is not None:
        return path
    message = f"the model {name} is not fetched: python -m tools.fetch_models {name}"
    if os.environ.get("TWOHEADS_REQUIRE_MODELS"):
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M as a GGUF file."""
    return _real_model("smollm2")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """MiniLM as a Hugging Face folder."""
    return _real_model("minilm")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with a random Llama of 2 layers and a word tokenizer; trained for 64 tokens."""
    torch = pytest.importorskip("torch")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).eval().save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token=WORDS[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
