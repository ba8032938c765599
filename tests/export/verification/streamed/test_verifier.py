"""A bundle and its original layer by layer: what is right passes, and a fault is seen in the layer that has it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from tests.export.verification.test_verifier import edited
from tools.large_models.make import Shape, make_model
from twoheads.compiler import compile_model
from twoheads.compiler.frontend.torch.weights.stored_tensor import StoredTensor
from twoheads.compiler.original.fed_layers import feeding_layers, repeated_layers
from twoheads.export import quantise_weights, verify, write_bundle
from twoheads.export.cli.app import app
from twoheads.export.verification.original_run import load_original
from twoheads.export.verification.report import PIECES
from twoheads.export.verification.streamed import verifier
from twoheads.export.verification.streamed.verifier import StreamedReport, verify_streamed
from twoheads.graphs.errors import InputError
from twoheads.graphs.schedule import head_columns
from twoheads.graphs.serialization.bundle_format import MANIFEST, WEIGHTS
from twoheads.runtime.backends.onnxruntime_shared import SharedWeights
from twoheads.runtime.execution.engine_pool import EnginePool

BLOCK, LENGTH, LAYERS = 16, 41, 3
SHAPE = Shape(128, 640, LAYERS, 4, 2, 600)
"""Its products and its embedding are large enough to be left in their files."""

PIECE = 128
"""Columns of the head, in the test that says so; of a head of 600 classes there are none elsewhere."""


@dataclass(frozen=True)
class Made:
    folder: Path
    bundle: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("streamed")
    model = make_model(folder / "model", SHAPE)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(head_columns, "COLUMNS", PIECE)
        return Made(model, write_bundle(compile_model(model, block_size=BLOCK), folder / "bundle", generation=False))


def outcome(report: StreamedReport) -> dict[str, bool]:
    return {check.output: check.passed for check in report.report.checks}


def test_a_right_bundle_passes_in_every_layer(made: Made) -> None:
    found = verify_streamed(made.bundle, made.folder, length=LENGTH)
    assert found.passed, found
    assert outcome(found) == dict.fromkeys(["hidden", "logits", "model.layers.0", "model.layers.1"], True)
    assert found.unseen == ("model.layers.2",)  # which ends in the engine of the last norm
    assert found.first_fault is None
    assert found.report.calls.engine_calls == found.report.calls.formula_calls > 0
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["first_fault"] is None
    whole = verify(made.bundle, made.folder, length=LENGTH).check("logits")
    assert found.report.check("logits").max_magnitude == pytest.approx(whole.max_magnitude, rel=1e-5)


def test_neither_side_is_held_in_memory(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters: list[Any] = []
    most: list[int] = []
    load, open_engine = load_original, EnginePool.tokenwise

    def seen(*arguments: Any, **options: Any) -> Any:
        original: Any = load(*arguments, **options)
        parameters.extend(original.module.parameters())
        return original

    def counted(pool: EnginePool, stage: Any) -> Any:
        engine = open_engine(pool, stage)
        most.append(sum(bool(key[2]) for key in pool.opened))
        return engine

    monkeypatch.setattr(verifier, "load_original", seen)
    monkeypatch.setattr(EnginePool, "tokenwise", counted)
    assert verify_streamed(made.bundle, made.folder, length=LENGTH).passed
    large = [parameter for parameter in parameters if parameter.numel() > 1 << 16]
    assert len(large) == 3 * LAYERS + 2
    assert all(isinstance(parameter, StoredTensor) for parameter in large)
    assert max(most) == 1, "engines of more than one stage are open at the same time"


def scaled(name: str, factor: float) -> Callable[[Any, bytes], bytes]:
    def edit(places: Any, content: bytes) -> bytes:
        data = np.frombuffer(content, np.uint8).copy()
        part(data, places[name])[:] *= np.float32(factor)
        return data.tobytes()

    return edit


def part(data: Any, place: Any) -> Any:
    return data[place["offset"] :][: int(np.prod(place["shape"])) * 4].view(np.float32)


def with_weights(made: Made, to: Path, edit: Callable[[Any, bytes], bytes]) -> Path:
    places = json.loads((made.bundle / MANIFEST).read_text())["weights"]
    return edited(made.bundle, to, WEIGHTS, lambda content: edit(places, content))


@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("name", ["self_attn.k_proj", "mlp.down_proj", "input_layernorm"])
def test_an_edited_weight_is_seen_in_its_layer(made: Made, tmp_path: Path, layer: int, name: str) -> None:
    wrong = with_weights(made, tmp_path / "b", scaled(f"model.layers.{layer}.{name}.weight", 1.005))
    found = verify_streamed(wrong, made.folder, length=LENGTH)
    assert not found.passed
    assert str(found.first_fault).startswith(f"model.layers.{layer}")
    checked = outcome(found)
    assert all(checked[f"model.layers.{before}"] for before in range(layer)), "earlier layers are right"


def test_a_small_fault_is_seen_in_its_layer_alone(made: Made, tmp_path: Path) -> None:
    wrong = with_weights(made, tmp_path / "b", scaled("model.layers.0.mlp.down_proj.weight", 1.0005))
    found = verify_streamed(wrong, made.folder, length=LENGTH)
    assert found.first_fault == "model.layers.0"
    assert [output for output, passed in outcome(found).items() if not passed] == ["model.layers.0"]


def test_two_layers_in_each_other_s_place_are_seen(made: Made, tmp_path: Path) -> None:
    def swap(places: Any, content: bytes) -> bytes:
        data = np.frombuffer(content, np.uint8).copy()
        one, other = (part(data, places[f"model.layers.{layer}.mlp.up_proj.weight"]) for layer in (0, 1))
        one[:], other[:] = other.copy(), one.copy()
        return data.tobytes()

    found = verify_streamed(with_weights(made, tmp_path / "b", swap), made.folder, length=LENGTH)
    assert not found.passed
    assert found.first_fault == "model.layers.0, or what follows it"
    assert not found.report.check("hidden").passed


@pytest.mark.parametrize(("name", "fault"), [("model.embed_tokens", "model.layers.0"), ("lm_head", "model.layers.2")])
def test_what_is_no_layer_is_seen_too(made: Made, tmp_path: Path, name: str, fault: str) -> None:
    wrong = with_weights(made, tmp_path / "b", scaled(f"{name}.weight", 1.0005))
    found = verify_streamed(wrong, made.folder, length=LENGTH)
    assert not found.passed
    assert fault in str(found.first_fault)


def test_a_piece_of_the_head_that_reads_other_columns_is_seen(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_columns, "COLUMNS", PIECE)
    columns = EnginePool.columns
    monkeypatch.setattr(EnginePool, "columns", lambda pool, stage, start: columns(pool, stage, max(start, 1)))
    found = verify_streamed(made.bundle, made.folder, length=LENGTH)
    assert [(check.name, check.output) for check in found.report.checks if not check.passed] == [(PIECES, "logits")]
    assert found.first_fault == "the head some columns at a time"


def test_rounded_weights_are_the_bundle_s_own(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SharedWeights, "open", None)  # what it packs would stay when an engine is closed
    compiled = quantise_weights(compile_model(made.folder, block_size=BLOCK), "int4")
    bundle = write_bundle(compiled, tmp_path / "b", generation=False)
    found = verify_streamed(bundle, made.folder, length=LENGTH)
    assert found.passed, found
    assert len(found.report.checks) == 4
    with pytest.raises(InputError, match="another configuration"):
        verify_streamed(bundle, make_model(tmp_path / "m", Shape(128, 640, 2, 4, 2, 600)), length=LENGTH)


def test_an_encoder_s_layers_are_all_values(tmp_path: Path) -> None:
    torch.manual_seed(3)
    sizes: Any = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 100}
    config = BertConfig(num_hidden_layers=2, num_attention_heads=2, **sizes)
    BertModel(config).eval().save_pretrained(tmp_path / "model")
    bundle = write_bundle(compile_model(tmp_path / "model", block_size=BLOCK), tmp_path / "b", generation=False)
    found = verify_streamed(bundle, tmp_path / "model", length=LENGTH)
    assert found.passed, found
    assert [check.output for check in found.report.checks][:2] == ["hidden", "embedding"]
    assert {"encoder.layer.0", "encoder.layer.1"} == set(outcome(found)) - {"hidden", "embedding"}


def test_layers_are_what_stands_in_the_outermost_lists() -> None:
    experts = nn.ModuleList([nn.Linear(2, 2)])
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"experts": experts}), nn.Identity()])})
    assert [path for path, _ in repeated_layers(model)] == ["layers.0", "layers.1"]


def test_a_layer_reads_what_the_one_before_is_said_to_give() -> None:
    model = nn.Sequential()
    model.layers = nn.ModuleList([nn.Identity(), nn.Identity()])
    seen: dict[str, float] = {}

    def exchange(name: str, rows: torch.Tensor) -> torch.Tensor | None:
        seen[name] = float(rows.sum())
        return torch.full_like(rows, 7.0) if name == "layers.0" else None

    with feeding_layers(model, exchange):
        rows = torch.ones(3, 2, 1)
        for layer in (*model.layers, model.layers[1]):
            rows = layer(rows)
    assert seen == {"layers.0": 2.0, "layers.1": 14.0, "layers.1 (2)": 14.0}
    assert model.layers[0](torch.ones(1, 2, 1)).sum() == 2, "hooks are gone"


def test_onnx_files_and_other_ways_are_refused(made: Made, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    with pytest.raises(InputError, match="no layers"):
        verify_streamed(made.bundle, tmp_path / "model.onnx", length=LENGTH)
    runner, words = CliRunner(), ["verify", str(made.bundle), "--against", str(made.folder), "--streamed"]
    for more in (["--generate", "3"], ["--target", "onnxruntime"], ["--polygraphy"]):
        assert runner.invoke(app, [*words, "--length", "9", *more]).exit_code != 0
    done = runner.invoke(app, [*words, "--length", "9"])
    assert done.exit_code == 0, done.output
    assert "model.layers.1" in done.output
