"""Complex products become real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.compiler.small_models import EXAMPLES, OneLayer, captured
from twoheads.compiler import compile_model, plan_model
from twoheads.compiler.frontend.torch.capture_whole import capture_whole
from twoheads.compiler.frontend.torch.load_source import load_source
from twoheads.compiler.original.prove_capture import prove_capture
from twoheads.export import write_bundle
from twoheads.graphs.errors import CompileError
from twoheads.runtime import load


def _turn(x: Tensor, *, real_first: bool = False) -> Tensor:
    """Pairs of channels turned by an angle that grows with the position, and doubled."""
    angles = torch.arange(x.shape[1]).float()[:, None] * torch.tensor([1.0, 0.5, 0.25, 0.1])
    turns = torch.polar(torch.ones_like(angles), angles)[None, :, None, :].to(torch.complex64)
    pairs = torch.view_as_complex(x.view(*x.shape[:2], 1, 4, 2))
    product = 2.0 * (turns * pairs) if real_first else (pairs * turns) * torch.full((1, 1, 1, 1), 2.0)
    return torch.view_as_real(product.transpose(-1, -2).transpose(2, 3)).reshape(x.shape)


def _by_parts(x: Tensor) -> Tensor:
    made = torch.complex(x[..., :4], x[..., 4:]) * torch.complex(x[..., 4:], x[..., :4])
    return torch.view_as_real(made[..., None, :]).view(x.shape)


@pytest.mark.parametrize("before", [_turn, lambda x: _turn(x, real_first=True), _by_parts])
def test_a_product_of_complex_numbers(before: object) -> None:
    source = load_source(OneLayer(before=before), example_inputs=EXAMPLES)  # type: ignore[arg-type]
    found = captured(source.module)
    prove_capture(source, found)
    assert not any("complex" in node.type.dtype for node in found.graph.nodes if node.type is not None)


class Turned(torch.nn.Module):
    """An image turned by a table of complex numbers, which is a buffer."""

    turns: Tensor

    def __init__(self) -> None:
        super().__init__()
        angles = torch.arange(12.0).view(3, 4)
        self.register_buffer("turns", torch.polar(torch.ones_like(angles), angles))

    def forward(self, image: Tensor) -> Tensor:
        pairs = torch.view_as_complex(image.view(1, 3, 4, 2))
        return torch.view_as_real(pairs * self.turns[None]).flatten(2)


def test_a_complex_weight_is_a_pair() -> None:
    source = load_source(Turned(), example_inputs={"image": torch.zeros((1, 3, 4, 2))}, whole=True)
    found = capture_whole(source)
    prove_capture(source, found)
    assert found.graph.weights["turns"].shape == (3, 4, 2)
    assert found.graph.weights["turns"].dtype == "float32"


class Fourier(torch.nn.Module):
    """An image's transform along its last two axes, the second of complex numbers."""

    def forward(self, image: Tensor) -> Tensor:
        return torch.fft.fftn(torch.fft.fftn(image, dim=(3,)), dim=(2,)).real.flatten(2)


def test_a_fourier_transform_is_as_precise_as_torchs(tmp_path: Path) -> None:
    module, image = Fourier().eval(), torch.randn((1, 3, 53, 64), generator=torch.Generator().manual_seed(0))
    compiled = compile_model(module, lowering="whole", example_inputs={"image": image})
    run = load(write_bundle(compiled, tmp_path / "bundle")).run(image.numpy(), output="hidden").array
    want = module(image.double())[0]
    assert run is not None
    assert float(np.abs(run - want.numpy()).max()) < 2e-6 * float(want.abs().max())


def test_a_fourier_transform_of_another_size_is_refused() -> None:
    class Longer(torch.nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return torch.fft.fftn(image, s=(8, 8), dim=(2, 3)).real.flatten(2)

    with pytest.raises(CompileError, match="another size or scale"):
        plan_model(Longer(), lowering="whole", example_inputs={"image": torch.zeros((1, 3, 6, 5))})
