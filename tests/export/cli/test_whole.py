"""A convolutional network as one engine, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from transformers import ResNetConfig, ResNetForImageClassification

from tests.compiler.onnx_graphs import save_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    config.num_labels = 3
    ResNetForImageClassification(config).save_pretrained(tmp_path / "resnet")
    size = {"size": {"height": 32, "width": 48}}
    (tmp_path / "resnet" / "preprocessor_config.json").write_text(json.dumps(size), encoding="utf-8")
    return tmp_path / "resnet"


def test_nothing_is_said_of_blocks_and_attention_that_it_has_not(cli, folder: Path, tmp_path: Path) -> None:
    bundle, image = tmp_path / "bundle", tmp_path / "in.npz"
    made = cli("compile", folder, "-o", bundle, "--lowering", "whole").out
    assert "one engine of the only input size" in made
    assert "--input FILE.npz" in made
    assert "key tiles" not in made
    planned = cli("plan", bundle).out
    assert "one size" in planned
    for word in ("theorem", "SETH", "paper", "floor", "blocks of"):
        assert word not in planned
    inspected = cli("inspect", bundle).out
    assert "pixel_values float32[1, 3, 32, 48]" in inspected
    for word in ("key tiles", "packing", "short inputs", "token numbers", "attention"):
        assert word not in inspected
    np.savez(image, pixel_values=np.zeros((1, 3, 32, 48), np.float32))
    ran = cli("run", bundle, "--input", image, "-o", tmp_path / "out.npz", "--json").json
    assert ran["engine_calls"] == 1


def test_results_that_are_left_out_are_named(cli, tmp_path: Path) -> None:
    kernel = {"kernel": np.ones((4, 3, 1, 1), np.float32)}
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["map"]),
        helper.make_node("Relu", ["map"], ["state"]),
    ]
    results, shape = {"map": [1, 4, 2, 2], "state": [1, 4, 2, 2]}, (TensorProto.FLOAT, [1, 3, 2, 2])
    path = save_model(tmp_path / "m.onnx", nodes, kernel, results, inputs={"image": shape})
    told = "state (the source's results that runs do not give; choose with compile --result NAME)"
    assert told in " ".join(cli("compile", path, "-o", tmp_path / "one", "--lowering", "whole").out.split())
    assert told in " ".join(cli("inspect", tmp_path / "one").out.split())
    assert cli("inspect", tmp_path / "one", "--json").json["left_out"] == ["state"]
    chosen = ("--result", "state", "--force", "--json")
    assert cli("compile", path, "-o", tmp_path / "one", "--lowering", "whole", *chosen).json["left_out"] == ["map"]
