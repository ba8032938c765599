"""The command line: exit codes, messages, what goes to stdout, and the commands end to end on a tiny model."""

from __future__ import annotations

import json
import logging
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from tests.compiler.gguf_file import write_gguf
from tests.signals import process_that_heeds
from tests.tiers import with_long
from twoheads.compiler.frontend.torch.weights.gguf_blocks import FileBlocks
from twoheads.export.cli.shared import arguments
from twoheads.export.cli.shared.console import count_text, seconds_text, size_text
from twoheads.graphs.errors import InputError

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
    assert ran.json["matrices"]["quantised"] == 0
    assert ran.json["matrices"]["full"] > 7
    assert "exists already" in cli("compile", tiny_llama, "-o", tmp_path / "b").refused()
    again = cli("compile", tiny_llama, "-o", tmp_path / "b", "--block-size", 16, "--force", "--no-generation", "--json")
    assert again.json["block_size"] == 16
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_gguf_file_without_4_bits_is_refused_before_it_is_read(cli, tmp_path):
    matrices = {
        "token_embd.weight": np.zeros((8, 32), np.float32),
        "blk.0.ffn_up.weight": np.zeros((8, 32), np.float16),
    }
    file = write_gguf(tmp_path / "half.gguf", "llama", {"block_count": 1}, matrices)
    message = cli("compile", file, "-o", tmp_path / "b", "--weights", "lossless").refused()
    assert "no matrix of 4 bits in its layers (float32: 1 matrices of F32, 1 of F16)" in message
    rounded = cli("compile", file, "-o", tmp_path / "b", "--weights", "lossless", "--products", "int8").refused()
    assert "--weights lossless rounds nothing" in rounded


def test_a_gguf_file_keeps_its_4_bits(cli, tmp_path):
    """Whose queries and keys the library turns over; what is told of the file is what the bundle has."""
    entries = {"block_count": 1, "context_length": 64, "embedding_length": 32, "feed_forward_length": 64}
    heads = {"attention.head_count": 4, "attention.head_count_kv": 2, "attention.layer_norm_rms_epsilon": 1e-5}
    widths = {"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32), "ffn_gate": (64, 32)}
    widths |= {"ffn_up": (64, 32), "ffn_down": (32, 64)}
    shapes = {f"blk.0.{name}.weight": shape for name, shape in widths.items()}
    random = np.random.default_rng(0)
    matrices = {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    norms = {
        name: np.ones(32, np.float32)
        for name in ("output_norm.weight", "blk.0.attn_norm.weight", "blk.0.ffn_norm.weight")
    }
    table = {"token_embd.weight": random.standard_normal((48, 32), np.float32)}
    kinds = dict.fromkeys(shapes, GGMLQuantizationType.Q4_1) | {"token_embd.weight": GGMLQuantizationType.Q8_0}
    kinds["blk.0.ffn_down.weight"] = GGMLQuantizationType.Q4_0
    file = write_gguf(tmp_path / "l.gguf", "llama", entries | heads, table | norms | matrices, tokens=48, kinds=kinds)
    options = ("--block-size", 16, "--no-generation", "--weights", "lossless", "--json")
    ran = cli("compile", file, "-o", tmp_path / "b", *options)
    assert ran.code == 0, ran.err
    assert ran.json["matrices"] == {"quantised": 7, "full": 1}
    assert ran.json["file_blocks"] == {"kept": {"Q4_1": 6, "Q4_0": 1}, "rounded": {}, "float32": {"Q8_0": 1}}


def test_compile_tells_which_numbers_of_a_gguf_file_it_kept():
    both = FileBlocks({"Q4_K": 150, "Q8_0": 1}, {"Q6_K": 30})
    assert str(both) == "kept: 150 matrices of Q4_K, 1 of Q8_0; rounded: 30 of Q6_K"
    assert str(FileBlocks({}, {"F16": 9})) == "rounded: 9 matrices of F16"
    assert str(FileBlocks({"Q4_1": 210}, {}, {"Q8_0": 1})) == "kept: 210 matrices of Q4_1; float32: 1 of Q8_0"


@pytest.mark.parametrize(
    ("options", "lowering"),
    [(["--for", "rknn"], "stock"), (["--for", "openvino"], "tile"), (["--for", "rknn", "--lowering", "tile"], "tile")],
)
def test_a_bundle_for_an_accelerator_is_lowered_as_that_prefers(cli, tiny_llama, tmp_path, options, lowering):
    ran = cli("compile", tiny_llama, "-o", tmp_path / "b", "--block-size", 16, *options, "--no-generation", "--json")
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
    assert from_source.json | {"precision": "float32"} == from_bundle.json  # how weights are stored, compile decides
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
    refused = cli("plan", bundle).refused()
    assert "length: is not given" in refused
    assert "--length N" in refused
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
    shown = cli("inspect", bundle, "--program", "--stages", "--engines").out
    assert data["program"] in shown
    assert all(engine["name"] in shown for engine in data["engines"])
    assert "2 x causal" in shown
    assert "inputs of up to 8 tokens share calls" in shown


def test_damaged_bundles_are_refused(cli, copied, text, tmp_path):
    weights = copied / "engines" / "weights.bin"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    assert "weights.bin" in cli("run", copied, "--text", text, "-o", tmp_path / "o.npz").refused()
    assert "weights.bin" in cli("inspect", copied).refused()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "weights.bin" in cli("run", copied, "--text", text, "-o", tmp_path / "o.npz").refused()
    assert cli("run", copied, "--text", text, "-o", tmp_path / "o.npz", "--check", "size").code == 0


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
        "import json, sys; from twoheads.export.cli import main;"
        "codes = [main(words) for words in json.loads(sys.argv[1])];"
        "heavy = {'torch', 'transformers', 'onnx', 'onnxscript'} & set(sys.modules);"
        "sys.exit(f'{codes} {heavy}' if any(codes) or heavy else 0)"
    )
    commands = (
        ["inspect", bundle, "--engines"],
        ["plan", bundle, "--length", "99"],
        ["run", bundle, "--text", text, "-o", tmp_path / "o.npz"],
    )
    words = json.dumps([list(map(str, command)) for command in commands])
    done = subprocess.run([sys.executable, "-c", script, words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "o.npz").exists()


INTERRUPTED_COMPILE = """
import os, sys, time
from twoheads.export.bundle import writer as bundle_writer
from twoheads.export.cli import main

def interrupt(*_arguments):
    os.kill(os.getpid(), int(sys.argv[1]))
    time.sleep(60)

bundle_writer._write_engines = interrupt
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    ("number", "code", "message", "door"),
    with_long(
        [
            (signal.SIGINT, 130, "interrupted", "torch"),
            (signal.SIGINT, 130, "interrupted", "onnx"),
            (signal.SIGTERM, 143, "", "onnx"),
        ],
        [(signal.SIGINT, 130, "interrupted", "onnx"), (signal.SIGTERM, 143, "", "onnx")],
    ),
)
def test_an_interrupted_compile_leaves_nothing(tiny_llama, tmp_path, number, code, message, door):
    """A signal while the bundle is written, in a real process: an exit code, at most one line, nothing on the disk."""
    source = tiny_llama if door == "torch" else Path(__file__).parents[2] / "data" / "onnx" / "model.onnx"
    command = [sys.executable, "-c", INTERRUPTED_COMPILE, str(int(number)), "compile", str(source)]
    command += ["-o", str(tmp_path / "b"), "--block-size", "16"]
    with process_that_heeds(command) as process:
        out, error = process.communicate(timeout=600)
    assert process.returncode == code, error
    assert out == ""
    assert error.strip() == message
    assert list(tmp_path.iterdir()) == []


INTERRUPTED_IMPORT = """
import os, sys
from twoheads.export.cli import main
from twoheads.export.accelerators import environments

def load():
    try:
        os.kill(os.getpid(), int(sys.argv[1]))
        while True:
            pass
    except BaseException:
        raise ImportError("initialization failed") from None

environments.installed_targets = load
sys.exit(main(["targets"]))
"""


@pytest.mark.parametrize(
    ("number", "code", "message"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "")]
)
def test_an_interrupted_import_is_no_bug(number, code, message):
    """Compiled modules turn whatever interrupts their import into an ImportError."""
    with process_that_heeds([sys.executable, "-c", INTERRUPTED_IMPORT, str(int(number))]) as process:
        _, error = process.communicate(timeout=120)
    assert process.returncode == code, error
    assert error.strip() == message


def test_verbose_tells_our_phases_and_no_one_else_s_lines(cli, bundle, text, tmp_path, monkeypatch):
    from twoheads.export.cli.run import command as run_command
    from twoheads.runtime.bundle.reader import require_bundle as look

    def chatty(*arguments, **options):
        logging.getLogger("somebody").info("a line of somebody")
        logging.getLogger("twoheads.somewhere").info("a line of ours")
        return look(*arguments, **options)

    monkeypatch.setattr(run_command, "require_bundle", chatty)
    words = ("run", bundle, "--text", text, "-o", tmp_path / "o.npz", "--json")
    for flag, ours, others in (((), 0, 0), (("-v",), 1, 0), (("-vv",), 1, 1)):
        ran = cli(*flag, *words)
        assert ran.code == 0, ran.err
        assert ran.json["length"] == 36
        assert ran.err.count("a line of ours") == ours
        assert ran.err.count("a line of somebody") == others
        assert bool(re.search(r"engine calls, \d+ of \d+: \d+ ms", ran.err)) == bool(flag)


def test_verbose_tells_how_long_compiling_took(cli, tiny_llama, tmp_path):
    ran = cli("-v", "compile", tiny_llama, "-o", tmp_path / "b", "--block-size", 16, "--no-generation")
    assert ran.code == 0, ran.err
    for phase in ("loading the model", "capturing its graph", "checking that regions are token-wise"):
        assert re.search(rf"{phase}: [\d.]+ m?s", ran.err), ran.err
    assert "torch" not in ran.err


def test_twice_verbose_tells_where_an_error_was_raised(cli, tmp_path):
    words = ("inspect", tmp_path / "none")
    assert "raised at" not in cli("-v", *words).err
    told = cli("-vv", *words).err
    assert "raised at" in told
    assert "read_bundle" in told
