"""One file of a model beside the model itself in NumPy: every kind of mask, bias and axis, at any length.

The tiny models' norms make NaN of padding, so any leak of padding into real tokens shows.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.killed import Forks, forks
from tests.runtime.axes_models import WIDTH, Model, classifier, convolution, counted_positions, encoder_decoder, image
from tests.runtime.scan_models import SCANS, ScanModel
from tests.runtime.tiny_bundle import make_program, read_manifest, rehash, write_manifest, write_tiny
from tests.runtime.tiny_model import Tiny, random_tokens, reference
from tests.tiers import cases
from twoheads.compiler.lowering.stock import lower_stock
from twoheads.compiler.lowering.tile import Lowered
from twoheads.export.engines.tensor_error import relative_error
from twoheads.export.one_file import comparison as check_module
from twoheads.export.one_file.comparison import open_file
from twoheads.export.one_file.export import export_one_file
from twoheads.graphs.errors import BundleError, CompileError, InputError
from twoheads.graphs.masks.sampling import Average
from twoheads.graphs.program.program import AttentionStage, Limit, Pooling, Program

TOLERANCE = 5e-5  # float32 against float64 through three layers; a leak of padding or a wrong tile is above 1e-2

MODELS = {
    "causal": Tiny(),
    "encoder": Tiny(masks=("full",), pooling=Pooling("mean", True)),
    "windows": Tiny(masks=("causal & window(20, 0)", "causal", "window(7, 9)")),
    "window sinks": Tiny(masks=("causal & (window(17, 0) | sinks(3))",), kv_heads=1),
    "chunks": Tiny(masks=("causal & chunk(24)", "chunk(10)")),
    "wide tiles": Tiny(key_tile=48, masks=("causal", "full", "window(5, 30)")),
    "learned sinks": Tiny(sinks=True, softcap=4.0),
    "learned sinks, wide tiles": Tiny(sinks=True, key_tile=32, masks=("window(11, 0)",)),
    "relative bias": Tiny(table_reach=6, masks=("full", "causal")),
    "slopes": Tiny(slope=True, masks=("causal", "full")),
    "both, wide": Tiny(slope=True, table_reach=30, sinks=True, key_tile=64, masks=("causal & window(40, 0)",)),
    "features": Tiny(features=True, head=False),
    "scores of thousands": Tiny(sharpness=40.0),
}

Session = tuple[Tiny, Any]


def outputs_of(tiny: Tiny) -> tuple[str, ...]:
    return ("hidden", *(("logits", "last") if tiny.head else ()), *(("embedding",) if tiny.pooling else ()))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Session]:
    root = tmp_path_factory.mktemp("files")
    made: dict[str, Session] = {}
    for at, (name, tiny) in enumerate(MODELS.items()):
        bundle = write_tiny(root / f"{at}.bundle", tiny)
        exported = export_one_file(bundle, root / f"{at}.onnx", outputs=outputs_of(tiny))
        made[name] = tiny, open_file(exported.file)
    return made


def compare(found: Any, expected: Any, tolerance: float = TOLERANCE) -> None:
    assert found.dtype == np.float32
    assert found.shape == (1, *expected.shape)
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=tolerance * max(1, np.abs(expected).max()))


def check(tiny: Tiny, session: Any, length: int, seed: int = 1) -> None:
    tokens = random_tokens(tiny, length, seed)
    found = dict(zip(outputs_of(tiny), session.run(None, {"tokens": tokens[None]}), strict=True))
    expected = reference(tiny, tokens)
    if tiny.head:
        expected["last"] = expected["logits"][-1:]
    for output, array in found.items():
        compare(array, expected[output], 2e-3 if tiny.sharpness > 10 else TOLERANCE)


@pytest.mark.repeated
@settings(max_examples=cases(10, 60), deadline=None)
@given(name=st.sampled_from(sorted(MODELS)), length=st.integers(1, 80), seed=st.integers(0, 3))
def test_any_length_is_the_whole_model(files: dict[str, Session], name: str, length: int, seed: int) -> None:
    check(*files[name], length, seed)


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("length", [1, 15, 16, 17, 40, 200])
def test_every_model_at_the_borders_of_blocks(files: dict[str, Session], name: str, length: int) -> None:
    check(*files[name], length)


def axes_file(tmp_path: Path, model: Model, outputs: tuple[str, ...]) -> tuple[Any, tuple[str, ...]]:
    model.load(tmp_path / "bundle")
    return open_file(export_one_file(tmp_path / "bundle", tmp_path / "f.onnx", outputs=outputs).file), outputs


def run_axes(model: Model, file: tuple[Any, tuple[str, ...]], **inputs: Any) -> None:
    session, outputs = file
    found = session.run(list(outputs), {name: array[None] for name, array in inputs.items()})
    expected: Mapping[str, Any] = model.expected(inputs)
    for output, array in zip(outputs, found, strict=True):
        compare(array, expected[output])


@pytest.mark.parametrize("key_tile", [8, 16])
def test_scans_hand_their_states_on(tmp_path: Path, key_tile: int) -> None:
    """Of every operator, beside attention; the models' norms make NaN of padding."""
    model = ScanModel(("gated_delta_rule", "attention", *SCANS), key_tile)
    file = axes_file(tmp_path, model, ("hidden",))
    for length in (1, 7, 8, 9, 40):
        features = np.random.default_rng(length).standard_normal((length, WIDTH)).astype(np.float32)
        run_axes(model, file, features=features)


@pytest.mark.parametrize("key_tile", [8, 16])
@pytest.mark.parametrize("pool", ["first", "last", "mean", "max", "min", "sum", "take_at"])
def test_a_row_before_the_tokens_and_a_pooled_classifier(tmp_path: Path, pool: str, key_tile: int) -> None:
    model = classifier(pool, key_tile)
    file = axes_file(tmp_path, model, ("logits", "hidden"))
    random = np.random.default_rng(0)
    for length in (1, 7, 8, 20):
        inputs: dict[str, Any] = {"features": random.standard_normal((length, WIDTH)).astype(np.float32)}
        if pool == "take_at":
            inputs["ids"] = random.integers(0, 30, length)
        run_axes(model, file, **inputs)


def test_rows_of_a_convolution_counted_positions_and_attention_to_another_axis(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for at, model in enumerate((convolution(), counted_positions(), encoder_decoder())):
        (tmp_path / str(at)).mkdir()
        file = axes_file(tmp_path / str(at), model, ("hidden",))
        for length, other in ((2, 19), (8, 1), (21, 30)):
            features = random.standard_normal((length, WIDTH)).astype(np.float32)
            source = random.standard_normal((other, WIDTH)).astype(np.float32)
            inputs = ({"features": features}, {"ids": random.integers(0, 30, length)}, {"source": source})[at]
            run_axes(model, file, **inputs, **({"target": features} if at == 2 else {}))


def test_the_file_holds_fixed_shape_engines_as_functions_and_says_what_it_is(tmp_path: Path) -> None:
    bundle = write_tiny(tmp_path / "b", Tiny(key_tile=32))
    model = onnx.load(export_one_file(bundle, tmp_path / "f.onnx").file)
    names = {function.name for function in model.functions}
    assert {"first", "mid", "last", "norm", "lm", "attention.full_merge", "attention.masked_add"} <= names
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 18, "twoheads": 1}
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert (facts["twoheads.block_size"], facts["twoheads.key_tile"]) == ("16", "32")
    calls = [node.op_type for node in model.graph.node if node.op_type in ("Scan", "Loop")]
    assert calls == ["Scan", "Loop"] * 3 + ["Scan"] * 3


def test_weights_beside_the_file_are_stored_once_and_give_the_same_numbers(tmp_path: Path) -> None:
    tiny = Tiny()
    bundle = write_tiny(tmp_path / "b", tiny)
    inside = export_one_file(bundle, tmp_path / "inside.onnx")
    beside = export_one_file(bundle, tmp_path / "beside.onnx", weights="beside")
    assert inside.weights is None
    assert beside.weights is not None
    assert beside.weights == tmp_path / "beside.onnx.data"
    assert beside.file.stat().st_size + beside.weights.stat().st_size < inside.file.stat().st_size + 20_000
    tokens = random_tokens(tiny, 37)[None]
    first, second = (open_file(made.file).run(None, {"tokens": tokens})[0] for made in (inside, beside))
    np.testing.assert_array_equal(first, second)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "beside.onnx", "beside.onnx.data", "inside.onnx"]


def test_files_share_the_weights_beside_them(tmp_path: Path) -> None:
    bundle, other = write_tiny(tmp_path / "b", Tiny()), write_tiny(tmp_path / "other", Tiny(seed=1))
    first = export_one_file(bundle, tmp_path / "first.onnx", weights="beside").weights
    assert first is not None
    before = first.stat()
    second = export_one_file(bundle, tmp_path / "second.onnx", outputs=("last",), weights_file=first.name)
    assert second.weights == first
    assert (first.stat().st_ino, first.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    session = open_file(second.file)
    assert session.run(None, {"tokens": random_tokens(Tiny(), 20)[None]})[0].shape[1] == 1
    for wrong, outputs in ((other, ("last",)), (bundle, ("hidden",))):  # other numbers; without the head's
        with pytest.raises(InputError, match="does not hold just this model's weights"):
            export_one_file(wrong, tmp_path / "third.onnx", outputs=outputs, weights_file=first.name)
    assert first.stat().st_mtime_ns == before.st_mtime_ns
    assert not (tmp_path / "third.onnx").exists()


KILLED = """
import os, signal, sys
from twoheads.export.one_file.export import export_one_file
bundle, file, moment = arguments
count = 0
def die(event, arguments):
    global count
    count += event == "os.rename"
    if event == "os.rename" and count == int(moment):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(die)
export_one_file(bundle, file, weights="beside", overwrite=True)
"""


@pytest.fixture(scope="module")
def killed() -> Iterator[Forks]:
    """Programs that write such files and kill themselves."""
    with forks("import twoheads.export.one_file.export") as made:
        yield made


@pytest.mark.parametrize("moment", [1, 2])
def test_a_kill_never_leaves_a_model_with_the_weights_of_another(tmp_path: Path, moment: int, killed: Forks) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    file = folder / "m.onnx"
    other, bundle = write_tiny(tmp_path / "other", Tiny(seed=1)), write_tiny(tmp_path / "b", Tiny())
    export_one_file(other, file, weights="beside")
    assert killed(KILLED, bundle, file, moment) == -signal.SIGKILL
    assert not file.exists()
    export_one_file(bundle, file, weights="beside", overwrite=True)
    assert sorted(path.name for path in folder.iterdir()) == ["m.onnx", "m.onnx.data"]


def test_equal_bundles_give_equal_bytes(tmp_path: Path) -> None:
    first, second = (
        export_one_file(write_tiny(tmp_path / f"b{at}", Tiny()), tmp_path / f"{at}.onnx").file for at in range(2)
    )
    assert first.read_bytes() == second.read_bytes()


def test_a_host_that_gives_what_the_model_does_not_take_stops_by_name(tmp_path: Path) -> None:
    tiny = Tiny(max_length=Limit(40, "its table of 40 rows"))
    session = open_file(export_one_file(write_tiny(tmp_path / "b", tiny), tmp_path / "f.onnx").file)
    tokens = random_tokens(tiny, 41)[None]
    session.run(None, {"tokens": tokens[:, :40]})
    for wrong, told in (
        (tokens, "the model takes 40 tokens at most: its table of 40 rows"),
        (tokens[:, :0], "input tokens is empty"),
        (np.full((1, 3), -1), "input tokens holds a number below 0"),
        (np.full((1, 3), tiny.vocabulary), f"input tokens holds a number above {tiny.vocabulary - 1}"),
    ):
        with pytest.raises(Exception, match=told):
            session.run(None, {"tokens": wrong})


def test_arguments_of_one_axis_must_have_one_length(tmp_path: Path) -> None:
    model = classifier("take_at")
    session, _ = axes_file(tmp_path, model, ("logits",))
    features = np.zeros((1, 9, WIDTH), np.float32)
    with pytest.raises(Exception, match="does not have n rows"):
        session.run(None, {"features": features, "ids": np.zeros((1, 8), np.int64)})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"outputs": ("embedding",)}, "does not give 'embedding'"),
        ({"outputs": ("hidden", "hidden")}, "names an output twice"),
        ({"key_tile": 24}, "is 24"),
        ({"weights": "outside"}, "is 'outside'"),
        ({"weights_file": "../f.data"}, r"--weights-file: is '../f.data'"),
        ({"weights_file": "f.onnx"}, r"--weights-file: is 'f.onnx'"),
        ({"weights_file": "f.data", "weights": "inside"}, "is of no use to weights inside"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(tmp_path: Path, change: Any, told: str) -> None:
    bundle = write_tiny(tmp_path / "b", Tiny())
    with pytest.raises(InputError, match=told):
        export_one_file(bundle, tmp_path / "f.onnx", **change)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_files_that_are_there_stay_unless_told(tmp_path: Path) -> None:
    bundle = write_tiny(tmp_path / "b", Tiny())
    for name in ("f.onnx", "f.onnx.data"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(InputError, match="exists already"):
            export_one_file(bundle, tmp_path / "f.onnx", weights="beside")
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()
    (tmp_path / "f.onnx").write_text("mine")
    export_one_file(bundle, tmp_path / "f.onnx", overwrite=True)
    onnx.checker.check_model(str(tmp_path / "f.onnx"))


def test_a_file_that_computes_something_else_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_tiny(tmp_path / "b", Tiny())
    monkeypatch.setattr(check_module, "relative_error", lambda found, expected: relative_error(1.01 * found, expected))
    with pytest.raises(BundleError, match=r"gives logits of 1 tokens that are off by 1\.0e-02"):
        export_one_file(bundle, tmp_path / "f.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def sampled(program: Program) -> Program:
    average = Average(samples=1, window=None, sinks=0, seed=0)
    body = (replace(stage, average=average) if isinstance(stage, AttentionStage) else stage for stage in program.body)
    return replace(program, body=tuple(body))


def stock(program: Program) -> Program:
    return lower_stock(Lowered(program, {})).program


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (sampled, r"samples keys in attention0 .* one file draws no random numbers"),
        (stock, r"has attention of the stock lowering in attention0"),
    ],
)
def test_attention_that_no_file_holds_is_refused_by_name(tmp_path: Path, change: Any, told: str) -> None:
    bundle = write_tiny(tmp_path / "b", Tiny(), program=change(make_program(Tiny())))
    with pytest.raises(InputError, match=told):
        export_one_file(bundle, tmp_path / "f.onnx")


def test_half_precision_and_inputs_of_one_size_are_refused_by_name(tmp_path: Path) -> None:
    image().load(tmp_path / "image")
    with pytest.raises(InputError, match="takes inputs of one size"):
        export_one_file(tmp_path / "image", tmp_path / "f.onnx")
    bundle = write_tiny(tmp_path / "b", Tiny())
    write_manifest(bundle, read_manifest(bundle) | {"dtype": "float16"})
    with pytest.raises(InputError, match="has float16 values"):
        export_one_file(bundle, tmp_path / "f.onnx")


def test_an_operator_of_another_set_that_can_not_be_expressed_is_refused_by_name(tmp_path: Path) -> None:
    bundle = write_tiny(tmp_path / "b", Tiny())
    model = onnx.load(bundle / "engines" / "last.onnx", load_external_data=False)
    model.graph.node[0].op_type = "StringSplit"
    del model.graph.node[0].attribute[:]
    (bundle / "engines" / "last.onnx").write_bytes(model.SerializeToString())
    rehash(bundle, "engines/last.onnx")
    with pytest.raises(CompileError, match=r"engines/last.onnx: uses operators of version 20 that version 18"):
        export_one_file(bundle, tmp_path / "f.onnx")
