"""Key tiles of other widths: the same program, the same results; what tuning measures, keeps and believes."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.runtime.cluster.in_process import InProcess
from tests.runtime.runs.test_session import TOLERANCE
from tests.runtime.tiny_bundle import make_program, read_manifest, rehash, write_manifest, write_tiny
from tests.runtime.tiny_model import Tiny, random_tokens, reference
from tests.tiers import cases
from twoheads.graphs.errors import BundleError, InputError
from twoheads.graphs.masks.sampling import Average
from twoheads.graphs.program.program import AttentionEngine, AttentionStage, Pooling, StockEngine
from twoheads.graphs.variants.key_tiles import other_key_tiles, with_key_tile
from twoheads.runtime import Job, LoadedBundle, load
from twoheads.runtime.cluster.executor import ClusterExecutor
from twoheads.runtime.inputs.requests import read_inputs
from twoheads.runtime.measurement import engine_meter, profiler, tuning
from twoheads.runtime.measurement.engine_meter import EngineMeter
from twoheads.runtime.measurement.profiler import profile_bundle
from twoheads.runtime.runs.execute import run_inputs

WIDTHS = (16, 32, 64)
MODELS = {
    "causal": Tiny(),
    "encoder": Tiny(masks=("full",), pooling=Pooling("mean", True)),
    "windows": Tiny(masks=("causal & window(20, 0)", "causal", "window(7, 9)")),
    "chunks and sinks": Tiny(masks=("causal & chunk(24)", "causal & (window(17, 0) | sinks(3))"), sinks=True),
    "biases": Tiny(slope=True, table_reach=30, masks=("causal & window(40, 0)", "full")),
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    return tmp_path / "home" / ".cache" / "twoheads"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, home: Path) -> list[int]:
    """The widths that were measured, which takes next to no time; wider tiles are the faster ones, by what they say."""
    widths: list[int] = []
    monkeypatch.setattr(profiler, "COPY_BYTES", 1 << 16)
    monkeypatch.setattr(
        tuning,
        "EFFORTS",
        {name: replace(effort, seconds=0.0, rounds=1, lengths=(200,)) for name, effort in tuning.EFFORTS.items()},
    )
    attention = EngineMeter.attention

    def faster(meter, engine):
        widths.append(engine.key_tile)
        for times in attention(meter, engine):
            yield replace(times, call_seconds=dict.fromkeys(times.call_seconds, 1 / engine.key_tile))

    monkeypatch.setattr(EngineMeter, "attention", faster)
    return widths


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "b", Tiny(), other_key_tiles=WIDTHS[1:])


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], LoadedBundle]:
    root = tmp_path_factory.mktemp("bundles")
    for at, tiny in enumerate(MODELS.values()):
        write_tiny(root / str(at), tiny, other_key_tiles=WIDTHS[1:])
    return {
        (name, width): load(root / str(at), threads=2, key_tile=width)
        for at, name in enumerate(MODELS)
        for width in WIDTHS
    }


@pytest.mark.parametrize("width", [16, 32, 48, 64])
@pytest.mark.parametrize("name", MODELS)
def test_a_derived_program_is_the_one_made_with_that_width(name: str, width: int) -> None:
    made = make_program(replace(MODELS[name], key_tile=width))
    derived = with_key_tile(make_program(MODELS[name]), width)
    assert str(derived) == str(made)
    assert derived == made
    assert with_key_tile(derived, width) is derived


def test_widths_are_offered_where_results_agree() -> None:
    program = make_program(Tiny())
    assert other_key_tiles(program) == (32, 64)
    assert other_key_tiles(make_program(Tiny(key_tile=32))) == (64,)
    sampled = [
        replace(stage, average=Average(2, 16, 4, 0)) if isinstance(stage, AttentionStage) else stage
        for stage in program.body
    ]
    assert other_key_tiles(replace(program, body=tuple(sampled))) == ()
    engine = next(engine for engine in program.engines if isinstance(engine, AttentionEngine))
    stock = StockEngine("attention", 4, 2, engine.head_dim, engine.head_dim, 16, 16, 1.0, 0, 1, "float32")
    engines = tuple(stock if other is engine else other for other in program.engines)
    assert other_key_tiles(replace(program, engines=engines)) == ()


@pytest.mark.repeated
@settings(max_examples=cases(12, 30), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(sorted(MODELS)), width=st.sampled_from(WIDTHS), length=st.integers(1, 150))
def test_every_width_equals_the_whole_model(bundles, name: str, width: int, length: int) -> None:
    bundle, tokens = bundles[name, width], random_tokens(MODELS[name], length)
    assert bundle.program.key_tile == width
    result = bundle.run(tokens, output="hidden")
    np.testing.assert_allclose(result.array, reference(MODELS[name], tokens)["hidden"], rtol=0, atol=TOLERANCE)
    report = result.report
    assert report.engine_calls - report.repeated_calls == report.formula_calls


def test_wider_tiles_are_fewer_calls(bundles) -> None:
    calls = [bundles["encoder", width].schedule(256).engine_calls for width in WIDTHS]
    assert calls == sorted(calls, reverse=True)
    assert len(set(calls)) == 3


def test_requests_share_blocks_at_any_width(bundles) -> None:
    tokens = [random_tokens(MODELS["causal"], length, seed=length) for length in (5, 7, 20, 3)]
    for width in WIDTHS:
        for result, given_tokens in zip(bundles["causal", width].run(tokens, "hidden"), tokens, strict=True):
            wanted = reference(MODELS["causal"], given_tokens)["hidden"]
            np.testing.assert_allclose(result.array, wanted, rtol=0, atol=TOLERANCE)


def test_what_is_chosen_is_kept_beside_the_bundle(path: Path, measured: list[int]) -> None:
    assert load(path, tune="quick", threads=2).program.key_tile == 64
    assert measured == [16, 32, 64]
    kept = path.with_name("b.tune.json").read_bytes()
    assert load(path, tune="quick", threads=2).program.key_tile == 64
    assert measured == [16, 32, 64]
    load(path, tune="full", threads=2)  # was not measured so thoroughly
    load(path, tune="quick", threads=1)  # nor with one thread
    assert len(measured) == 9
    load(path, tune="quick", threads=2)
    load(path, tune="full", threads=2)
    assert len(measured) == 9
    assert path.with_name("b.tune.json").read_bytes() != kept


def test_the_own_width_stays_where_nothing_is_gained(
    path: Path, measured: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "WORTH_IT", 0.0)
    assert load(path, tune="quick").program.key_tile == 16
    assert measured


def test_off_neither_reads_nor_writes(path: Path, measured: list[int]) -> None:
    cache = path.with_name("b.tune.json")
    assert load(path).program.key_tile == 16
    assert not cache.exists()
    load(path, tune="quick")
    before = cache.read_bytes(), len(measured)
    assert load(path).program.key_tile == 16
    assert (cache.read_bytes(), len(measured)) == before


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"version": 1}', b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_file_is_measured_again(path: Path, measured: list[int], caplog, content: bytes) -> None:
    cache = path.with_name("b.tune.json")
    cache.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert load(path, tune="quick").program.key_tile == 64
    assert "can't be read, so it counts for nothing" in caplog.text
    assert len(measured) == 3
    assert json.loads(cache.read_text())["tunings"][0]["key_tile"] == 64


@pytest.mark.parametrize("entry", ["manifest", "machine", "backend", "precision", "threads", "key_tile", "version"])
def test_what_was_found_elsewhere_is_measured_again(path: Path, measured: list[int], entry: str) -> None:
    cache = path.with_name("b.tune.json")
    load(path, tune="quick", threads=2)
    data = json.loads(cache.read_text())
    held = data["tunings"][0]
    others = {"threads": 3, "key_tile": 48, "version": 2}
    place = data if entry == "version" else held if entry == "key_tile" else held["key"]
    place[entry] = others.get(entry, "another")
    cache.write_text(json.dumps(data))
    assert load(path, tune="quick", threads=2).program.key_tile == 64
    assert len(measured) == 6
    load(path, tune="quick", threads=2)
    assert len(measured) == 6


def test_a_new_bundle_in_the_same_place_is_measured_again(path: Path, measured: list[int]) -> None:
    load(path, tune="quick")
    manifest = read_manifest(path)
    write_manifest(path, manifest | {"producer": "another"})
    load(path, tune="quick")
    assert len(measured) == 6
    assert len(json.loads(path.with_name("b.tune.json").read_text())["tunings"]) == 1


def test_where_the_folder_cannot_be_written_the_users_cache_is(path: Path, measured: list[int], home: Path) -> None:
    path.with_name("b.tune.json").mkdir()  # a folder in its place: root, too, can't write a file there
    assert load(path, tune="quick").program.key_tile == 64
    (kept,) = home.iterdir()
    assert kept.name.startswith("b-")
    load(path, tune="quick")
    assert len(measured) == 3
    assert not list(path.parent.glob("*.partial"))


def test_where_nothing_can_be_written_it_is_measured_every_time(path: Path, measured: list[int], home: Path) -> None:
    path.with_name("b.tune.json").mkdir()
    home.parent.parent.write_text("not a folder")
    assert load(path, tune="quick").program.key_tile == 64
    assert load(path, tune="quick").program.key_tile == 64
    assert len(measured) == 6


def test_one_width_is_not_measured(tmp_path: Path, measured: list[int]) -> None:
    assert load(write_tiny(tmp_path / "one", Tiny()), tune="full").program.key_tile == 16
    assert not measured
    assert not (tmp_path / "one.tune.json").exists()


def test_it_is_measured_with_a_clock(path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler, "COPY_BYTES", 1 << 16)
    monkeypatch.setattr(tuning, "EFFORTS", {"quick": tuning.Effort(0.02, 2, 2, (64, 200))})
    bundle = load(path, tune="quick", threads=2)
    assert bundle.program.key_tile in WIDTHS
    tokens = random_tokens(Tiny(), 90)
    wanted = reference(Tiny(), tokens)["hidden"]
    array = bundle.run(tokens, "hidden").array
    assert array is not None
    np.testing.assert_allclose(array, wanted, rtol=0, atol=TOLERANCE)


def test_profiles_are_of_one_width(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler, "COPY_BYTES", 1 << 16)
    monkeypatch.setattr(engine_meter, "MEASURE_SECONDS", 0.0)
    profile = profile_bundle(path, threads=1, key_tile=32)
    profile.check_program(load(path, key_tile=32).program, "p")
    with pytest.raises(InputError, match="key tiles of 32, not of tiny"):
        profile.check_program(load(path).program, "p")


def test_a_job_goes_on_with_the_same_width_only(path: Path, tmp_path: Path) -> None:
    tokens = random_tokens(Tiny(), 40)
    with Job(tmp_path / "job") as job:
        load(path, key_tile=32).run_job(job, tokens, "hidden")
    with (
        Job(tmp_path / "job", resume=True) as job,
        pytest.raises(InputError, match="a job of another key tile: 32, and this run has 16"),
    ):
        load(path).run_job(job, tokens, "hidden")


def test_workers_of_a_cluster_take_the_drivers_width(path: Path) -> None:
    bundle, tokens = load(path, key_tile=64), random_tokens(Tiny(), 100)
    cluster = InProcess(path, 2, key_tile=64)
    executor = ClusterExecutor(cluster, set(cluster.alive), 2)
    (result,) = run_inputs(bundle, executor, read_inputs(bundle.program, tokens, output="hidden"))
    np.testing.assert_array_equal(result.array, bundle.run(tokens, "hidden").array)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"tune": "slow"}, "tune: is 'slow'.*off, quick, full"),
        ({"key_tile": 48}, "key_tile: is 48, and .* offers 16, 32, 64"),
        ({"key_tile": 32, "tune": "quick"}, "there is nothing to tune"),
    ],
)
def test_bad_options_are_refused(path: Path, options, problem: str) -> None:
    with pytest.raises(InputError, match=f"(?s){problem}"):
        load(path, **options)


@pytest.mark.parametrize(
    ("widths", "problem"),
    [
        ([24], "can't have key tiles of 24"),
        ([16], "of 16"),
        ([32, 32], "of 32"),
        ([128], "no file for key tiles of 128"),
    ],
)
def test_widths_that_the_bundle_cannot_have_are_refused(path: Path, widths: list[int], problem: str) -> None:
    write_manifest(path, read_manifest(path) | {"other_key_tiles": widths})
    with pytest.raises(BundleError, match=problem):
        load(path)


def test_engines_of_other_widths_are_checked_like_all_files(path: Path) -> None:
    file = path / "engines" / "tiles_32" / "attention.full.onnx"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(BundleError, match="altered"):
        load(path)
    rehash(path, "engines/tiles_32/attention.full.onnx")
    load(path)
