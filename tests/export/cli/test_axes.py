"""The command line on bundles with several axes, row values and stages that move rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.end_to_end.agreement import zoo_model
from tests.runtime.axes_models import CLASSES, WIDTH, classifier, counted_positions, encoder_decoder, image
from tests.runtime.tiny_bundle import write_tiny
from tests.runtime.tiny_model import Tiny, random_tokens
from twoheads.export.cli import main
from twoheads.graphs.program.program import Pooling
from twoheads.runtime import load

SIZES = {"source": 20, "target": 11}


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]):
    def run(*words: object) -> Any:
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        assert code == 0, captured.out + captured.err
        return json.loads(captured.out) if "--json" in words else captured.out

    return run


def test_plan_of_two_lengths(cli, tmp_path: Path) -> None:
    encoder_decoder().load(tmp_path / "b")
    plan = cli("plan", tmp_path / "b", "--length", "n=20,m=50", "--json")
    assert plan["lengths"] == {"n": 20, "m": 50}
    assert plan["length"] == 20
    assert plan["engine_calls"] == plan["formula_calls"]
    formulas = {stage["name"]: stage["formula"] for stage in plan["stages"]}
    assert formulas["cross"] == "ceil(20/M)*ceil(50/K) = 12"
    assert formulas["encoder.in"] == "ceil(50/M) = 7"
    assert formulas["encoder"].endswith("at N = 50")
    assert formulas["decoder.in"] == "n = 3"
    shown = cli("plan", tmp_path / "b", "--length", "n=20,m=50")
    assert "n = 20, m = 50 tokens in 3 blocks of 8" in shown
    assert "Lemma 3.1" in shown


def test_plan_without_a_length(cli, tmp_path: Path) -> None:
    image().load(tmp_path / "b")
    assert cli("plan", tmp_path / "b", "--json")["length"] == 10
    assert "10 tokens in 2 blocks of 8" in cli("plan", tmp_path / "b")


def test_plan_and_inspect_of_stages_that_move_rows(cli, tmp_path: Path) -> None:
    classifier("mean").load(tmp_path / "b")
    stages = {stage["name"]: stage for stage in cli("plan", tmp_path / "b", "--length", 20, "--json")["stages"]}
    assert (stages["rows"]["kind"], stages["rows"]["engine"], stages["rows"]["calls"]) == ("sequence", "concat", 0)
    assert stages["rows"]["theorem"] == "no call"
    assert stages["pooler"]["calls"] == 1
    shown = cli("inspect", tmp_path / "b", "--program")
    assert "features float32[1, n, 6]" in shown
    assert "3 of them move rows" in shown
    assert "%rows: float32[1, n+1, 6] = concat(%row, %features) axis=1" in shown
    data = cli("inspect", tmp_path / "b", "--json")
    assert data["outputs"] == ["hidden", "logits"]
    assert data["inputs"] == [{"name": "features", "dtype": "float32", "shape": [1, "n", 6], "source": "argument"}]


def test_inspect_tells_cross_attention(cli, tmp_path: Path) -> None:
    encoder_decoder().load(tmp_path / "b")
    masks = cli("inspect", tmp_path / "b", "--json")["masks"]
    assert masks == {"full": 1, "causal": 1, "full from n to m": 1}


def test_run_on_arrays(cli, tmp_path: Path) -> None:
    model = encoder_decoder()
    bundle, rng = model.load(tmp_path / "b"), np.random.default_rng(0)
    arrays: dict[str, Any] = {
        name: rng.standard_normal((length, WIDTH)).astype(np.float32) for name, length in SIZES.items()
    }
    np.savez(tmp_path / "in.npz", **arrays)
    words = ("run", tmp_path / "b", "--input", tmp_path / "in.npz", "-o", tmp_path / "out.npz", "--json")
    report = cli(*words)
    assert report["lengths"] == {"n": SIZES["target"], "m": SIZES["source"]}
    assert report["engine_calls"] == report["formula_calls"]
    np.testing.assert_array_equal(np.load(tmp_path / "out.npz")["hidden"], bundle.run(arrays).array)

    mask = (np.arange(SIZES["source"]) < 9).astype(np.int64)
    np.savez(tmp_path / "in.npz", **arrays, attention_mask=mask)
    assert cli(*words)["lengths"] == {"n": SIZES["target"], "m": 9}
    short = bundle.run(arrays | {"source": arrays["source"][:9]})
    np.testing.assert_array_equal(np.load(tmp_path / "out.npz")["hidden"], short.array)


def test_run_on_batches_and_documents(cli, tmp_path: Path) -> None:
    tiny = Tiny(masks=("full",), pooling=Pooling("mean", True))
    bundle = load(write_tiny(tmp_path / "b", tiny))
    tokens = np.stack([random_tokens(tiny, 12, seed) for seed in range(3)])
    mask = np.array([[1] * 12, [1] * 5 + [0] * 7, [0] * 8 + [1] * 4])
    np.savez(tmp_path / "in.npz", tokens=tokens, attention_mask=mask)
    words = ("run", tmp_path / "b", "--input", tmp_path / "in.npz", "-o", tmp_path / "out.npz")
    for output, shape in (("hidden", (3, 12, 12)), ("embedding", (3, 12)), ("last", (3, 1, 40))):
        report = cli(*words, "--output", output, "--json")
        assert report["requests"] == 3
        assert report["engine_calls"] == report["formula_calls"]
        found = np.load(tmp_path / "out.npz")["logits" if output == "last" else output]
        assert found.shape == shape
        want: Any = bundle.run(tokens, output=output, attention_mask=mask)
        np.testing.assert_allclose(found, np.stack([result.array for result in want]), atol=1e-5)

    np.savez(tmp_path / "in.npz", tokens=tokens.reshape(-1), documents=[30, 6])
    cli(*words, "--output", "embedding")
    whole = bundle.run(tokens.reshape(-1), output="embedding", documents=[30, 6])
    np.testing.assert_array_equal(np.load(tmp_path / "out.npz")["embedding"], whole.array)


def test_run_refuses_arrays_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image().load(tmp_path / "b")
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "text.npz").write_text("no numbers")
    np.savez(tmp_path / "other.npz", pictures=np.zeros(3))
    np.savez(tmp_path / "pixels.npz", pixels=np.zeros((1, 6, 6), np.float32))
    for name, words, expected in (
        ("none.npz", (), "no such file"),
        ("one.npy", (), "is a single array"),
        ("text.npz", (), "is no archive of arrays"),
        ("other.npz", (), "has no such input"),
        ("pixels.npz", ("--positions", "0"), "leave out --positions or --input"),
        ("pixels.npz", ("--tokens", "x.npy"), "two inputs are given"),
    ):
        line = ["run", tmp_path / "b", "--input", tmp_path / name, "-o", tmp_path / "out.npz", *words]
        assert main([str(word) for word in line]) == 1
        assert expected in capsys.readouterr().err
    line = ["run", tmp_path / "b", "--input", tmp_path / "pixels.npz", "-o", tmp_path / "out.npz"]
    assert main([str(word) for word in line]) == 0
    assert np.load(tmp_path / "out.npz")["logits"].shape == (CLASSES,)


def test_run_streams_as_many_rows_as_there_are(cli, tmp_path: Path) -> None:
    model = counted_positions()
    bundle = model.load(tmp_path / "b")
    np.save(tmp_path / "t.npy", np.arange(20) % 7)
    cli("run", tmp_path / "b", "--tokens", tmp_path / "t.npy", "-o", tmp_path / "out.npz")
    np.testing.assert_array_equal(np.load(tmp_path / "out.npz")["hidden"], bundle.run(np.arange(20) % 7).array)


@pytest.mark.parametrize(
    ("name", "length", "rows"),
    [
        pytest.param("T5", ["--length", "n=21,m=40"], 21, marks=pytest.mark.long("test_verify_reads_arrays_by_name")),
        ("ViT, image classification", [], 50),
    ],
)
def test_a_model_folder_of_two_sequences_or_of_images_is_compiled_and_verified(
    cli, tmp_path: Path, name: str, length: list[str], rows: int
) -> None:
    model = zoo_model(name, tmp_path)
    model.save_pretrained(tmp_path / "model")
    cli("compile", tmp_path / "model", "-o", tmp_path / "bundle", "--block-size", 16, "--no-generation")
    report = cli("verify", tmp_path / "bundle", "--against", tmp_path / "model", *length, "--json")
    assert report["passed"]
    assert report["checks"][0]["positions"] == rows


def test_verify_reads_arrays_by_name(cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = zoo_model("BART", tmp_path)
    model.save_pretrained(tmp_path / "model")
    cli("compile", tmp_path / "model", "-o", tmp_path / "bundle", "--block-size", 16, "--no-generation")
    words = ("verify", tmp_path / "bundle", "--against", tmp_path / "model", "--json")
    given = tmp_path / "given.npz"
    np.savez(given, input_ids=np.arange(30)[None] % 67, decoder_input_ids=np.arange(7)[None])
    report = cli(*words, "--input", given)
    assert report["passed"]
    assert (report["length"], report["checks"][0]["positions"]) == (7, 7)
    layers = cli("verify", tmp_path / "bundle", "--polygraphy", "--input", given, "--json")
    assert all(layer["first"] is None for layer in layers)
    for wrong, problem in (
        (("--length", "n=8,m=30"), "the arrays have {'m': 30, 'n': 7}"),
        (("--tokens", tmp_path / "t.npy"), "does not go together with --input: two inputs are given"),
    ):
        assert main([str(word) for word in (*words, "--input", given, *wrong)]) == 1
        assert problem in capsys.readouterr().err
    np.savez(given, input_ids=np.arange(30)[None] % 67)
    assert main([str(word) for word in (*words, "--input", given)]) == 1
    assert "decoder_input_ids" in capsys.readouterr().err
