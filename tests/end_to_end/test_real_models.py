"""Real weights through the whole path: compile once, run and verify at several lengths from the same bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from twoheads.compiler import compile_model
from twoheads.compiler.frontend.torch.load_source import load_source
from twoheads.export import verify, write_bundle
from twoheads.export.one_file.comparison import open_file
from twoheads.export.one_file.export import export_one_file
from twoheads.graphs.errors import InputError
from twoheads.runtime import load


def digest(folder: Path) -> str:
    """Of every file's name and bytes."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            total.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return total.hexdigest()


BLOCK = 128
"""Half of the default: as many blocks and tiles, and half of the work."""


@pytest.fixture(scope="module")
def smollm2_bundle(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiled = compile_model(smollm2, block_size=BLOCK)
    return write_bundle(compiled, tmp_path_factory.mktemp("smollm2") / "bundle", generation=False)


@pytest.fixture(scope="module")
def minilm_bundle(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(
        compile_model(minilm, block_size=BLOCK), tmp_path_factory.mktemp("minilm") / "bundle", generation=False
    )


@pytest.fixture(scope="module")
def smollm2_original(smollm2: Path) -> Any:
    return load_source(smollm2).module  # once: a GGUF file takes a while to read


@pytest.mark.long("test_smollm2_continues_a_sentence", "test_minilm_over_its_range")
def test_smollm2_from_one_bundle_at_many_lengths(smollm2_original: Any, smollm2_bundle: Path) -> None:
    before = digest(smollm2_bundle)
    for length in (1, BLOCK - 1, BLOCK + 1, 2 * BLOCK + 8):  # three blocks, the last of few tokens
        report = verify(smollm2_bundle, smollm2_original, length=length)
        assert report.passed, f"{length}: {report.worst.ratio:.2f} times the noise floor"
        assert report.calls.engine_calls == report.calls.formula_calls
        assert report.top1_agreement == 1.0
    assert digest(smollm2_bundle) == before


@pytest.mark.long("tests/export/one_file/test_export.py::test_any_length_is_the_whole_model")
def test_smollm2_in_one_onnx_file_is_the_original(smollm2_original: Any, smollm2_bundle: Path, tmp_path: Path) -> None:
    session = open_file(export_one_file(smollm2_bundle, tmp_path / "smollm2.onnx", outputs=("logits",)).file)
    for length in (1, BLOCK - 1, 2 * BLOCK + 8):
        ids = np.random.default_rng(length).integers(0, 49152, (1, length))
        with torch.no_grad():
            expected = smollm2_original(torch.from_numpy(ids)).logits.numpy()
        found = session.run(None, {"input_ids": ids})[0]
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
        assert (found.argmax(-1) == expected.argmax(-1)).mean() > 0.99


def test_smollm2_continues_a_sentence(smollm2_bundle: Path) -> None:
    bundle = load(smollm2_bundle)
    assert bundle.tokenizer is not None
    result = bundle.run(bundle.tokenizer.encode("The capital of France is"), output="last")
    assert result.array is not None
    assert bundle.tokenizer.decode([int(result.array[0].argmax())]).strip() == "Paris"


@pytest.mark.parametrize("length", [1, BLOCK - 1, BLOCK, BLOCK + 1, 512])
def test_minilm_over_its_range(minilm: Path, minilm_bundle: Path, length: int) -> None:
    assert verify(minilm_bundle, minilm, length=length).passed


def test_beyond_its_table_minilm_says_that_the_model_ends(minilm_bundle: Path) -> None:
    with pytest.raises(InputError, match=r"the model .*position_embeddings\.weight of 512 rows"):
        load(minilm_bundle).run(np.full(513, 100))


def test_minilm_tells_related_sentences_from_unrelated_ones(minilm_bundle: Path) -> None:
    bundle = load(minilm_bundle)
    assert bundle.tokenizer is not None
    sentences = ("A man is eating food.", "A man eats a piece of bread.", "The stock market fell sharply.")
    results = bundle.run([bundle.tokenizer.encode(sentence) for sentence in sentences])
    first, related, unrelated = (np.asarray(result.array) for result in results)
    assert float(first @ related) > 0.5 > 0.2 > float(first @ unrelated)
