"""A real Ray cluster of two workers on this machine: the bits of a local run, also if one of them is killed."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import twoheads.runtime.cluster
from tests.runtime.tiny_bundle import write_tiny
from tests.runtime.tiny_model import Tiny, random_tokens
from twoheads.export.cli.app import app
from twoheads.graphs.errors import BundleError, InputError, TwoheadsError
from twoheads.runtime import load
from twoheads.runtime.cluster import Cluster, ray_workers

TINY = Tiny(layers=4, key_tile=32, masks=("causal", "causal & window(20, 0)"))
TOKENS = random_tokens(TINY, 150)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return load(write_tiny(tmp_path_factory.mktemp("ray") / "bundle", TINY), threads=1)


@pytest.fixture(scope="module")
def cluster():
    with Cluster("local:2", threads=1) as opened:
        yield opened


def test_two_workers_give_the_bits_of_one_process(cluster, bundle):
    for output in ("logits", "hidden", "last"):
        result = cluster.run(bundle, TOKENS, output=output)
        expected = bundle.run(TOKENS, output=output)
        np.testing.assert_array_equal(result.array, expected.array)
        assert result.report.engine_calls == expected.report.engine_calls
        assert (result.report.cluster.workers, result.report.cluster.lost_workers) == (2, 0)
        assert result.report.cluster.read_bytes > 0


def test_padded_batches_and_documents_run_too(cluster, bundle):
    batch = TOKENS[:90].reshape(2, 45)
    mask = np.arange(45) < np.array([[45], [7]])
    for got, want in zip(
        cluster.run(bundle, {"tokens": batch, "attention_mask": mask}, output="hidden"),
        bundle.run({"tokens": batch, "attention_mask": mask}, output="hidden", pack="off"),
        strict=True,
    ):
        np.testing.assert_array_equal(got.array, want.array)


def test_a_worker_is_killed_midway(cluster, bundle):
    expected = bundle.run(TOKENS, output="logits").array
    for share, victim in ((0.3, 0), (0.7, 1)):
        cluster.run(bundle, TOKENS[:20], output="last")  # who was lost before is there again
        assert set(cluster.processes) == {0, 1}
        process = cluster.processes[victim]

        def kill(done, total, share=share, process=process):
            if done >= share * total and Path(f"/proc/{process}").exists():
                os.kill(process, signal.SIGKILL)

        result = cluster.run(bundle, TOKENS, output="logits", progress=kill)
        np.testing.assert_array_equal(result.array, expected)
        assert result.report.cluster.lost_workers == 1
        assert set(cluster.processes) == {1 - victim}


def test_the_command_line(cluster, bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(twoheads.runtime.cluster, "Cluster", lambda address, **how: nullcontext(cluster))
    np.save(tmp_path / "tokens.npy", TOKENS)
    words = ["run", str(bundle.path), "--tokens", str(tmp_path / "tokens.npy"), "-o", str(tmp_path / "out.npz")]
    done = CliRunner().invoke(app, [*words, "--cluster", "local:2", "--output", "hidden"])
    assert done.exit_code == 0, done.output
    assert "2 workers of 1 threads" in done.output
    np.testing.assert_array_equal(np.load(tmp_path / "out.npz")["hidden"], bundle.run(TOKENS, output="hidden").array)


def test_a_bundle_that_is_damaged_where_the_worker_is(cluster, bundle, tmp_path):
    shutil.copytree(bundle.path, tmp_path / "bundle")
    other = load(tmp_path / "bundle")
    (tmp_path / "bundle" / "engines" / "first.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match=r"on the machine .*(\n.*)*same folder on every machine"):
        cluster.run(other, TOKENS)
    cluster.run(bundle, TOKENS[:5])  # and the cluster is still good


def test_what_does_not_go_together(cluster, bundle, tmp_path):
    with pytest.raises(InputError, match="is connected to a Ray cluster already"):
        Cluster("local:1")
    with pytest.raises(InputError, match="keeps values in its object store"):
        cluster.run(load(bundle.path, spill=tmp_path), TOKENS)
    with pytest.raises(InputError, match="can't take 2 inputs"):
        cluster.run(bundle, [TOKENS, TOKENS], output="hidden", sink=object())
    np.save(tmp_path / "tokens.npy", TOKENS)
    words = ["run", str(bundle.path), "--tokens", str(tmp_path / "tokens.npy"), "-o", str(tmp_path / "o.npz")]
    result = CliRunner().invoke(app, [*words, "--cluster", "local:2", "--spill", str(tmp_path)])
    assert result.exception is not None
    assert "does not go together with --spill" in f"{result.exception}{result.output}"


def test_processes_that_do_not_come_up_in_time_are_no_bug(monkeypatch):
    def slow(self, processors):
        raise Exception("The current node timed out during startup.\nSee the logs.")

    monkeypatch.setattr(ray_workers.RayWorkers, "_start", slow)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr(ray_workers.RayWorkers, "close", lambda self: None)
    with pytest.raises(TwoheadsError, match=r"can't be started: The current node timed out during startup\.$"):
        Cluster("local:2")


def test_ray_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(TwoheadsError, match=r'Ray is not installed\n  fix: pip install "twoheads\[cluster\]"'):
        Cluster("local:2")
