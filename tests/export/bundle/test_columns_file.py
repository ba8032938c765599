"""A bundle's head in pieces of columns gives the bits of the whole one; heads whose columns depend have no pieces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from tests.export.small_decoder import small_decoder
from tests.runtime.cluster.in_process import InProcess
from tests.runtime.cluster.test_executor import run
from twoheads.export import write_bundle
from twoheads.export.bundle.columns_file import write_columns
from twoheads.export.emit.tokenwise import emit_tokenwise
from twoheads.graphs.program.program import Program, TokenwiseEngine
from twoheads.graphs.schedule import head_columns
from twoheads.graphs.schedule.schedule import Schedule
from twoheads.graphs.serialization.bundle_format import WeightEntry
from twoheads.runtime import Job, LoadedBundle, load
from twoheads.runtime.bundle.engine_files.declared import declared_engines
from twoheads.runtime.bundle.reader import read_bundle
from twoheads.runtime.stages.head import run_head

FILE = "engines/head_columns.onnx"
TOKENS = np.random.default_rng(0).integers(0, 97, 71)
PIECES, BLOCKS = 7, 3


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_columns, "COLUMNS", 16)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(head_columns, "COLUMNS", 16)
        return write_bundle(small_decoder().model, tmp_path_factory.mktemp("columns") / "bundle", generation=False)


@pytest.fixture
def limited(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedBundle:
    """The bundle as a limit has it that its head does not fit; that of so small a model always does."""

    def chosen(program: Program, columns: Program, make: Callable[[Program], Schedule], **how: Any) -> Schedule:
        return make(program if how["limit"] is None else columns)

    monkeypatch.setattr("twoheads.runtime.runs.run_context.limited_schedule", chosen)
    return load(bundle, memory_limit=10**10)


@pytest.mark.parametrize("asked", ["last", "logits", "some"])
def test_pieces_give_the_bits_of_the_whole(bundle: Path, limited: LoadedBundle, asked: str) -> None:
    output, positions = ("logits", [70, 3, 3]) if asked == "some" else (asked, None)
    whole = load(bundle).run(TOKENS, output=output, positions=positions)
    pieces = limited.run(TOKENS, output=output, positions=positions)
    np.testing.assert_array_equal(pieces.array, whole.array)
    assert pieces.report.engine_calls == pieces.report.formula_calls
    blocks = BLOCKS if asked == "logits" else 1
    assert [stage.calls for stage in pieces.report.stages][-1] == blocks * PIECES


def test_a_streamed_head_begins_without_the_memory_of_earlier_values(
    limited: LoadedBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    spare: list[int] = []

    def seen(run: Any, *how: Any) -> Any:
        spare.append(run.engines.memory.nbytes)
        return run_head(run, *how)

    monkeypatch.setattr("twoheads.runtime.runs.host_executor.run_head", seen)
    limited.run(TOKENS, output="logits")
    limited.memory_limit = limited.schedule(len(TOKENS), "logits").memory.total - 1
    limited.run(TOKENS, output="logits")
    assert spare[0] > spare[1] == 0


def test_a_job_writes_rows_of_all_columns(bundle: Path, limited: LoadedBundle, tmp_path: Path) -> None:
    with Job(tmp_path / "job") as job:
        found = limited.run_job(job, TOKENS, output="logits")
    np.testing.assert_array_equal(found.array, load(bundle).run(TOKENS, output="logits").array)


def test_workers_of_a_cluster_compute_pieces(bundle: Path, limited: LoadedBundle) -> None:
    _, found, report, told = run(limited, InProcess(bundle, 2, limited=True), TOKENS, "logits")
    np.testing.assert_array_equal(found, load(bundle).run(TOKENS, output="logits").array)
    assert (report.engine_calls, told.recomputed_calls) == (report.formula_calls, 0)
    assert [stage.calls for stage in report.stages][-1] == BLOCKS * PIECES


def test_the_file_is_declared_with_the_first_rows_of_its_weight(bundle: Path) -> None:
    read = read_bundle(bundle)
    assert read.columns is not None
    (name,) = read.program.head[0].weights
    declared = declared_engines(read.program, read.manifest, read.open_weights().view)[FILE]
    assert list(declared.weights.values()) == [replace(read.manifest.weights[name], shape=(16, 64))]


def test_a_softmax_over_all_classes_has_no_pieces(tmp_path: Path) -> None:
    compiled = small_decoder().model
    program = compiled.program
    model = emit_tokenwise(compiled.regions["head"], program.engine_of(TokenwiseEngine, "head"))
    (tmp_path / "engines").mkdir()
    entries = {name: WeightEntry(0, "float32", (97, 64)) for name in program.head[0].weights}
    (scores,) = model.graph.output
    model.graph.node[-1].output[0] = "scores"
    model.graph.node.append(helper.make_node("Softmax", ["scores"], [scores.name], axis=-1))
    write_columns(program, {"head": model}, tmp_path, entries)
    assert not (tmp_path / FILE).exists()
