"""Models of images and text: an image's features in the place of its tokens' embeddings, as the library merges them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from twoheads.compiler import compile_model
from twoheads.compiler.frontend.torch.source_inputs import given_inputs
from twoheads.export import verify, write_bundle
from twoheads.graphs.errors import CompileError
from twoheads.runtime import LoadedBundle, load

SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
IMAGE = 60
"""The token that stands for one place of an image."""


class _Images(nn.Module):
    """What a model makes of an image for its language model, ``[1, places, width]``."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        found: Any = self.model.get_image_features(pixel_values).pooler_output
        return found[0][None]


def _large(model: Any) -> Any:
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model.eval()


def _bundle(path: Path, model: nn.Module, **options: Any) -> LoadedBundle:
    return load(write_bundle(compile_model(model, block_size=16, **options), path, generation=False))


@pytest.mark.long("test_places_in_an_image_are_an_input_of_their_own")
def test_an_image_and_a_text_through_merged_embeddings(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**SIZES, image_size=20, patch_size=4),
        text_config=hf.LlamaConfig(**SIZES, vocab_size=67),
        image_token_id=IMAGE,
        vision_feature_layer=-1,
    )
    model = _large(hf.LlavaForConditionalGeneration(config))
    draw = np.random.default_rng(0)
    image = draw.standard_normal((1, 3, 20, 20)).astype(np.float32)
    ids = draw.integers(0, IMAGE, (1, 41))
    ids[0, 5:30] = IMAGE
    with torch.no_grad():
        want = model(input_ids=torch.from_numpy(ids), pixel_values=torch.from_numpy(image)).logits[0].numpy()
        rows = model.get_input_embeddings()(torch.from_numpy(ids)).numpy()
    images = _bundle(tmp_path / "images", _Images(model), lowering="whole", example_inputs=(torch.from_numpy(image),))
    text = _bundle(tmp_path / "text", model, example_inputs={"inputs_embeds": torch.zeros(1, 29, 32)})
    rows[0, 5:30] = images.run({"pixel_values": image}, output="hidden").array
    got = text.run({"inputs_embeds": rows}, output="logits").array
    assert got is not None
    np.testing.assert_allclose(got, want, rtol=0, atol=5e-6 * np.abs(want).max())


def test_places_in_an_image_are_an_input_of_their_own(tmp_path: Path) -> None:
    """Qwen-VL: three positions a token, by frame, row and column."""
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    config = hf.Qwen2VLTextConfig(**SIZES, num_key_value_heads=2, vocab_size=67, rope_parameters=rope)
    model = _large(hf.models.qwen2_vl.Qwen2VLTextModel(config))
    examples = {"inputs_embeds": torch.zeros(1, 29, 32), "position_ids": torch.zeros(3, 1, 29, dtype=torch.int64)}
    bundle = _bundle(tmp_path / "bundle", model, example_inputs=examples)
    rows = torch.randn(1, 37, 32, generator=torch.Generator().manual_seed(1))
    places = torch.arange(37).repeat(3, 1, 1)
    places[:, 0, 5:20] = 5 + torch.stack([torch.zeros(15).long(), torch.arange(15) // 5, torch.arange(15) % 5])
    with torch.no_grad():
        want = model(inputs_embeds=rows, position_ids=places).last_hidden_state[0].numpy()
    got = bundle.run({"inputs_embeds": rows.numpy(), "position_ids": places.numpy()}, output="hidden").array
    assert got is not None
    np.testing.assert_allclose(got, want, rtol=0, atol=5e-6 * np.abs(want).max())
    assert verify(bundle.path, model, length=37).passed


@pytest.mark.parametrize("shape", [(2, 29), (1, 2), (3, 2, 29), (1, 29, 4, 4, 4)])
def test_examples_without_an_axis_of_tokens_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(CompileError, match=r"example input 'x'.*has shape"):
        given_inputs({"x": torch.zeros(shape)})
