"""The command line: exit codes, messages, what goes to stdout, and the commands end to end on a tiny model."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twoheads.export.cli import arguments, main
from twoheads.export.cli.console import count_text, seconds_text, size_text
from twoheads.graphs.errors import InputError

WORDS = "the cat sat on a mat and saw the red dog run to the house by the sea "


class Ran:
    """One command line's outcome."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def refused(self) -> str:
        """The message of a user's error: one, on stderr, exit code 1, and no traceback."""
        assert self.code == 1, self.err
        assert self.out == ""
        assert self.err.count("error: ") == 1
        assert "Traceback" not in self.err
        return self.err


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]):
    def run(*words: object) -> Ran:
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def bundle(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "tiny.bundle"
    assert main(["compile", str(tiny_llama), "-o", str(path), "--block-size", "16"]) == 0
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "in.txt"
    path.write_text(WORDS * 2, encoding="utf-8")  # 36 words
    return path


@pytest.fixture
def copied(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that a test may damage."""
    return Path(shutil.copytree(bundle, tmp_path / "copy.bundle"))


# --- without any model -------------------------------------------------------------------------------------------


def test_every_command_has_help_with_an_example(cli):
    listing = cli("--help")
    assert listing.code == 0
    for name in ("compile", "plan", "profile", "inspect", "run", "verify"):
        assert name in listing.out
        shown = cli(name, "--help")
        assert shown.code == 0
        assert f"Example: twoheads {name} " in shown.out


def test_version(cli):
    assert re.fullmatch(r"twoheads \d+\.\d+\.\d+\S*\n", cli("--version").out)


@pytest.mark.parametrize(
    "words",
    [
        ["fly"],
        ["compile", "x", "-o", "y", "--dtype", "int3"],
        ["run", "x", "-o", "y", "--threads", "0"],
    ],
)
def test_a_wrong_option_is_a_users_error(cli, words):
    ran = cli(*words)
    assert ran.code == 1
    assert ran.out == ""
    assert "Error" in ran.err
    assert "Traceback" not in ran.err


def test_missing_source_is_named(cli, tmp_path):
    for words in (
        ["compile", tmp_path / "none", "-o", tmp_path / "b"],
        ["plan", tmp_path / "none", "--length", 5],
    ):
        assert f"{tmp_path / 'none'}: no such file or folder" in cli(*words).refused()


def test_output_in_a_missing_folder_is_refused_before_any_work(cli, tmp_path, monkeypatch):
    source = tmp_path / "model"
    source.mkdir()
    import twoheads.compiler

    monkeypatch.setattr(twoheads.compiler, "compile_model", pytest.fail, raising=False)
    message = cli("compile", source, "-o", tmp_path / "no" / "b").refused()
    assert f"{tmp_path / 'no'}: no such folder" in message


def test_existing_output_needs_force(cli, tmp_path):
    source = tmp_path / "model"
    source.mkdir()
    assert "--force" in cli("compile", source, "-o", source).refused()


def test_a_folder_without_a_model_is_refused(cli, tmp_path):
    (tmp_path / "empty").mkdir()
    message = cli("compile", tmp_path / "empty", "-o", tmp_path / "b").refused()
    assert str(tmp_path / "empty") in message
    assert not (tmp_path / "b").exists()


def test_commands_on_what_is_no_bundle(cli, tmp_path, text):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "none", text):
        assert str(path) in cli("inspect", path).refused()
        assert str(path) in cli("run", path, "--text", text, "-o", tmp_path / "o.npz").refused()
        assert str(path) in cli("verify", path, "--against", tmp_path, "--length", 5).refused()


def _interrupt(*_arguments: object, **_options: object) -> None:
    raise KeyboardInterrupt


def _break(*_arguments: object, **_options: object) -> None:
    raise ZeroDivisionError("a bug")


def _fill_disk(*_arguments: object, **_options: object) -> None:
    raise OSError(28, "No space left on device", "/somewhere/file")


@pytest.mark.parametrize(
    ("action", "code", "expected"),
    [(_interrupt, 130, "interrupted"), (_break, 70, "bug in twoheads"), (_fill_disk, 1, "/somewhere/file: No space")],
)
def test_exit_codes_of_what_commands_raise(cli, tmp_path, monkeypatch, action, code, expected):
    import twoheads.compiler

    monkeypatch.setattr(twoheads.compiler, "plan_model", action, raising=False)
    ran = cli("plan", tmp_path, "--length", 5)
    assert ran.code == code
    assert ran.out == ""
    assert expected in ran.err
    assert ("Traceback" in ran.err) == (code == 70)
    assert ("ZeroDivisionError: a bug" in ran.err) == (code == 70)


def test_light_commands_import_no_torch():
    script = (
        "import sys; from twoheads.export.cli import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'transformers', 'onnx', 'onnxscript', 'onnxruntime'} & set(sys.modules);"
        "sys.exit(f'{code} {heavy}' if code or heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", [0]),
        ("-1", [9]),
        ("0,5,-1", [0, 5, 9]),
        ("2:4, 8:", [2, 3, 8, 9]),
        (":2", [0, 1]),
        ("-2:", [8, 9]),
        ("1:-7", [1, 2]),
    ],
)
def test_positions(text, expected):
    assert arguments.parse_positions(text, 10).tolist() == expected


@pytest.mark.parametrize("text", ["", "x", "1,,2", "10", "-11", "5:5", "5:4", "3:11", "1:2:3", "1.5"])
def test_bad_positions_are_refused(text):
    with pytest.raises(InputError, match="--positions"):
        arguments.parse_positions(text, 10)


def test_numbers_in_units():
    assert [size_text(n) for n in (0, 999, 1000, 8_589_934_592)] == ["0 B", "999 B", "1 kB", "8.59 GB"]
    assert count_text(2_300_000_000_000) == "2.3 T"
    assert [seconds_text(s) for s in (0.0312, 5.25, 125, 7250)] == ["31 ms", "5.2 s", "2 min 5 s", "2 h 1 min"]
    assert [seconds_text(s) for s in (179.7, 7199)] == ["3 min 0 s", "2 h 0 min"]


# --- on a tiny model -----------------------------------------------------------------------------------------------


def test_compile_tells_what_it_wrote(cli, tiny_llama, tmp_path):
    ran = cli("compile", tiny_llama, "-o", tmp_path / "b", "--block-size", 32, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["block_size"] == 32
    assert ran.json["files"] == sum(1 for path in (tmp_path / "b").rglob("*") if path.is_file())
    assert ran.json["engines"] >= 3
    assert "exists already" in cli("compile", tiny_llama, "-o", tmp_path / "b").refused()
    again = cli("compile", tiny_llama, "-o", tmp_path / "b", "--block-size", 16, "--force", "--json")
    assert again.json["block_size"] == 16
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize(
    ("options", "lowering"),
    [(["--for", "rknn"], "stock"), (["--for", "openvino"], "tile"), (["--for", "rknn", "--lowering", "tile"], "tile")],
)
def test_a_bundle_for_an_accelerator_is_lowered_as_that_prefers(cli, tiny_llama, tmp_path, options, lowering):
    ran = cli("compile", tiny_llama, "-o", tmp_path / "b", "--block-size", 16, *options, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["lowering"] == lowering


def test_an_unknown_accelerator_is_refused_before_the_model_is_read(cli, tiny_llama, tmp_path):
    message = cli("compile", tiny_llama, "-o", tmp_path / "b", "--for", "abacus").refused()
    assert "use one of" in message
    assert "rknn" in message


@pytest.mark.parametrize("block_size", [0, 12, 20, 8192])
def test_block_sizes_that_can_not_be(cli, tiny_llama, tmp_path, block_size):
    message = cli("compile", tiny_llama, "-o", tmp_path / "b", "--block-size", block_size).refused()
    assert str(block_size) in message
    assert not (tmp_path / "b").exists()


def test_plan_of_a_source_and_of_its_bundle_agree(cli, tiny_llama, bundle):
    from_source = cli("plan", tiny_llama, "--length", 100, "--block-size", 16, "--json")
    from_bundle = cli("plan", bundle, "--length", 100, "--json")
    assert from_source.code == from_bundle.code == 0, from_source.err + from_bundle.err
    assert from_source.json == from_bundle.json
    plan = from_bundle.json
    assert plan["length"] == 100
    assert plan["blocks"] == 7
    assert plan["engine_calls"] == plan["formula_calls"] == sum(stage["calls"] for stage in plan["stages"])
    assert plan["peak_bytes"] == sum(plan["memory"].values())
    assert plan["flops"] > 0
    assert plan["theorem"] == "Theorem 3.5"
    assert plan["floor_calls"] <= plan["engine_calls"] < plan["paper_calls"]
    assert plan["rounds"] == len(plan["stages"])
    attention = next(stage for stage in plan["stages"] if stage["kind"] == "attention")
    assert attention["paper_formula"] == "2*n + 4*n*(n - 1)/2 = 98"
    assert attention["paper_calls"] == 98


def test_plan_for_people(cli, bundle):
    ran = cli("plan", bundle, "--length", 100, "--output", "hidden")
    assert ran.code == 0
    facts = (
        "100 tokens in 7 blocks of 16",
        "formula",
        "peak memory",
        "attention",
        "Theorem 3.5",
        "SETH",
        "floor",
        "rounds",
    )
    for expected in facts:
        assert expected in ran.out
    assert cli("plan", bundle, "--length", 100, "--stages").out.count("\n") > ran.out.count("\n")


def test_plan_refuses(cli, bundle):
    assert "--block-size" in cli("plan", bundle, "--length", 5, "--block-size", 16).refused()
    assert "length: is not given" in cli("plan", bundle).refused()
    for wrong in ("many", "n=", "n=5,6", "1.5"):
        assert "neither a whole number nor" in cli("plan", bundle, "--length", wrong).refused()
    assert "is given for n, m" in cli("plan", bundle, "--length", "n=5,m=6").refused()
    cli("plan", bundle, "--length", 0).refused()
    cli("plan", bundle, "--length", -3, "--json").refused()
    cli("plan", bundle, "--length", 5, "--output", "embedding").refused()
    assert "5 tokens" in cli("plan", bundle, "--length", 5, "--positions", "5").refused()


def test_inspect(cli, bundle):
    data = cli("inspect", bundle, "--program", "--json").json
    assert data["source"]["architecture"] == "LlamaForCausalLM"
    assert data["masks"] == {"causal": 2}
    assert data["trained_length"] == 64
    assert data["tokenizer"] is True
    assert data["outputs"] == ["hidden", "logits", "last"]
    assert data["packs_up_to"] == 8
    assert data["program"].startswith("program ")
    shown = cli("inspect", bundle, "--program", "--engines").out
    assert data["program"] in shown
    assert all(engine["name"] in shown for engine in data["engines"])
    assert "2 x causal" in shown
    assert "inputs of up to 8 tokens share calls" in shown


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
    assert stopped.code == 1
    assert "No space left" in stopped.err
    monkeypatch.undo()
    assert not out.exists()
    assert "unfinished job" in cli("run", bundle, "--text", text, "-o", out, "--spill", folder).err
    assert cli("status", folder, "--json").json["state"] == "stopped"
    told = cli("status", folder)
    for words in ("stopped, ", "2 stages: ", str(text), f"run --resume {folder}"):
        assert words in told.out.replace("\n", ""), words
    assert "give --resume DIR alone" in cli("run", bundle, "--resume", folder).err
    content = text.read_bytes()
    text.write_bytes(content + b"!")
    assert "is the input of this job, and has changed" in cli("run", "--resume", folder).err
    text.unlink()
    assert "is the input of this job, and can't be read: No such file" in cli("run", "--resume", folder).err
    text.write_bytes(content)
    resumed = cli("run", "--resume", folder)
    assert resumed.code == 0, resumed.err
    for name in ("logits", "positions"):
        np.testing.assert_array_equal(np.load(out)[name], np.load(tmp_path / "plain.npz")[name])
    status = cli("status", folder, "--json").json
    assert status["state"] == "finished"
    assert status["calls"] == status["total"] > 0
    assert "last checkpoint" not in cli("status", folder).out
    assert "is finished" in cli("run", "--resume", folder).err
    assert "holds no job" in cli("status", tmp_path).err
    assert "a BUNDLE is missing" in cli("run", "--text", text, "-o", out).err


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


def test_run_takes_every_line_as_an_input_of_its_own(cli, bundle, tmp_path):
    text, out = tmp_path / "in.txt", tmp_path / "o.npz"
    lines = ["the cat sat", "a mat", "the red dog run to", WORDS, "the sea"]
    text.write_text("\n\n".join(lines), encoding="utf-8")
    ran = cli("run", bundle, "--text", text, "--lines", "-o", out, "--output", "last", "--json")
    assert ran.code == 0, ran.err
    packed = np.load(out)["logits"]
    assert packed.shape == (5, 16)
    assert ran.json["requests"] == 5
    assert [run["requests"] for run in ran.json["runs"]] == [5], "the long line shares its last block"
    assert ran.json["engine_calls"] == ran.json["formula_calls"] == sum(r["engine_calls"] for r in ran.json["runs"])
    off = cli("run", bundle, "--text", text, "--lines", "-o", out, "--output", "last", "--pack", "off", "--json")
    assert [run["requests"] for run in off.json["runs"]] == [1] * 5
    np.testing.assert_allclose(np.load(out)["logits"], packed, rtol=0, atol=1e-5)
    assert off.json["engine_calls"] > ran.json["engine_calls"]
    for line, row in zip(lines, packed, strict=True):
        text.write_text(line, encoding="utf-8")
        cli("run", bundle, "--text", text, "-o", out, "--output", "last")
        np.testing.assert_allclose(np.load(out)["logits"][0], row, rtol=0, atol=1e-5)
    shown = cli("run", bundle, "--text", text, "--lines", "-o", out, "--output", "last").out
    assert "one row a line" in shown
    assert "packed" in shown


def test_run_refuses_lines_that_make_no_sense(cli, bundle, text, tmp_path):
    out = tmp_path / "o.npz"
    assert "--output last" in cli("run", bundle, "--text", text, "--lines", "-o", out).refused()
    np.save(tmp_path / "t.npy", np.ones(5, np.int64))
    cli("run", bundle, "--tokens", tmp_path / "t.npy", "--lines", "-o", out, "--output", "last").refused()
    assert not out.exists()


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


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_told(cli, bundle, text, tmp_path):
    full = tmp_path / "r.json"
    full.with_name(f".{full.name}.{os.getpid()}.partial").symlink_to("/dev/full")
    message = cli("run", bundle, "--text", text, "-o", tmp_path / "o.npz", "--report", full).refused()
    assert "No space left on device" in message
    assert not full.exists()


def test_damaged_bundles_are_refused(cli, copied, text, tmp_path):
    weights = copied / "engines" / "weights.bin"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    assert "weights.bin" in cli("run", copied, "--text", text, "-o", tmp_path / "o.npz").refused()
    assert "weights.bin" in cli("inspect", copied).refused()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "weights.bin" in cli("run", copied, "--text", text, "-o", tmp_path / "o.npz").refused()
    assert cli("run", copied, "--text", text, "-o", tmp_path / "o.npz", "--check", "size").code == 0


def test_a_bundle_without_a_tokenizer_asks_for_tokens(cli, tiny_llama, text, tmp_path):
    bare = Path(shutil.copytree(tiny_llama, tmp_path / "bare"))
    (bare / "tokenizer.json").unlink()
    assert cli("compile", bare, "-o", tmp_path / "b", "--block-size", 16).code == 0
    assert "--tokens" in cli("run", tmp_path / "b", "--text", text, "-o", tmp_path / "o.npz").refused()


def test_verify_passes_and_its_json_says_so(cli, tiny_llama, bundle, text):
    ran = cli("verify", bundle, "--against", tiny_llama, "--length", 30, "--text", text, "--json")
    assert ran.code == 0, ran.err
    report = ran.json
    assert report["passed"] is True
    assert report["length"] == 30
    assert report["max_abs_error"] <= 4 * report["noise_floor"]
    assert report["top1_agreement"] == 1.0
    shown = cli("verify", bundle, "--against", tiny_llama, "--length", 30, "--text", text)
    assert shown.code == 0
    assert "passed" in shown.out


def test_verify_refuses(cli, tiny_llama, bundle, text, tmp_path):
    assert "no such file" in cli("verify", bundle, "--against", tmp_path / "none", "--length", 5).refused()
    cli("verify", bundle, "--against", tiny_llama, "--length", 0).refused()
    assert "36" in cli("verify", bundle, "--against", tiny_llama, "--length", 50, "--text", text).refused()
    message = cli("verify", bundle, "--against", tiny_llama, "--length", 5, "--text", text, "--tokens", text).refused()
    assert "two inputs" in message


def test_run_and_inspect_import_neither_torch_nor_onnx(bundle, text, tmp_path):
    script = (
        "import sys; from twoheads.export.cli import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'transformers', 'onnx', 'onnxscript'} & set(sys.modules);"
        "sys.exit(f'{code} {heavy}' if code or heavy else 0)"
    )
    for words in (
        ["inspect", bundle, "--engines"],
        ["plan", bundle, "--length", "99"],
        ["run", bundle, "--text", text, "-o", tmp_path / "o.npz"],
    ):
        command = [sys.executable, "-c", script, *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


INTERRUPTED_COMPILE = """
import os, sys, time
from twoheads.export import bundle_writer
from twoheads.export.cli import main

def interrupt(*_arguments):
    os.kill(os.getpid(), int(sys.argv[1]))
    time.sleep(60)

bundle_writer._write_engines = interrupt
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    ("number", "code", "message"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "")]
)
def test_an_interrupted_compile_leaves_nothing(tiny_llama, tmp_path, number, code, message):
    """A signal while the bundle is written, in a real process: an exit code, at most one line, nothing on the disk."""
    command = [sys.executable, "-c", INTERRUPTED_COMPILE, str(int(number)), "compile", str(tiny_llama)]
    command += ["-o", str(tmp_path / "b"), "--block-size", "16"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.strip() == message
    assert list(tmp_path.iterdir()) == []


def test_verbose_logs_to_stderr(cli, bundle):
    try:
        ran = cli("-v", "inspect", bundle, "--json")
        assert ran.code == 0
        assert ran.json["block_size"] == 16
    finally:
        logging.getLogger().handlers.clear()
