"""Verification: a right bundle passes, a bundle that is wrong in one weight or one mask position does not."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from twoheads.compiler import compile_model
from twoheads.export import VerifyReport, verify, write_bundle
from twoheads.export.engines import run_inputs as verify_input
from twoheads.export.engines.run_inputs import logits_positions
from twoheads.export.verification import noise_floor as floors
from twoheads.export.verification.check import ALLOWED
from twoheads.export.verification.noise_floor import Floor, noise_floor
from twoheads.graphs.errors import BundleError, InputError
from twoheads.graphs.masks.expressions import Causal
from twoheads.graphs.program.program import AttentionStage, Program
from twoheads.graphs.program.wiring import WIRING
from twoheads.graphs.serialization.bundle_format import MANIFEST, PROGRAM, WEIGHT_HASHES, WEIGHTS, Manifest
from twoheads.graphs.serialization.json_codec import from_json, to_json
from twoheads.runtime import LoadedBundle
from twoheads.runtime.bundle.engine_files.declared import declared_engines, declared_steps
from twoheads.runtime.bundle.weights import Weights

BLOCK, LENGTH = 32, 71

Json = dict[str, Any]


@dataclass(frozen=True)
class Compiled:
    """A model, the folder it is saved in, and its bundle."""

    module: Any
    folder: Path
    bundle: Path


def llama(**changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(7)
    settings: Json = {
        "vocab_size": 97,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    return LlamaForCausalLM(LlamaConfig(**(settings | changes))).eval()


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    folder = tmp_path_factory.mktemp("decoder")
    module: Any = llama()
    module.save_pretrained(folder / "model")
    return Compiled(
        module,
        folder / "model",
        write_bundle(compile_model(module, block_size=BLOCK), folder / "bundle", generation=False),
    )


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(8)
    config = BertConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=100,
    )
    module: Any = BertModel(config).eval()
    module.save_pretrained(folder / "model")
    return Compiled(
        module,
        folder / "model",
        write_bundle(compile_model(module, block_size=BLOCK), folder / "bundle", generation=False),
    )


def edited(bundle: Path, to: Path, file: str, edit: Callable[[bytes], bytes]) -> Path:
    """A copy of a bundle with one file changed and the manifest brought up to date: it loads without complaint."""
    shutil.copytree(bundle, to)
    content = edit((to / file).read_bytes())
    (to / file).write_bytes(content)
    manifest = json.loads((to / MANIFEST).read_text())
    manifest["files"][file].update(size=len(content), sha256=hashlib.sha256(content).hexdigest())
    if file == WEIGHTS:
        del manifest["files"][WEIGHT_HASHES]
        (to / WEIGHT_HASHES).unlink()
    (to / MANIFEST).write_text(json.dumps(manifest))
    return to


def edited_program(bundle: Path, to: Path, edit: Callable[[Program], Program]) -> Path:
    def rewrite(content: bytes) -> bytes:
        return json.dumps(to_json(edit(from_json(Program, json.loads(content))))).encode()

    return rewired(edited(bundle, to, PROGRAM, rewrite))


def rewired(bundle: Path) -> Path:
    """The bundle, whose engines of several stages say that they were made from its program: it is refused otherwise."""
    manifest = from_json(Manifest, json.loads((bundle / MANIFEST).read_text()))
    program = from_json(Program, json.loads((bundle / PROGRAM).read_text()))
    weights = Weights(bundle / WEIGHTS, manifest.weights).view
    declared = declared_engines(program, manifest, weights) | declared_steps(program, manifest, weights)
    files = json.loads((bundle / MANIFEST).read_text())
    for name in manifest.files.keys() & {name for name, engine in declared.items() if engine.wiring is not None}:
        model = onnx.load(str(bundle / name), load_external_data=False)
        onnx.helper.set_model_props(model, {WIRING: str(declared[name].wiring)})
        content = model.SerializeToString()
        (bundle / name).write_bytes(content)
        files["files"][name].update(size=len(content), sha256=hashlib.sha256(content).hexdigest())
    (bundle / MANIFEST).write_text(json.dumps(files))
    return bundle


def edited_weight(bundle: Path, to: Path, name: str, factor: float) -> Path:
    entry = json.loads((bundle / MANIFEST).read_text())["weights"][name]

    def scale(content: bytes) -> bytes:
        data = np.frombuffer(content, np.uint8).copy()
        values = data[entry["offset"] :][: int(np.prod(entry["shape"])) * 4].view(np.float32)
        values *= np.float32(factor)
        return data.tobytes()

    return edited(bundle, to, WEIGHTS, scale)


@pytest.mark.parametrize("length", [1, BLOCK - 1, BLOCK, BLOCK + 1, LENGTH])
def test_a_right_bundle_passes(decoder: Compiled, length: int) -> None:
    report = verify(decoder.bundle, decoder.folder, length=length)
    assert report.passed, report
    assert [check.output for check in report.proof] == ["hidden", "logits"]
    assert all(check.passed for check in report.proof)
    assert report.top1_agreement == 1.0
    assert (report.length, report.block_size) == (length, BLOCK)
    assert report.to_json()["positions_checked"] == length
    assert report.calls.engine_calls == report.calls.formula_calls > 0
    assert 0 < report.worst.max_abs_error <= ALLOWED * report.worst.noise_floor
    assert report.worst.ratio == max(check.ratio for check in report.proof)
    assert report.worst.noise_floor >= 2e-7 * report.worst.max_magnitude
    assert set(report.seconds) == {"original", "original_plain", "ours"}
    assert from_json(VerifyReport, json.loads(json.dumps(to_json(report), allow_nan=False))) == report


def test_logits_that_do_not_fit_are_compared_at_some_positions(
    decoder: Compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_input, "ALL_LOGITS_BYTES", 1000)
    monkeypatch.setattr(verify_input, "SPREAD", 20)
    report = verify(decoder.bundle, decoder.folder, length=LENGTH)
    assert report.passed, report
    assert 20 <= report.check("logits").positions < 26
    assert report.check().positions == LENGTH
    name = next(n for n in json.loads((decoder.bundle / MANIFEST).read_text())["weights"] if "lm_head" in n)
    assert not verify(edited_weight(decoder.bundle, tmp_path / "b", name, 1.001), decoder.module, length=LENGTH).passed


def test_the_report_says_that_the_trained_context_ends_before(decoder: Compiled) -> None:
    assert verify(decoder.bundle, decoder.module, length=60).warnings == ()
    assert "64" in verify(decoder.bundle, decoder.module, length=LENGTH).warnings[0]


def test_an_embedding_is_not_asked_to_be_more_exact_than_the_hidden_states(
    encoder: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wide_of_many_rows(one: Any, other: Any) -> Floor:
        floor = noise_floor(one, other)
        return floor if len(one) == 1 else replace(floor, value=100 * floor.value)

    monkeypatch.setattr(floors, "noise_floor", wide_of_many_rows)
    report = verify(encoder.bundle, encoder.folder, length=LENGTH)
    embedding = report.check("embedding")
    inherited = report.check().noise_floor / report.check().max_magnitude * embedding.max_magnitude
    assert embedding.noise_floor == pytest.approx(inherited)


def test_an_encoder_s_embedding_is_compared_too(encoder: Compiled) -> None:
    report = verify(encoder.bundle, encoder.folder, length=LENGTH)
    assert report.passed, report
    assert [check.output for check in report.proof] == ["hidden", "embedding"]
    assert report.top1_agreement is None
    with pytest.raises(InputError, match="100"):
        verify(encoder.bundle, encoder.folder, length=101)


# What is wrong must not pass


def test_one_weight_that_is_one_in_a_thousand_off_fails(decoder: Compiled, tmp_path: Path) -> None:
    name = next(n for n in json.loads((decoder.bundle / MANIFEST).read_text())["weights"] if "layers.1.mlp.up" in n)
    report = verify(edited_weight(decoder.bundle, tmp_path / "b", name, 1.001), decoder.module, length=LENGTH)
    assert not report.passed
    assert not report.check().passed
    assert report.worst.ratio > ALLOWED


def test_a_wrong_head_fails_although_the_hidden_states_pass(decoder: Compiled, tmp_path: Path) -> None:
    name = next(n for n in json.loads((decoder.bundle / MANIFEST).read_text())["weights"] if "lm_head" in n)
    report = verify(edited_weight(decoder.bundle, tmp_path / "b", name, 1.001), decoder.module, length=LENGTH)
    assert report.check().passed
    assert not report.passed
    assert report.worst.output == "logits"
    assert report.top1_agreement == 1.0  # a factor keeps the order: agreement alone would have passed


@pytest.mark.parametrize("mask", [f"causal & window({LENGTH - 2}, 0)", "window(-1, 1)"])
@pytest.mark.parametrize("layer", [0, 2])
def test_a_mask_that_is_one_position_off_fails(decoder: Compiled, tmp_path: Path, mask: str, layer: int) -> None:
    """The first mask hides one single key from one single query: the first token from the last one."""
    from twoheads.graphs.masks.expressions import parse_mask

    def narrow(program: Program) -> Program:
        attentions = [stage.name for stage in program.body if isinstance(stage, AttentionStage)]
        assert all(stage.mask == Causal() for stage in program.body if isinstance(stage, AttentionStage))
        body = tuple(
            replace(stage, mask=parse_mask(mask))
            if isinstance(stage, AttentionStage) and stage.name == attentions[layer]
            else stage
            for stage in program.body
        )
        return replace(program, body=body)

    wrong = edited_program(decoder.bundle, tmp_path / "b", narrow)
    assert not verify(wrong, decoder.module, length=LENGTH).passed


def test_another_pooling_fails_although_the_hidden_states_pass(encoder: Compiled, tmp_path: Path) -> None:
    def first_token(program: Program) -> Program:
        assert program.pooling is not None
        return replace(program, pooling=replace(program.pooling, mode="cls"))

    report = verify(edited_program(encoder.bundle, tmp_path / "b", first_token), encoder.module, length=LENGTH)
    assert report.check().passed
    assert not report.passed


def test_other_weights_of_the_same_shapes_fail(decoder: Compiled) -> None:
    other: Any = llama()
    torch.manual_seed(9)
    for parameter in other.parameters():
        parameter.data += 1e-3 * torch.randn_like(parameter)
    assert not verify(decoder.bundle, other, length=LENGTH).passed


def test_calls_that_are_not_the_formula_s_fail(decoder: Compiled, monkeypatch: pytest.MonkeyPatch) -> None:
    run = LoadedBundle.run

    def miscounted(self: LoadedBundle, *arguments: Any, **named: Any) -> Any:
        result = cast("Any", run)(self, *arguments, **named)
        extra = 1 if named["output"] == "hidden" else 0
        return replace(result, report=replace(result.report, engine_calls=result.report.engine_calls + extra))

    monkeypatch.setattr(LoadedBundle, "run", miscounted)
    report = verify(decoder.bundle, decoder.module, length=LENGTH)
    assert report.check().passed
    assert not report.passed


# What does not belong together is refused


def test_a_source_of_another_shape_or_architecture_is_refused(decoder: Compiled, encoder: Compiled) -> None:
    with pytest.raises(InputError, match="another configuration"):
        verify(decoder.bundle, llama(num_hidden_layers=2), length=LENGTH)
    with pytest.raises(InputError, match="another configuration"):
        verify(decoder.bundle, llama(rope_parameters={"rope_type": "default", "rope_theta": 5000.0}), length=LENGTH)
    with pytest.raises(InputError, match="is a BertModel, the bundle holds a LlamaForCausalLM"):
        verify(decoder.bundle, encoder.folder, length=LENGTH)


def test_a_damaged_bundle_and_a_missing_one_are_refused(decoder: Compiled, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(decoder.bundle, damaged)
    with (damaged / WEIGHTS).open("r+b") as file:
        file.write(b"\1\2\3")
    with pytest.raises(BundleError, match="altered"):
        verify(damaged, decoder.module, length=1)
    with pytest.raises(BundleError, match="does not exist"):
        verify(tmp_path / "none", decoder.module, length=1)


@pytest.mark.parametrize("length", [0, -1])
def test_lengths_that_are_none_are_refused(decoder: Compiled, length: int) -> None:
    with pytest.raises(InputError, match="length"):
        verify(decoder.bundle, decoder.module, length=length)


# The input


def test_given_tokens_are_used_and_must_be_enough(decoder: Compiled) -> None:
    tokens = np.arange(97, dtype=np.int64)
    ramp = verify(decoder.bundle, decoder.module, length=50, tokens=tokens)
    assert ramp.passed
    assert verify(decoder.bundle, decoder.module, length=50, tokens=tokens[None]).worst == ramp.worst
    assert verify(decoder.bundle, decoder.module, length=50).worst != ramp.worst
    with pytest.raises(InputError, match=r"98 tokens .* has 97"):
        verify(decoder.bundle, decoder.module, length=98, tokens=tokens)
    with pytest.raises(InputError, match="both"):
        verify(decoder.bundle, decoder.module, length=5, tokens=tokens, text="words")
    with pytest.raises(InputError, match="97"):
        verify(decoder.bundle, decoder.module, length=5, tokens=tokens + 95)


def test_text_is_read_by_the_bundle_s_tokenizer(tiny_llama: Path, decoder: Compiled, tmp_path: Path) -> None:
    bundle = write_bundle(compile_model(tiny_llama, block_size=16), tmp_path / "bundle", generation=False)
    assert verify(bundle, tiny_llama, length=6, text="the cat sat on a mat").passed
    assert verify(bundle, tiny_llama, length=40).passed
    with pytest.raises(InputError, match=r"7 tokens .* has 6"):
        verify(bundle, tiny_llama, length=7, text="the cat sat on a mat")
    with pytest.raises(InputError, match="no tokenizer"):
        verify(decoder.bundle, decoder.module, length=2, text="the cat sat on a mat")


class Words:
    """A tokenizer with a token a word, numbered by its letters."""

    def encode(self, text: str) -> list[int]:
        return [len(word) for word in text.split()]


def fake_bundle(decoder: Compiled, tokenizer: object) -> LoadedBundle:
    program = from_json(Program, json.loads((decoder.bundle / PROGRAM).read_text()))
    return cast("LoadedBundle", SimpleNamespace(program=program, tokenizer=tokenizer, path=decoder.bundle))


def test_the_default_input_is_the_same_every_time(decoder: Compiled) -> None:
    bare, reader = fake_bundle(decoder, None), fake_bundle(decoder, Words())
    random = verify_input.verify_input(bare, 500, text=None, tokens=None)
    assert random.shape == (500,)
    assert 0 <= random.min() <= random.max() < 97
    np.testing.assert_array_equal(random, verify_input.verify_input(bare, 500, text=None, tokens=None))
    words = verify_input.verify_input(reader, 300, text=None, tokens=None)
    np.testing.assert_array_equal(words, verify_input.verify_input(reader, 400, text=None, tokens=None)[:300])
    assert not np.array_equal(words, random[:300])
    too_long = verify_input.verify_input(reader, 10_000_000, text=None, tokens=None)
    np.testing.assert_array_equal(too_long[:500], random)


def test_all_logits_are_compared_where_they_fit() -> None:
    assert logits_positions(8192, 32768, 256) is None
    some = logits_positions(8193, 32768, 256)
    assert some is not None
    assert (some[0], some[-1]) == (0, 8192)
    assert len(some) >= 256
    assert np.all(np.diff(some) > 0)
    assert {255, 256, 4095, 4096, 8191} <= set(some.tolist())
    long = logits_positions(1_000_000, 262_144, 16)
    assert long is not None
    assert 256 <= len(long) <= 1024
    one = logits_positions(1, 1 << 30, 16)
    assert one is not None
    assert one.tolist() == [0]
