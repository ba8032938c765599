"""``twoheads export``: compiled models through the command line, as a user does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twoheads.export.cli import main
from twoheads.export.one_file.comparison import open_file
from twoheads.runtime import load


def test_a_compiled_decoder_becomes_a_file_that_onnx_runtime_runs(cli: Any, bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny.onnx"
    ran = cli("export", bundle, "-o", file, "--output", "last", "--output", "logits", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["inputs"] == {"input_ids": [1, "n"]}
    assert ran.json["outputs"] == {"last": [1, 1, 16], "logits": [1, "n", 16]}
    assert [check["length"] for check in ran.json["checks"]] == [1, 17]
    session, loaded = open_file(file), load(bundle)
    for length in (1, 16, 41):
        ids = np.random.default_rng(length).integers(0, 16, (1, length))
        last, logits = session.run(None, {"input_ids": ids})
        expected = np.asarray(loaded.run(ids, output="logits").array)
        np.testing.assert_allclose(logits[0], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        np.testing.assert_allclose(last[0, 0], expected[-1], rtol=0, atol=1e-5 * np.abs(expected).max())


def test_it_tells_files_and_errors_and_keeps_what_is_there(cli: Any, bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny.onnx"
    ran = cli("export", bundle, "-o", file, "--weights", "beside")
    assert ran.code == 0, ran.err
    assert f"{file} (" in ran.out
    assert f"{file}.data (" in ran.out
    assert "17 tokens  logits off by " in ran.out
    assert "exists already" in cli("export", bundle, "-o", file).refused()
    assert cli("export", bundle, "-o", file, "--force").code == 0
    assert (
        "does not give 'embedding'" in cli("export", bundle, "-o", file, "--force", "--output", "embedding").refused()
    )


def test_a_decoder_becomes_a_file_for_generation(cli: Any, bundle: Path, tmp_path: Path) -> None:
    ran = cli("export", bundle, "-o", tmp_path / "step.onnx", "--step", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["inputs"]["past_key_values.1.value"] == [1, 2, "p", 8]
    assert ran.json["outputs"]["last"] == [1, 1, 16]
    assert ran.json["outputs"]["present.0.key"] == [1, 2, "p+n", 8]
    assert [check["length"] for check in ran.json["checks"]] == [1, 17, 18, 21]
    assert max(check["last"] for check in ran.json["checks"]) < 1e-5
    told = cli("export", bundle, "-o", tmp_path / "none.onnx", "--step", "--output", "embedding").refused()
    assert "is embedding, which is of a whole input" in told


def test_weights_of_8_bits_stay_what_they_are(cli: Any, tiny_llama: Path, tmp_path: Path) -> None:
    words = ["compile", str(tiny_llama), "-o", str(tmp_path / "b"), "--block-size", "16", "--no-generation"]
    assert main([*words, "--weights", "int8"]) == 0
    ran = cli("export", tmp_path / "b", "-o", tmp_path / "f.onnx", "--json")
    assert ran.code == 0, ran.err
    assert max(check["logits"] for check in ran.json["checks"]) < 1e-5


def test_half_precision_is_refused_by_name(cli: Any, tiny_llama: Path, tmp_path: Path) -> None:
    words = ["compile", str(tiny_llama), "-o", str(tmp_path / "b"), "--block-size", "16", "--no-generation"]
    assert main([*words, "--dtype", "fp16"]) == 0
    assert "has float16 values" in cli("export", tmp_path / "b", "-o", tmp_path / "f.onnx").refused()


@pytest.mark.parametrize("out", ["nowhere/f.onnx", "."])
def test_a_place_that_can_not_be_written_is_told_first(cli: Any, bundle: Path, tmp_path: Path, out: str) -> None:
    assert "fix:" in cli("export", bundle, "-o", tmp_path / out).refused()
