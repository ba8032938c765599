"""Models of one input size as one engine: exact, refused where a length would be baked in, and verified like others."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    FunnelConfig,
    FunnelForTokenClassification,
    MixtralConfig,
    MixtralModel,
    MllamaVisionModel,
    ResNetConfig,
    ResNetForImageClassification,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SwinConfig,
    SwinModel,
)
from transformers.models.mllama.configuration_mllama import MllamaVisionConfig

from twoheads.compiler import compile_model, plan_model
from twoheads.compiler.frontend.torch.model_folder import image_size_of
from twoheads.export import verify, write_bundle
from twoheads.graphs.errors import CompileError, InputError
from twoheads.runtime import load

IMAGE = {"pixel_values": torch.zeros((1, 3, 32, 48))}
"""What a model takes whose configuration does not say a size."""


@pytest.fixture(scope="module")
def resnet() -> Any:
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    return ResNetForImageClassification(config).eval()


@pytest.fixture(scope="module")
def swin() -> Any:
    torch.manual_seed(0)
    config = SwinConfig(embed_dim=16, depths=[2, 1], num_heads=[2, 4], window_size=2, image_size=24, patch_size=4)
    return SwinModel(config).eval()


@pytest.fixture(scope="module")
def bundle(resnet: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiled = compile_model(resnet, lowering="whole", example_inputs=IMAGE)
    return write_bundle(compiled, tmp_path_factory.mktemp("whole") / "bundle")


def pixels(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).standard_normal((1, *shape)).astype(np.float32)


@torch.no_grad()
def test_a_convolutional_network_gives_its_map_place_by_place_and_its_logits(resnet: Any, bundle: Path) -> None:
    image = pixels(3, 32, 48)
    loaded = load(bundle)
    run: dict[str, Any] = {
        name: loaded.run({"pixel_values": image}, output=name).array for name in ("hidden", "logits")
    }
    own = resnet.resnet(torch.from_numpy(image)).last_hidden_state
    assert len(loaded.program.engines) == 1
    assert own.shape == (1, 16, 4, 6)
    np.testing.assert_allclose(run["hidden"], own[0].reshape(16, 24).T, atol=2e-6 * float(own.abs().max()))
    np.testing.assert_allclose(run["logits"], resnet(torch.from_numpy(image)).logits[0], atol=2e-6)


def test_verify_needs_no_example_and_catches_one_wrong_weight(resnet: Any, bundle: Path) -> None:
    assert verify(bundle, resnet).passed
    wrong = copy.deepcopy(resnet)
    with torch.no_grad():
        wrong.resnet.encoder.stages[0].layers[0].layer[0].convolution.weight[1, 2, 0, 0] += 0.01
    assert not verify(bundle, wrong).passed
    wrong = copy.deepcopy(resnet)
    wrong.resnet.embedder.embedder.normalization.running_mean[3] += 0.01
    assert not verify(bundle, wrong).passed


@torch.no_grad()
def test_windows_on_a_grid_are_refused_by_tiles_and_exact_as_a_whole(swin: Any, tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"windows of an image's grid.*\n.*--lowering whole"):
        compile_model(swin, block_size=16)
    path = write_bundle(compile_model(swin, lowering="whole", block_size=16), tmp_path / "bundle")
    image = pixels(3, 24, 24)
    own, run = swin(torch.from_numpy(image)).last_hidden_state[0], load(path).run(image, output="hidden").array
    assert run is not None
    np.testing.assert_allclose(run, own, atol=2e-6 * float(own.abs().max()))
    assert verify(path, swin).passed


class Picture(nn.Module):
    """A torch module from pixels to one vector."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.convolution(image).relu().mean((2, 3)))


@torch.no_grad()
def test_a_torch_module_whose_result_is_one_vector_has_one_row(tmp_path: Path) -> None:
    module, image = Picture().eval(), pixels(3, 9, 11)
    examples = {"image": torch.from_numpy(image)}
    path = write_bundle(compile_model(module, lowering="whole", example_inputs=examples), tmp_path / "bundle")
    run = load(path).run(image, output="hidden").array
    assert run is not None
    np.testing.assert_allclose(run, module(torch.from_numpy(image)), atol=1e-6)
    assert verify(path, module).passed
    with pytest.raises(InputError):
        load(path).run(pixels(3, 9, 12), output="hidden")


def test_a_model_of_any_length_is_refused() -> None:
    with pytest.raises(CompileError, match=r"takes input_ids of any length.*\n.*leave --lowering whole out.*--length"):
        plan_model(
            BertModel(BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)),
            lowering="whole",
        )


@torch.no_grad()
def test_tokens_that_blocks_cannot_follow_run_whole_at_one_length(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 16}
    config = FunnelConfig(vocab_size=40, block_sizes=[1, 1], **sizes)
    config.num_labels = 5
    model = FunnelForTokenClassification(config).eval()
    with pytest.raises(CompileError, match=r"shifted row by row.*\n.*--lowering whole --length"):
        plan_model(model)
    path = write_bundle(compile_model(model, lowering="whole", length=24), tmp_path / "bundle")
    tokens = np.random.default_rng(3).integers(0, 40, (1, 24))
    run, own = load(path).run(tokens, output="hidden").array, model(torch.from_numpy(tokens)).logits[0]
    assert run is not None
    assert run.shape == (24, 5)
    np.testing.assert_allclose(run, own, atol=4e-6 * float(own.abs().max()))
    assert verify(path, model).passed
    assert verify(path, model, tokens=tokens[0]).passed
    with pytest.raises(InputError, match="24"):
        load(path).run(tokens[:, :23], output="hidden")


@pytest.mark.parametrize(
    ("lowering", "length", "message"),
    [
        ("tile", 24, "a model by blocks takes any"),
        ("whole", 0, "--length: is 0"),
        ("whole", 24, "takes pixel_values of one size"),
    ],
)
def test_an_only_length_that_says_nothing_is_refused(swin: Any, lowering: str, length: int, message: str) -> None:
    with pytest.raises(CompileError, match=message):
        plan_model(swin, lowering=lowering, length=length)


def test_an_operator_of_the_librarys_own_is_refused() -> None:
    sizes: dict[str, Any] = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    model = MixtralModel(MixtralConfig(**sizes, num_attention_heads=2, num_key_value_heads=2, num_local_experts=2))
    with pytest.raises(CompileError, match="an operator of transformers that no engine has"):
        plan_model(model, lowering="whole", length=8)


def test_a_second_input_that_a_model_needs_is_named() -> None:
    config = MllamaVisionConfig(hidden_size=16, num_hidden_layers=1, num_global_layers=1, intermediate_size=16)
    config.__dict__.update(attention_heads=2, intermediate_layers_indices=[0], image_size=28)
    with pytest.raises(CompileError, match="needs aspect_ratio_ids beside pixel_values"):
        plan_model(MllamaVisionModel(config))


class Mixing(nn.Module):
    """A torch module that mixes the places of an image without attention."""

    def forward(self, image: Tensor) -> Tensor:
        return image.flatten(2).transpose(1, 2).cumsum(1)


def test_what_tiles_refuse_of_one_size_names_the_whole() -> None:
    with pytest.raises(CompileError, match=r"attention layers were captured.*\n.*--lowering whole"):
        plan_model(Mixing(), example_inputs={"image": torch.zeros((1, 3, 4, 5))})


def test_logits_that_are_a_map_are_refused() -> None:
    config = SegformerConfig(
        num_encoder_blocks=2, sr_ratios=[2, 1], strides=[4, 2], decoder_hidden_size=8,
        hidden_sizes=[8, 8], depths=[1, 1], num_attention_heads=[1, 2],
    )  # fmt: skip
    config.__dict__["image_size"] = 32
    with pytest.raises(CompileError, match=r"logits of the shape \[1, 2, 8, 8\]"):
        plan_model(SegformerForSemanticSegmentation(config).eval(), lowering="whole")


def test_a_policy_and_an_unknown_size_are_refused(resnet: Any) -> None:
    with pytest.raises(CompileError, match="is a policy on attention by tiles"):
        plan_model(resnet, lowering="whole", attention="window:16")
    with pytest.raises(CompileError, match="does not say image_size"):
        plan_model(resnet, lowering="whole")


@pytest.mark.parametrize(
    ("said", "size"),
    [
        ({"crop_size": {"height": 32, "width": 48}, "size": {"shortest_edge": 256}}, (32, 48)),
        ({"size": {"shortest_edge": 40}}, (40, 40)),
        ({"size": 24}, (24, 24)),
        ({"size": {"longest_edge": 40}}, None),
        ({}, None),
    ],
)
def test_a_folder_says_the_size_of_its_images(tmp_path: Path, said: Any, size: Any) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    assert image_size_of(tmp_path) == size
