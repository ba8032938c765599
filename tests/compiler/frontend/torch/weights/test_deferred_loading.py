"""Models whose weights stay in their files are the library's own: the same names, numbers, buffers and bundles."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM, modeling_utils
from transformers.integrations.gguf.reader import LazyGgufTensor

from tests.tiers import with_long
from twoheads.compiler import compile_model
from twoheads.compiler.frontend.torch.capture import capture
from twoheads.compiler.frontend.torch.load_source import load_source
from twoheads.compiler.frontend.torch.weights import deferred_loading as deferring
from twoheads.compiler.frontend.torch.weights import gguf_tensors
from twoheads.compiler.frontend.torch.weights.stored_tensor import StoredTensor, read_tensor
from twoheads.compiler.ir.source_program import example_inputs
from twoheads.compiler.original.prove_capture import prove_capture
from twoheads.export import quantise_weights, write_bundle
from twoheads.graphs.errors import CompileError

SIZES: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}

EXPERTS = 5


@pytest.fixture(autouse=True)
def _small_ones_stay_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deferring, "SMALL", 40)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of bfloat16 weights in two files, its head tied to the embedding."""
    folder = tmp_path_factory.mktemp("deferred") / "llama"
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)).bfloat16()
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Experts, whose matrices the library stacks while it loads them."""
    folder = tmp_path_factory.mktemp("deferred") / "mixtral"
    torch.manual_seed(0)
    MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same sizes as a GGUF file, in blocks of 8 bits and in halves."""
    path = tmp_path_factory.mktemp("deferred") / "llama.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    _write_gguf(writer, _gguf_tensors())
    return path


@pytest.fixture(scope="module")
def experts_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 MoE, whose experts a GGUF file stacks: gates and ups apart, which the library joins."""
    path = tmp_path_factory.mktemp("deferred") / "experts.gguf"
    writer = gguf.GGUFWriter(path, "qwen3moe")
    writer.add_key_length(8)
    writer.add_value_length(8)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(2)
    inner, outer = (EXPERTS, 768, 32), (EXPERTS, 32, 768)  # the library reads no width of experts
    stacks = {"ffn_gate_exps": inner, "ffn_up_exps": inner, "ffn_down_exps": outer, "ffn_gate_inp": (EXPERTS, 32)}
    every = stacks | {"attn_q_norm": (8,), "attn_k_norm": (8,)}
    more = [(f"blk.{layer}.{name}.weight", shape) for layer in range(2) for name, shape in every.items()]
    dense = ("ffn_gate.", "ffn_up.", "ffn_down.")
    _write_gguf(writer, [*(entry for entry in _gguf_tensors() if not any(part in entry[0] for part in dense)), *more])
    return path


def _write_gguf(writer: gguf.GGUFWriter, tensors: Iterable[tuple[str, tuple[int, ...]]]) -> None:
    writer.add_name("tiny")
    writer.add_vocab_size(SIZES["vocab_size"])
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"word{number}" for number in range(SIZES["vocab_size"])])
    writer.add_token_scores([0.5] * SIZES["vocab_size"])
    writer.add_token_types([1] * SIZES["vocab_size"])
    generator = np.random.default_rng(0)
    for at, (name, shape) in enumerate(tensors):
        numbers = generator.standard_normal(shape, np.float32) * 0.1 + (len(shape) == 1)
        if len(shape) == 1:
            writer.add_tensor(name, numbers)
        elif at % 3 == 0:
            writer.add_tensor(name, numbers.astype(np.float16))
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(numbers, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf_tensors() -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "token_embd.weight", (48, 32)
    for layer in range(2):
        for name, shape in (
            ("attn_norm", (32,)),
            ("attn_q", (32, 32)),
            ("attn_k", (16, 32)),
            ("attn_v", (16, 32)),
            ("attn_output", (32, 32)),
            ("ffn_norm", (32,)),
            ("ffn_gate", (64, 32)),
            ("ffn_up", (64, 32)),
            ("ffn_down", (32, 64)),
        ):
            yield f"blk.{layer}.{name}.weight", shape
    yield "output_norm.weight", (32,)
    yield "output.weight", (48, 32)


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return dict(module.named_parameters()) | dict(module.named_buffers())


@pytest.mark.parametrize("name", ["llama", "mixtral", "llama_gguf", "experts_gguf"])
def test_the_model_is_the_one_that_the_library_loads(name: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(name)
    found, expected = load_source(path, deferred=True), load_source(path)
    mine, own = _tensors(found.module), _tensors(expected.module)
    assert list(mine) == list(own)
    assert not any(isinstance(tensor, StoredTensor) for tensor in own.values())
    large = {key for key, tensor in own.items() if tensor.is_floating_point() and tensor.numel() > deferring.SMALL}
    assert {key for key, tensor in mine.items() if isinstance(tensor, StoredTensor)} == large
    assert len(large) >= 12
    for key, tensor in mine.items():
        assert tensor.dtype == own[key].dtype
        for _ in range(2):  # a file is read again and again
            assert torch.equal(read_tensor(tensor), own[key]), key
    assert (found.identity, found.missing_weights) == (expected.identity, expected.missing_weights)
    assert found.generation_json == expected.generation_json


@pytest.mark.parametrize(
    ("name", "weights"),
    with_long(
        [("llama", "int4"), ("mixtral", None), ("llama_gguf", "int8")],
        [("llama", "int4"), ("llama_gguf", "int8")],
        "test_experts_are_read_one_by_one",
    ),
)
def test_the_bundle_is_the_same_to_the_bit(
    name: str, weights: str | None, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path: Path = request.getfixturevalue(name)
    hashes: list[dict[str, str]] = []
    for small in (40, 1 << 40):
        monkeypatch.setattr(deferring, "SMALL", small)
        compiled = compile_model(path, block_size=16)
        stored = [name for name, weight in compiled.weights.items() if isinstance(weight, StoredTensor)]
        assert bool(stored) == (small == 40)
        compiled = quantise_weights(compiled, weights) if weights else compiled
        bundle = write_bundle(compiled, tmp_path / str(small), generation=False)
        hashes.append({str(p.relative_to(bundle)): _sha256(p) for p in bundle.rglob("*") if p.is_file()})
    assert hashes[0] == hashes[1]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_no_file_stays_mapped(llama: Path) -> None:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("there is no /proc")
    found = load_source(llama, deferred=True)
    for tensor in found.module.parameters():
        read_tensor(tensor).sum()
    assert str(llama) not in maps.read_text()


def test_a_capture_of_other_weights_is_refused(llama: Path) -> None:
    loaded = load_source(llama, deferred=True)
    captured = capture(loaded)
    prove_capture(loaded, captured)
    name = "model.layers.1.mlp.down_proj.weight"
    stored = captured.program.weights[name]
    wrong = StoredTensor(stored.shape, stored.dtype, lambda: stored.read() * 1.01)
    program = captured.program.with_weights({name: wrong})  # type: ignore[attr-defined]
    with pytest.raises(CompileError, match="computes something else than its captured graph"):
        prove_capture(loaded, type(captured)(captured.graph, program, captured.identity))


def test_evaluations_on_several_inputs_read_each_weight_once(llama: Path) -> None:
    captured = capture(load_source(llama, deferred=True))
    program, name = captured.program, captured.graph.hidden
    read: list[str] = []

    def counted(name: str, weight: Any) -> StoredTensor:
        def numbers() -> torch.Tensor:
            read.append(name)
            found: torch.Tensor = weight.read()
            return found

        return StoredTensor(weight.shape, weight.dtype, numbers)

    stored = {name: weight for name, weight in program.weights.items() if isinstance(weight, StoredTensor)}
    watched = program.with_weights({name: counted(name, weight) for name, weight in stored.items()})  # type: ignore[attr-defined]
    runs = [example_inputs(program.inputs, {"n": 5}, seed) for seed in (1, 2)]
    found = watched.evaluate_each([name], runs)
    assert sorted(read) == sorted(set(read)) != []
    for given, values in zip(runs, found, strict=True):
        np.testing.assert_array_equal(values[name], program.evaluate([name], given)[name])


def test_a_number_that_is_none_is_named(llama: Path, tmp_path: Path) -> None:
    for file in llama.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for path in tmp_path.glob("*.safetensors"):
        tensors = load_file(path)
        for name in tensors:
            if name == "model.layers.0.mlp.up_proj.weight":
                tensors[name][3, 5] = float("nan")
        save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CompileError, match=r"up_proj.weight.*first at \[3, 5\]"):
        compile_model(tmp_path, block_size=16)


def test_tensors_of_blocks_are_read_from_a_mapping_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "file"
    numbers = np.random.default_rng(0).integers(0, 256, 4 + 34 * 6, np.uint8)
    path.write_bytes(numbers.tobytes())
    data = np.memmap(path, np.uint8, "r")[4:]
    blocks = deferring._Blocks(path, LazyGgufTensor(data, 8, (6, 34)))
    found = blocks[...]
    assert isinstance(found, StoredTensor)
    assert np.array_equal(found.read().numpy(), numbers[4:].reshape(6, 34))


def test_a_header_is_read_once_and_by_plain_arrays(llama_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[type[np.ndarray[Any, Any]]] = []
    made = gguf.GGUFReader._build_fields

    def noted(self: Any, *arguments: Any) -> int:
        seen.append(type(self.data))
        return made(self, *arguments)

    monkeypatch.setattr(gguf.GGUFReader, "_build_fields", noted)
    reader = gguf.GGUFReader
    with deferring.deferred_loading():
        from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

        first, second = (load_gguf_checkpoint(str(llama_gguf)) for _ in range(2))
    assert seen == [np.ndarray]
    assert gguf.GGUFReader is reader
    assert first == second == load_gguf_checkpoint(str(llama_gguf))
    first["config"].clear()
    assert second["config"], "what one caller changes is not another's"


def test_a_library_without_these_functions_loads_as_ever(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library: Any = modeling_utils
    original = library.safe_open
    with deferring.deferred_loading():
        assert library.safe_open is not original
    assert library.safe_open is original
    monkeypatch.setattr("twoheads.compiler.frontend.torch.load_source.deferred_loading", nullcontext)
    assert not any(isinstance(p, StoredTensor) for p in load_source(llama, deferred=True).module.parameters())


def test_of_experts_in_a_gguf_file_one_is_expanded(
    experts_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the model is loaded two, whose numbers tell that each is made of its own part."""
    expanded: list[tuple[int, ...]] = []

    def noted(data: Any, kind: Any) -> Any:
        found = gguf_tensors_expanded(data, kind)
        expanded.append(found.shape)
        return found

    gguf_tensors_expanded = gguf_tensors.expanded
    monkeypatch.setattr(gguf_tensors, "expanded", noted)
    compiled = compile_model(experts_gguf, block_size=16, experts="grouped")
    stacks = [weight for weight in compiled.weights.values() if isinstance(weight, StoredTensor) and weight.ndim == 3]
    assert len(stacks) == 4
    for stack in stacks:
        assert torch.equal(torch.stack([stack.part(number) for number in range(EXPERTS)]), stack.read())
    expanded.clear()
    write_bundle(quantise_weights(compiled, "int8"), tmp_path / "bundle", generation=False)
    assert {shape[0] for shape in expanded if len(shape) == 3} == {1}


def test_no_block_is_expanded_to_learn_a_shape(llama_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def noted(data: Any, kind: Any) -> Any:
        found = expanded(data, kind)
        sizes.append(found.size)
        return found

    expanded = gguf_tensors.expanded
    monkeypatch.setattr(gguf_tensors, "expanded", noted)
    load_source(llama_gguf, deferred=True)
    assert sizes
    assert max(sizes) <= deferring.SMALL


def test_a_stack_whose_entries_are_not_made_alone_is_read_whole(
    experts_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = gguf_tensors._File.tensors

    def reversed_stacks(self: Any, *arguments: Any, **how: Any) -> dict[str, torch.Tensor]:
        return {name: tensor.flip(0) for name, tensor in made(self, *arguments, **how).items()}

    monkeypatch.setattr(gguf_tensors._File, "tensors", reversed_stacks)
    stacks = [tensor for tensor in load_source(experts_gguf, deferred=True).module.parameters() if tensor.ndim == 3]
    assert len(stacks) == 4
    assert not any(stack.stacked for stack in stacks if isinstance(stack, StoredTensor))


@pytest.mark.parametrize(
    ("experts", "stacked"),
    with_long(
        [("grouped", False), ("grouped", True), ("dense", False), ("dense", True)],
        [("grouped", True), ("dense", False)],
    ),
)
def test_experts_are_read_one_by_one(
    mixtral: Path, stacked: bool, experts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a file has them apart, as published models do, or stacked: no more than one expert's matrix is read."""
    path = mixtral
    if stacked:
        path = tmp_path / "stacked"
        path.mkdir()
        model = MixtralForCausalLM.from_pretrained(mixtral)
        save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, path / "model.safetensors")
        (path / "config.json").write_bytes((mixtral / "config.json").read_bytes())
    read: list[torch.Size] = []
    for name in ("read", "part"):
        monkeypatch.setattr(StoredTensor, name, _noted(getattr(StoredTensor, name), read))
    compiled = compile_model(path, block_size=16, experts=experts)
    stacks = [weight for weight in compiled.weights.values() if isinstance(weight, StoredTensor) and weight.ndim == 3]
    assert len(stacks) == 4
    assert all(stack.stacked for stack in stacks)
    write_bundle(quantise_weights(compiled, "int8"), tmp_path / "bundle", generation=False)
    assert read
    whole = [shape for shape in read if len(shape) == 3]
    assert not whole if experts == "grouped" else len(whole) <= 4, "the dense engines' one stack is written whole"


def _noted(original: Any, read: list[torch.Size]) -> Any:
    def noted(self: StoredTensor, *arguments: Any) -> torch.Tensor:
        found: torch.Tensor = original(self, *arguments)
        read.append(found.shape)
        return found

    return noted
