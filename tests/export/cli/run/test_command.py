"""``twoheads run`` on a tiny model: what it writes, warns of and refuses."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest


def test_run_writes_what_is_asked_for(cli, bundle, text, tmp_path):
    out = tmp_path / "o.npz"
    ran = cli("run", bundle, "--text", text, "-o", out, "--report", tmp_path / "r.json", "--json")
    assert ran.code == 0, ran.err
    logits = np.load(out)["logits"]
    assert logits.shape == (36, 16)
    assert logits.dtype == np.float32
    report = json.loads((tmp_path / "r.json").read_text())
    assert report == ran.json
    plan = cli("plan", bundle, "--length", 36, "--json").json
    assert report["engine_calls"] == plan["engine_calls"] == plan["formula_calls"]
    assert report["rounds"] == plan["rounds"]
    assert {"seconds", "peak_bytes", "stages", "formula_calls"} <= report.keys()

    cli("run", bundle, "--text", text, "-o", out, "--output", "last")
    np.testing.assert_array_equal(np.load(out)["logits"], logits[-1:])
    cli("run", bundle, "--text", text, "-o", out, "--positions", "0,5,10:12,-1")
    np.testing.assert_allclose(np.load(out)["logits"], logits[[0, 5, 10, 11, 35]], atol=1e-6)
    assert np.load(out)["positions"].tolist() == [0, 5, 10, 11, 35]
    cli("run", bundle, "--text", text, "-o", out, "--output", "hidden")
    hidden = np.load(out)["hidden"]
    assert hidden.shape == (36, 32)
    cli("run", bundle, "--text", text, "-o", out, "--output", "hidden", "--positions", "-1,3")
    np.testing.assert_array_equal(np.load(out)["hidden"], hidden[[35, 3]])


def test_run_tells_what_it_spills_and_refuses_what_does_not_fit(cli, bundle, text, tmp_path):
    out, folder = tmp_path / "o.npz", tmp_path / "spill"
    plain = cli("run", bundle, "--text", text, "-o", out)
    assert "nothing is spilled" not in plain.err
    expected = np.load(out)["logits"]
    ran = cli("run", bundle, "--text", text, "-o", out, "--memory-limit", "2GB")
    assert "of the 2 GB allowed; nothing is spilled" in ran.err
    np.testing.assert_array_equal(np.load(out)["logits"], expected)
    out.unlink()
    ran = cli("run", bundle, "--text", text, "-o", out, "--memory-limit", "1.5 MiB")
    assert ran.code == 1
    assert "memory limit 1.6 MB: the run of 36 tokens needs" in ran.err
    assert not out.exists()
    assert "can't be written" in cli("run", bundle, "--text", text, "-o", out, "--spill", folder / "deeper").err
    assert "is not a size" in cli("run", bundle, "--text", text, "-o", out, "--memory-limit", "much").err


def test_run_resumes_what_was_stopped_and_tells_its_status(cli, bundle, text, tmp_path, monkeypatch):
    from twoheads.runtime import Job

    out, folder, original = tmp_path / "o.npz", tmp_path / "job", Job.write_journal
    cli("run", bundle, "--text", text, "-o", tmp_path / "plain.npz", "--positions", "3,-1")

    def full(job, content):
        if len(content["finished_stages"]) == 3:
            raise OSError(28, "No space left on device")
        original(job, content)

    monkeypatch.setattr(Job, "write_journal", full)
    stopped = cli("run", bundle, "--text", text, "-o", out, "--spill", folder, "--positions", "3,-1")
    assert stopped.code == 1, stopped.err
    assert "No space left" in stopped.err
    monkeypatch.undo()
    assert not out.exists()
    assert "unfinished job" in cli("run", bundle, "--text", text, "-o", out, "--spill", folder).err
    assert cli("status", folder, "--json").json["state"] == "stopped"
    told = cli("status", folder)
    for words in ("stopped, ", "2 stages: ", str(text), f"twoheads resume {folder}"):
        assert words in told.out.replace("\n", ""), words
    content = text.read_bytes()
    text.write_bytes(content + b"!")
    assert "is the input of this job, and has changed" in cli("resume", folder).err
    text.unlink()
    assert "is the input of this job, and can't be read: No such file" in cli("resume", folder).err
    text.write_bytes(content)
    resumed = cli("resume", folder)
    assert resumed.code == 0, resumed.err
    for name in ("logits", "positions"):
        np.testing.assert_array_equal(np.load(out)[name], np.load(tmp_path / "plain.npz")[name])
    status = cli("status", folder, "--json").json
    assert status["state"] == "finished"
    assert status["calls"] == status["total"] > 0
    assert "last checkpoint" not in cli("status", folder).out
    assert "is finished" in cli("resume", folder).err
    assert not list(tmp_path.glob(".*.partial")), "what was finished leaves nothing behind"
    assert "holds no job" in cli("status", tmp_path).err
    assert "Missing argument 'BUNDLE'" in " ".join(cli("run", "--text", text, "-o", out).err.split())


def test_plan_tells_what_a_limit_spills(cli, bundle):
    words = ("plan", bundle, "--length", 60, "--output", "hidden", "--threads", 1)
    needs = cli(*words, "--json").json["peak_bytes"]
    fits = cli(*words, "--memory-limit", needs, "--json").json["spill"]
    assert fits == {"limit": needs, "values": [], "disk_bytes": 0, "peak_bytes": needs}
    assert "nothing is spilled" in cli(*words, "--memory-limit", "1GB").out
    refused = cli(*words, "--memory-limit", "1MB")
    assert refused.code == 1
    assert "nothing can be spilled" in refused.err


def test_run_takes_tokens_as_it_takes_text(cli, bundle, text, tmp_path):
    from tokenizers import Tokenizer

    tokens = Tokenizer.from_file(str(bundle / "tokenizer" / "tokenizer.json")).encode(text.read_text()).ids
    cli("run", bundle, "--text", text, "-o", tmp_path / "text.npz")
    arrays: tuple[np.ndarray, ...] = (np.array(tokens, np.int32), np.array([tokens], np.uint16))
    for at, array in enumerate(arrays):
        np.save(tmp_path / "t.npy", array)
        ran = cli("run", bundle, "--tokens", tmp_path / "t.npy", "-o", tmp_path / f"{at}.npz", "--threads", 1)
        assert ran.code == 0, ran.err
        assert "engine calls" in ran.out
        np.testing.assert_array_equal(
            np.load(tmp_path / f"{at}.npz")["logits"], np.load(tmp_path / "text.npz")["logits"]
        )


def test_run_beyond_the_trained_length_warns_and_runs(cli, bundle, tmp_path):
    np.save(tmp_path / "t.npy", np.ones(65, np.int64))
    ran = cli("run", bundle, "--tokens", tmp_path / "t.npy", "-o", tmp_path / "o.npz", "--json")
    assert ran.code == 0
    assert ran.err.count("warning: ") == 1
    assert "64" in ran.err
    assert len(ran.json["warnings"]) == 1


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([1, 99]), "99"),
        (np.array([1, -1]), "-1"),
        (np.array([], np.int64), ""),
        (np.array([0.5, 1.0]), "float64"),
        (np.ones((2, 3), np.int64), "[2, 3]"),
        (np.array([{}]), "not a .npy file"),
    ],
)
def test_run_refuses_bad_tokens(cli, bundle, tmp_path, array, expected):
    np.save(tmp_path / "t.npy", array, allow_pickle=True)
    assert expected in cli("run", bundle, "--tokens", tmp_path / "t.npy", "-o", tmp_path / "o.npz").refused()
    assert [path.name for path in tmp_path.iterdir()] == ["t.npy"]


def test_run_refuses_bad_files(cli, bundle, text, tmp_path):
    out = tmp_path / "o.npz"
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"caf\xe9 au lait")
    assert "offset 3" in cli("run", bundle, "--text", latin, "-o", out).refused()
    latin.write_bytes(b" \n")
    assert "empty" in cli("run", bundle, "--text", latin, "-o", out).refused()
    assert "not a .npy file" in cli("run", bundle, "--tokens", latin, "-o", out).refused()
    assert "no such file" in cli("run", bundle, "--text", tmp_path / "none", "-o", out).refused()
    assert "can't be read" in cli("run", bundle, "--text", tmp_path, "-o", out).refused()
    assert "no input" in cli("run", bundle, "-o", out).refused()
    assert "two inputs" in cli("run", bundle, "--text", text, "--tokens", text, "-o", out).refused()
    assert "no such folder" in cli("run", bundle, "--text", text, "-o", tmp_path / "no" / "o.npz").refused()
    assert "is a folder" in cli("run", bundle, "--text", text, "-o", tmp_path).refused()
    assert "no such folder" in cli("run", bundle, "--text", text, "-o", out, "--report", tmp_path / "n" / "r").refused()
    assert "--positions" in cli("run", bundle, "--text", text, "-o", out, "--positions", "40").refused()
    assert (
        "--positions" in cli("run", bundle, "--text", text, "-o", out, "--positions", "0", "--output", "last").refused()
    )
    assert "embedding" in cli("run", bundle, "--text", text, "-o", out, "--output", "embedding").refused()
    assert not out.exists()


def test_a_full_disk_is_told(cli, bundle, text, tmp_path, monkeypatch):
    report = tmp_path / "r.json"

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("twoheads.runtime.memory.new_file.os.fsync", full)
    assert "No space left on device" in cli("run", bundle, "--text", text, "-o", tmp_path / "o.npz").refused()
    monkeypatch.undo()
    monkeypatch.setattr("twoheads.export.cli.shared.run_report.replacing", _full_disk)
    ran = cli("run", bundle, "--text", text, "-o", tmp_path / "o.npz", "--report", report)
    assert "No space left on device" in ran.refused()
    assert not report.exists()
    assert not list(tmp_path.glob(".*.partial"))


@contextlib.contextmanager
def _full_disk(_path):
    raise OSError(28, "No space left on device")
    yield


def test_outputs_replace_nothing_but_outputs(cli, bundle, text, tmp_path):
    """Devices became files, links were replaced, and a bundle's manifest was overwritten."""
    os.mkfifo(tmp_path / "pipe")
    out, inside = tmp_path / "o.npz", bundle / "manifest.json"
    before = inside.read_bytes()
    run = ("run", bundle, "--text", text)
    assert "is a device" in cli(*run, "-o", "/dev/null").refused()
    assert "is a pipe" in cli(*run, "-o", tmp_path / "pipe").refused()
    assert "is a device" in cli(*run, "-o", out, "--report", "/dev/null").refused()
    assert "lies in the bundle" in cli(*run, "-o", inside).refused()
    assert "lies in the bundle" in cli(*run, "-o", out, "--report", bundle / "engines" / "new.json").refused()
    assert "is the file of --text" in cli(*run, "-o", text).refused()
    assert "is the file of --out" in cli(*run, "-o", out, "--report", tmp_path / "." / "o.npz").refused()
    (tmp_path / "link").symlink_to(inside)
    assert "lies in the bundle" in cli(*run, "-o", tmp_path / "link").refused()
    assert "lies in the bundle" in cli("profile", bundle, "-o", inside).refused()
    assert "lies in the bundle" in cli("compile", text, "-o", bundle / "new").refused()
    assert "lies in the bundle" in cli("generate", bundle, "--prompt", "the", "--cache", bundle).refused()
    assert "lies in the bundle" in cli("generate", bundle, "--prompt", "the", "--cache", bundle / "new").refused()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "is a link to itself" in cli(*run, "-o", tmp_path / "loop").refused()
    assert inside.read_bytes() == before
    assert text.read_text().startswith("the cat")
    assert Path("/dev/null").is_char_device()
    assert (tmp_path / "pipe").is_fifo()
    assert not out.exists()


def test_links_are_followed(cli, bundle, text, tmp_path):
    (tmp_path / "there").mkdir()
    for name in ("o.npz", "r.json"):
        (tmp_path / name).symlink_to(tmp_path / "there" / name)
    assert cli("run", bundle, "--text", text, "-o", tmp_path / "o.npz", "--report", tmp_path / "r.json").code == 0
    assert (tmp_path / "o.npz").is_symlink()
    assert np.load(tmp_path / "there" / "o.npz")["logits"].shape == (36, 16)
    assert json.loads((tmp_path / "there" / "r.json").read_text())["length"] == 36


def test_a_bundle_without_a_tokenizer_asks_for_tokens(cli, tiny_llama, text, tmp_path):
    bare = Path(shutil.copytree(tiny_llama, tmp_path / "bare"))
    (bare / "tokenizer.json").unlink()
    assert cli("compile", bare, "-o", tmp_path / "b", "--block-size", 16, "--no-generation").code == 0
    assert "--tokens" in cli("run", tmp_path / "b", "--text", text, "-o", tmp_path / "o.npz").refused()
