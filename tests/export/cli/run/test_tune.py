"""``--tune``: bundles that offer key tiles of several widths, and the commands that choose one."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from twoheads.compiler import plan_model
from twoheads.graphs.variants.key_tiles import with_key_tile
from twoheads.runtime import Job, load
from twoheads.runtime.bundle.reader import read_bundle
from twoheads.runtime.jobs.status import read_status
from twoheads.runtime.measurement import engine_meter, profiler, tuning
from twoheads.runtime.measurement.tuning_cache import Tuning


@pytest.fixture
def own(bundle, tmp_path, monkeypatch):
    """A bundle in a folder of its own, whose tuning takes no time and finds key tiles of 32 tokens."""
    monkeypatch.setattr(engine_meter, "MEASURE_SECONDS", 0.0)
    monkeypatch.setattr(profiler, "COPY_BYTES", 1 << 16)
    monkeypatch.setattr(tuning, "_measured", lambda _bundle, _backend, key, level: Tuning(key, level, 32))
    return shutil.copytree(bundle, tmp_path / "own")


@pytest.mark.parametrize("width", [32, 64])
def test_a_derived_program_is_the_one_compiled_with_that_width(tiny_llama, bundle, width):
    compiled = plan_model(tiny_llama, block_size=16, key_tile=width)
    assert str(with_key_tile(read_bundle(bundle).program, width)) == str(compiled)


def test_compile_offers_wider_tiles_unless_a_width_is_given(cli, tiny_llama, bundle, tmp_path):
    assert cli("inspect", bundle, "--json").json["other_key_tiles"] == [32, 64]
    assert "key tiles of 16 (or 32 or 64: --tune)" in cli("inspect", bundle).out
    ran = cli("compile", tiny_llama, "-o", tmp_path / "b", "--block-size", 16, "--key-tile", 16, "--no-generation")
    assert ran.code == 0, ran.err
    manifest = load(tmp_path / "b").manifest
    assert manifest.other_key_tiles == ()
    assert not [name for name in manifest.files if "tiles_" in name]


def test_only_the_own_width_is_built_for_accelerators(bundle):
    from twoheads.export.engines.jobs import engine_jobs

    jobs = [job.file for job in engine_jobs(read_bundle(bundle))]
    assert any("full" in file for file in jobs)
    assert not [file for file in jobs if "tiles_" in file]


def test_run_takes_the_tiles_that_were_found(cli, own, text, tmp_path):
    out = tmp_path / "o.npz"
    cli("run", own, "--text", text, "-o", out, "--output", "hidden")
    expected = np.load(out)["hidden"]
    assert not (tmp_path / "own.tune.json").exists()
    ran = cli("run", own, "--text", text, "-o", out, "--output", "hidden", "--tune", "quick", "--json")
    assert ran.code == 0, ran.err
    assert "key tiles of 32 tokens, by --tune quick" in ran.err
    assert ran.json["engine_calls"] == load(own, key_tile=32).schedule(36, "hidden").engine_calls
    assert ran.json["engine_calls"] < load(own).schedule(36, "hidden").engine_calls
    np.testing.assert_allclose(np.load(out)["hidden"], expected, atol=1e-5)
    assert json.loads((tmp_path / "own.tune.json").read_text())["tunings"][0]["key_tile"] == 32
    assert "slow" in cli("run", own, "--text", text, "-o", out, "--tune", "slow").err


def test_a_stopped_run_goes_on_with_its_tiles(cli, own, text, tmp_path, monkeypatch):
    out, folder = tmp_path / "o.npz", tmp_path / "job"
    finish = Job.finish
    monkeypatch.setattr(Job, "finish", lambda _job: (_ for _ in ()).throw(KeyboardInterrupt))
    cli("run", own, "--text", text, "-o", out, "--spill", folder, "--tune", "quick")
    first = np.load(out)["logits"]
    monkeypatch.setattr(Job, "finish", finish)
    assert read_status(folder).request["key_tile"] == 32
    out.unlink()
    ran = cli("resume", folder, "--json")
    assert ran.code == 0, ran.err
    np.testing.assert_array_equal(np.load(out)["logits"], first)


def test_documents_go_on_with_their_tiles(cli, own, tmp_path):
    (tmp_path / "documents.jsonl").write_text('{"input_ids": [1, 2, 3]}\n{"input_ids": [4, 5, 6, 7]}\n')
    out = tmp_path / "out"
    inputs = ("--documents", tmp_path / "documents.jsonl", "-o", out)
    ran = cli("batch", own, *inputs, "--tune", "quick")
    assert ran.code == 0, ran.err
    assert cli("resume", out).code == 0
    assert "is a job of another key tile: 32, and this run has 16" in cli("batch", own, *inputs).refused()


def test_plan_predicts_with_the_tiles_of_the_profile(cli, own, tmp_path):
    profile = tmp_path / "p.json"
    ran = cli("profile", own, "-o", profile, "--threads", 1, "--tune", "quick", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["key_tile"] == 32
    assert cli("plan", own, "--length", 100, "--device", profile, "--json").json["key_tile"] == 32
    profile.write_text(json.dumps(json.loads(profile.read_text()) | {"key_tile": 48}))
    assert "was measured on the engines of" in cli("plan", own, "--length", 100, "--device", profile).refused()


def test_bench_tells_the_tiles(cli, own):
    assert (
        cli("bench", own, "-n", 20, "--repeats", 1, "--threads", 1, "--tune", "quick", "--json").json["key_tile"] == 32
    )
