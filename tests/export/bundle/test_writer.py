"""The bundle writer: what is in the folder."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest
import torch

from tests.export.hand_made import hand_made, reference, use_emitters
from twoheads.export import write_bundle
from twoheads.export.bundle.emitters import used_variants
from twoheads.export.bundle.engine_files import assert_static, bind_weights
from twoheads.export.bundle.weights_file import write_weights
from twoheads.graphs.errors import InternalError
from twoheads.graphs.masks.expressions import parse_mask
from twoheads.graphs.program.program import AttentionEngine, AttentionStage, Program, RelativeBias, TokenwiseEngine
from twoheads.graphs.serialization.bundle_format import (
    ALIGNMENT,
    FORMAT_VERSION,
    MANIFEST,
    WEIGHTS,
    Manifest,
    WeightEntry,
)
from twoheads.graphs.serialization.json_codec import from_json
from twoheads.runtime import load


@pytest.fixture(autouse=True)
def _hand_made_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    use_emitters(monkeypatch)


def manifest_of(bundle: Path) -> Manifest:
    return from_json(Manifest, json.loads((bundle / MANIFEST).read_text()))


def digest_of(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_manifest_lists_every_file_with_its_hash(tmp_path: Path) -> None:
    bundle = write_bundle(hand_made(), tmp_path / "bundle")
    manifest = manifest_of(bundle)
    listed = {name: entry.sha256 for name, entry in manifest.files.items()}
    assert listed == {name: digest for name, digest in digest_of(bundle).items() if name != MANIFEST}
    assert all((bundle / name).stat().st_size == entry.size for name, entry in manifest.files.items())
    assert manifest.format_version == FORMAT_VERSION
    assert manifest.producer.startswith("twoheads ")
    assert {name for name in listed if name.startswith("engines/attend")} == {
        f"engines/attend.{variant}.onnx" for variant in AttentionEngine.ALL_VARIANTS if variant != "packed"
    }
    assert from_json(Program, json.loads((bundle / "program.json").read_text())) == hand_made().program
    assert (bundle / "tokenizer" / "tokenizer.json").read_bytes() == b'{"version": "1.0"}'


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (write_bundle(hand_made(), tmp_path / name) for name in ("first", "second"))
    assert digest_of(first) == digest_of(second)


def test_a_bundle_runs_and_computes_what_was_compiled(tmp_path: Path) -> None:
    compiled = replace(hand_made(layers=3), tokenizer_json=None)
    bundle = load(write_bundle(compiled, tmp_path / "bundle"))
    for length in (1, 16, 41):
        x = np.random.default_rng(length).standard_normal((length, 8)).astype(np.float32)
        hidden = bundle.run({"x": x}, output="hidden").array
        np.testing.assert_allclose(np.asarray(hidden).reshape(length, 8), reference(compiled, x), atol=2e-6)


def test_weights_are_aligned_little_endian_and_stored_once(tmp_path: Path) -> None:
    compiled = hand_made()
    bundle = write_bundle(compiled, tmp_path / "bundle")
    entries = manifest_of(bundle).weights
    content = (bundle / WEIGHTS).read_bytes()
    assert set(entries) == set(compiled.weights)
    for name, entry in entries.items():
        assert entry.offset % ALIGNMENT == 0
        array = np.frombuffer(content, entry.dtype, int(np.prod(entry.shape)), entry.offset).reshape(entry.shape)
        np.testing.assert_array_equal(array, compiled.weights[name].numpy())
    assert entries["layers.0.in"] == entries["layers.1.in"]
    assert entries["layers.0.out"] != entries["layers.1.out"]
    assert len(content) == 3 * 8 * 8 * 4


def test_views_of_one_storage_are_told_apart_and_other_types_converted(tmp_path: Path) -> None:
    base = torch.arange(100, dtype=torch.float32)
    weights = {"head": base[:50], "tail": base[50:], "same": base[:50], "matrix": base.reshape(10, 10)}
    weights |= {"turned": weights["matrix"].T, "scalar": torch.tensor(3.0), "empty": torch.empty(0, 4)}
    weights["half"] = torch.tensor([0.5, -2.0], dtype=torch.bfloat16)
    named = [(name, tensor, "float32") for name, tensor in weights.items()]
    seen: list[int] = []
    hashes: dict[str, str] = {}
    entries, file = write_weights(tmp_path / "weights.bin", named, progress=seen.append, hashes=hashes)
    content = (tmp_path / "weights.bin").read_bytes()
    assert (file.size, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert seen[-1] == file.size
    for name, entry in entries.items():
        array = np.frombuffer(content, np.float32, weights[name].numel(), entry.offset).reshape(entry.shape)
        np.testing.assert_array_equal(array, weights[name].float().numpy())
        assert hashes[name] == hashlib.sha256(array.tobytes()).hexdigest()
    assert entries["same"] == entries["head"]
    offsets = [entries[name].offset for name in ("head", "tail", "matrix", "turned")]
    assert len(set(offsets)) == 4
    with pytest.raises(InternalError, match="int64"):
        write_weights(tmp_path / "other.bin", [("ids", torch.arange(3), "float32")], progress=seen.append)


def test_large_weights_are_hashed_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twoheads.export.bundle.weights_file.CHUNK", 100)
    tensor = torch.randn(333)
    entries, file = write_weights(tmp_path / "w.bin", [("a", tensor, "float32")], progress=lambda _: None)
    assert (tmp_path / "w.bin").read_bytes() == tensor.numpy().tobytes()
    assert entries["a"].offset == 0
    assert file.size == 333 * 4


def test_engines_open_on_their_own_with_the_first_stage_s_weights(tmp_path: Path) -> None:
    compiled = hand_made()
    bundle = write_bundle(compiled, tmp_path / "bundle")
    session = onnxruntime.InferenceSession(bundle / "engines" / "join.onnx")
    assert [i.name for i in session.get_inputs()] == ["heads"]
    heads = np.random.default_rng(0).standard_normal((1, 2, 16, 4)).astype(np.float32)
    (got,) = session.run(None, {"heads": heads})
    expected = heads.swapaxes(1, 2).reshape(16, 8) @ compiled.weights["layers.0.out"].numpy()
    np.testing.assert_allclose(np.asarray(got)[0], expected, atol=1e-5)


def test_bound_weights_replace_inputs_and_keep_the_others() -> None:
    compiled = hand_made()
    engine: Any = compiled.program.engine("project")
    model = compiled.regions["project"](engine)  # type: ignore[operator]
    bind_weights(model, {"weight": WeightEntry(128, "float32", (8, 8))})
    assert [value.name for value in model.graph.input] == ["x"]
    tensor = next(t for t in model.graph.initializer if t.name == "weight")
    facts = {entry.key: entry.value for entry in tensor.external_data}
    assert facts == {"location": "weights.bin", "offset": "128", "length": "256"}
    assert tensor.data_location == onnx.TensorProto.EXTERNAL
    with pytest.raises(InternalError, match="no weight input"):
        bind_weights(model, {"weight": WeightEntry(128, "float32", (8, 8))})
    again = compiled.regions["project"](engine)  # type: ignore[operator]
    with pytest.raises(InternalError, match="is not float32"):
        bind_weights(again, {"weight": WeightEntry(0, "float32", (4, 16))})


def test_a_dimension_that_is_not_a_number_is_our_bug() -> None:
    compiled = hand_made()
    model = compiled.regions["project"](compiled.program.engine("project"))  # type: ignore[operator]
    assert_static(model, "project")
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "n"
    with pytest.raises(InternalError, match="not static"):
        assert_static(model, "project")


def test_a_data_dependent_shape_inside_of_an_engine_is_our_bug() -> None:
    graph = onnx.parser.parse_graph(
        "g (float[4, 4] x) => (float[4] y) "
        "{ at = NonZero(x)  some = Cast<to = 1>(at)  y = ReduceMax<keepdims = 0>(x, axis) }"
    )
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([0]), "axis"))
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    with pytest.raises(InternalError, match=r"(at|some) has the shape"):
        assert_static(model, "engine")


def test_ports_that_differ_from_the_program_s_are_our_bug(tmp_path: Path) -> None:
    compiled = hand_made()
    project, *others = compiled.program.engines
    assert isinstance(project, TokenwiseEngine)
    wrong = replace(project, outputs=(replace(project.outputs[0], dtype="float16"),))
    with pytest.raises(InternalError, match="declares"):
        write_bundle(replace(compiled, program=replace(compiled.program, engines=(wrong, *others))), tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_weight_that_was_not_compiled_is_our_bug(tmp_path: Path) -> None:
    compiled = hand_made()
    weights = {name: tensor for name, tensor in compiled.weights.items() if name != "layers.1.out"}
    with pytest.raises(InternalError, match=r"layers\.1\.out"):
        write_bundle(replace(compiled, weights=weights), tmp_path / "b")


# Which variants


def variants(mask: str, *, sinks: str | None = None, bias: RelativeBias | None = None) -> set[str]:
    program = hand_made(mask=parse_mask(mask)).program
    body = tuple(replace(s, sinks=sinks, bias=bias) if isinstance(s, AttentionStage) else s for s in program.body)
    engine = program.engine("attend")
    assert isinstance(engine, AttentionEngine)
    return set(used_variants(replace(program, body=body), engine))


def test_only_the_variants_that_can_be_called_are_written() -> None:
    every = set(AttentionEngine.VARIANTS + AttentionEngine.ADD_VARIANTS)
    masked, packed = {"masked", "masked_merge"}, {"packed_causal"}
    assert variants("causal") == every | packed
    assert variants("full") == every | {"packed"}
    assert variants("causal & window(15, 0)") == masked | packed
    # A last block of one query, 16 keys after its tile's first, sees that tile in full.
    assert variants("causal & window(16, 0)") == every | packed
    assert variants("causal & window(31, 0)") == every | packed
    assert variants("causal & (window(3, 0) | sinks(5))") == masked | packed
    assert variants("causal & (window(3, 0) | sinks(16))") == every | packed
    assert variants("causal & chunk(4096)") == every | packed
    assert variants("causal | sinks(1)") == every | packed, "the first key is causal anyway"
    assert variants("causal | sinks(20)") == every | {"packed"}, "requests of at most 8 tokens"
    assert variants("window(0, 0)") == masked
    assert variants("causal", sinks="layers.0.in") == {"full_merge", "masked_merge", "full_add", "masked_add"}
    assert variants("causal", bias=RelativeBias("layers.0.in", None)) == masked | {"masked_add"}


def test_progress_counts_weights_and_engines(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []

    def progress(phase: str, done: int = 0, total: int = 0) -> None:
        seen.append((phase, done, total))

    write_bundle(hand_made(), tmp_path / "bundle", progress=progress)
    phases = list(dict.fromkeys(phase for phase, _, _ in seen))
    assert phases == ["write weights", "write engines", "write manifest", "finish"]
    assert all(0 <= done <= total for _, done, total in seen)
    assert ("write engines", 3, 3) in seen
