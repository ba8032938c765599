"""The file for steps beside the runtime's own contexts: prompts at the edges of blocks, then token by token."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from tests.runtime.generation.decoders import BLOCK, bundle, bundle_folder, tokens
from tests.runtime.tiny_bundle import write_tiny
from tests.runtime.tiny_model import Tiny
from tests.tiers import cases, with_long
from twoheads.compiler import compile_model
from twoheads.export import write_bundle
from twoheads.export.engines.tensor_error import relative_error
from twoheads.export.one_file import step_comparison
from twoheads.export.one_file.comparison import open_file
from twoheads.export.one_file.export import export_one_file
from twoheads.export.one_file.step_comparison import empty_past, following_past
from twoheads.graphs.errors import BundleError, InputError

NAMES = ("llama", "gemma", "qwen", "mamba")
"""Full attention; windows; states beside attention; states alone."""

FIRST = ("llama", "gemma", "mamba")

BOUND = 2e-5
"""Of errors, as a share of the largest logit."""

OUTPUTS = ("last", "logits", "hidden")


@cache
def _folder() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="steps-")


@cache
def step_file(name: str) -> Any:
    """A session of the file of one of the decoders; Llama's has key tiles of two blocks."""
    file = Path(_folder().name) / f"{name}.onnx"
    wide = 2 * BLOCK if name == "llama" else None
    return open_file(export_one_file(bundle_folder(name), file, step=True, outputs=OUTPUTS, key_tile=wide).file)


class Sequence:
    """What a host does: gives back what the file kept."""

    def __init__(self, session: Any) -> None:
        self.session, self.past = session, empty_past(session)

    def __call__(self, new: list[int]) -> dict[str, Any]:
        names = [port.name for port in self.session.get_outputs()]
        given = {"input_ids": np.array([new], np.int64), **self.past}
        found = dict(zip(names, self.session.run(names, given), strict=True))
        self.past = following_past({name: array for name, array in found.items() if name.startswith("present")})
        return found


def near(found: Any, expected: Any) -> None:
    assert found.dtype == np.float32
    assert np.abs(found.reshape(expected.shape) - expected).max() < BOUND * np.abs(expected).max()


@pytest.mark.parametrize("name", with_long(NAMES, FIRST))
@pytest.mark.parametrize("prompt", [1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 3])
def test_it_generates_what_the_runtime_generates(name: str, prompt: int) -> None:
    sequence, given = Sequence(step_file(name)), tokens(prompt)
    with bundle(name).open_context() as context:
        expected, found = context.append(given), sequence(given)["last"]
        for _ in range(24):
            near(found, expected)
            following = int(expected.argmax())
            assert int(found.argmax()) == following
            expected, found = context.step(following), sequence([following])["last"]


@pytest.mark.repeated
@settings(max_examples=cases(10, 25), deadline=None)
@given(name=st.sampled_from(FIRST), parts=st.lists(st.integers(1, 3 * BLOCK), min_size=1, max_size=5))
def test_how_tokens_are_split_changes_nothing(name: str, parts: list[int]) -> None:
    sequence, given = Sequence(step_file(name)), tokens(sum(parts))
    expected = {output: np.asarray(bundle(name).run(given, output=output).array) for output in ("logits", "hidden")}
    at = 0
    for part in parts:
        found = sequence(given[at : at + part])
        at += part
        for output, rows in expected.items():
            near(found[output], rows.reshape(len(given), -1)[at - part : at])
        near(found["last"], expected["logits"].reshape(len(given), -1)[at - 1])


def test_what_it_keeps_is_what_was_kept_and_the_new_rows() -> None:
    sequence = Sequence(step_file("llama"))
    sequence(tokens(20))
    before = dict(sequence.past)
    sequence(tokens(3))
    assert list(before) == [f"past_key_values.{layer}.{role}" for layer in range(3) for role in ("key", "value")]
    for name, array in sequence.past.items():
        assert array.shape == (1, 2, 23, 8)
        np.testing.assert_array_equal(array[:, :, :20], before[name])


def test_a_host_that_gives_what_does_not_fit_stops_by_name() -> None:
    sequence = Sequence(step_file("llama"))
    sequence(tokens(5))
    name = "past_key_values.1.value"
    sequence.past[name] = sequence.past[name][:, :, :4]
    told = f"input {name} does not have as many rows as past_key_values.0.key"
    with pytest.raises(Exception, match=told):
        sequence(tokens(1))
    with pytest.raises(Exception, match="input input_ids is empty"):
        Sequence(step_file("llama"))([])


def test_a_table_of_positions_ends_the_sequence(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_positions=24, n_embd=16, n_layer=1, n_head=2, initializer_range=0.3)
    model = GPT2LMHeadModel(config).eval()
    path = write_bundle(compile_model(model, block_size=BLOCK), tmp_path / "b")
    sequence, given = Sequence(open_file(export_one_file(path, tmp_path / "f.onnx", step=True).file)), tokens(24)
    with torch.no_grad():
        expected = model(torch.tensor([given])).logits[0].numpy()
    near(sequence(given[:20])["last"], expected[19])
    for at in range(20, 24):
        near(sequence([given[at]])["last"], expected[at])
    with pytest.raises(Exception, match="the model takes 24 tokens at most"):
        sequence(tokens(1))


def test_the_file_holds_engines_of_one_row_and_of_a_block(tmp_path: Path) -> None:
    model = onnx.load(export_one_file(bundle_folder("llama"), tmp_path / "f.onnx", step=True).file)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts["twoheads.form"] == "step"
    attentions = {function.name for function in model.functions if function.name.endswith("masked_merge")}
    assert {name.startswith("step_1_") for name in attentions} == {True, False}
    assert [node.op_type for node in model.graph.node].count("If") == 1


@pytest.mark.parametrize(
    ("name", "told"),
    [("t5", "generates behind an encoder"), ("olmoe", "gathers tokens by expert in .*, which one file does not do")],
)
def test_what_no_file_extends_is_refused_by_name(tmp_path: Path, name: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        export_one_file(bundle_folder(name), tmp_path / "f.onnx", step=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("tiny", "outputs", "told"),
    [
        (Tiny(), (), "holds no engines that extend a sequence"),
        (Tiny(), ("embedding",), "is embedding, which is of a whole input"),
        (Tiny(head=False), (), "has no logits of every token"),
        (Tiny(masks=("full",)), (), r"sees later tokens \(full\)"),
    ],
)
def test_bundles_that_generate_nothing_are_refused_by_name(
    tmp_path: Path, tiny: Tiny, outputs: tuple[str, ...], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        export_one_file(write_tiny(tmp_path / "b", tiny), tmp_path / "f.onnx", step=True, outputs=outputs)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_file_that_computes_something_else_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        step_comparison, "relative_error", lambda found, expected: relative_error(1.01 * found, expected)
    )
    with pytest.raises(BundleError, match=r"gives last of 1 tokens that are off by 1\.0e-02"):
        export_one_file(bundle_folder("llama"), tmp_path / "f.onnx", step=True)
    assert not list(tmp_path.iterdir())
