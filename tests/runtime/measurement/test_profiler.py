"""Profiles of tiny bundles, and that a run calls what the prediction counts."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.tiny_bundle import make_program, write_tiny
from tests.runtime.tiny_model import Tiny, random_tokens
from twoheads.graphs.costs.variant_counts import sums_up, variant_counts
from twoheads.graphs.errors import InputError
from twoheads.graphs.prediction.device_profile import profile_text, read_profile
from twoheads.graphs.prediction.one_machine import predict_run
from twoheads.graphs.program.program import AttentionEngine, AttentionStage, StockEngine
from twoheads.runtime import load
from twoheads.runtime.backends.onnxruntime_cpu import OnnxRuntimeCall, OnnxRuntimeEngine
from twoheads.runtime.execution.engine_pool import EnginePool
from twoheads.runtime.measurement import engine_meter, profiler
from twoheads.runtime.measurement.profiler import machine_text, profile_bundle


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_meter, "MEASURE_SECONDS", 0.0)
    monkeypatch.setattr(profiler, "COPY_BYTES", 1 << 16)


def test_every_engine_file_is_measured(tmp_path: Path) -> None:
    bundle = load(write_tiny(tmp_path / "b", Tiny()))
    seen: list[str] = []
    profile = profile_bundle(tmp_path / "b", threads=2, price_per_hour=2.5, progress=seen.append)
    named = {f"{times.engine}.{times.variant}".rstrip(".") for times in profile.engines}
    files = {Path(name).stem for name in bundle.manifest.files if name.endswith(".onnx")}
    assert set(seen) == named | {"sampled attention"}
    assert named == {name for name in files if "packed" not in name}
    assert profile.threads == (1, 2)
    assert profile.price_per_hour == 2.5
    assert profile.machine == machine_text()
    (tmp_path / "profile.json").write_text(profile_text(profile), encoding="utf-8")
    assert read_profile(tmp_path / "profile.json") == profile
    profile.check_program(bundle.program, "here.json")
    assert predict_run(bundle.schedule(100), profile, 2).seconds > 0


def test_backends_are_refused_as_in_a_run(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "b", Tiny(layers=1))
    with pytest.raises(InputError, match="precision: is bf16"):
        profile_bundle(path, precision="bf16")


def test_one_thread_is_measured_once(tmp_path: Path) -> None:
    profile = profile_bundle(write_tiny(tmp_path / "b", Tiny(layers=1)), threads=1)
    assert profile.threads == (1,)


@pytest.mark.parametrize(
    "tiny",
    [
        Tiny(masks=("causal", "full", "window(5, 30)"), key_tile=48),
        Tiny(masks=("causal & (window(17, 0) | sinks(3))",)),
        Tiny(sinks=True, softcap=4.0),
        Tiny(slope=True, sharpness=1.5),
    ],
)
@pytest.mark.parametrize("length", [10, 150])
def test_a_run_calls_the_variants_that_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Tiny, length: int
) -> None:
    called, variants, lock = Counter[str](), dict[int, str](), threading.Lock()
    attention, begin, run = EnginePool.attention, OnnxRuntimeCall.__init__, OnnxRuntimeCall.run

    def opened(pool: EnginePool, name: str, variant: str) -> Any:
        handle = attention(pool, name, variant)
        variants[id(handle)] = variant
        return handle

    def begun(call: Any, engine: OnnxRuntimeEngine) -> None:
        begin(call, engine)
        call.variant = variants.get(id(engine), "")

    def counted(call: Any) -> None:
        with lock:
            called[call.variant] += 1
        run(call)

    monkeypatch.setattr(EnginePool, "attention", opened)
    monkeypatch.setattr(OnnxRuntimeCall, "__init__", begun)
    monkeypatch.setattr(OnnxRuntimeCall, "run", counted)
    bundle = load(write_tiny(tmp_path / "b", tiny), threads=2)
    bundle.run(random_tokens(tiny, length), output="hidden")
    schedule, expected = bundle.schedule(length, "hidden"), Counter[str]()
    engine = bundle.program.engine("attention")
    assert isinstance(engine, AttentionEngine)
    for stage in bundle.program.body:
        if isinstance(stage, AttentionStage):
            adds = sums_up(stage, engine, lambda variant: f"engines/attention.{variant}.onnx" in bundle.manifest.files)
            counts = variant_counts(stage, [row for _, row in schedule.rows(stage)], adds=adds)
            expected.update({variant: int(count.sum()) for variant, count in counts.items()})
    called.pop("")
    assert called == expected


def test_other_lowerings_are_refused(tmp_path: Path) -> None:
    tiny = Tiny(layers=1)
    program = make_program(tiny)
    stock = StockEngine("attention", 4, 2, tiny.head_dim, tiny.head_dim, 16, 16, 1.0, 0, 1, "float32")
    engines = tuple(stock if engine.name == "attention" else engine for engine in program.engines)
    write_tiny(tmp_path / "b", tiny, program=replace(program, engines=engines))
    with pytest.raises(InputError, match=r"StockEngine attention.*\n  fix: compile it with --lowering tile"):
        profile_bundle(tmp_path / "b")
