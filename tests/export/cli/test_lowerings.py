"""All layers of a block in one call, from the command line."""

from __future__ import annotations

from pathlib import Path


def test_every_command_takes_a_bundle_of_one_call_a_block(cli, tiny_llama: Path, text: Path, tmp_path: Path) -> None:
    bundle, device = tmp_path / "bundle", tmp_path / "device.json"
    words = ("--block-size", 16, "--lowering", "model", "--attention", "window:20+sinks:4")
    made = cli("compile", tiny_llama, "-o", bundle, *words, "--json")
    assert made.json["lowering"] == "model"
    assert "model_step" in cli("inspect", bundle).out
    planned = cli("plan", bundle, "--length", 40, "--output", "hidden", "--json").json
    assert (planned["engine_calls"], planned["rounds"]) == (3, 3)
    ran = cli("run", bundle, "--text", text, "-o", tmp_path / "out.npz", "--output", "hidden", "--json").json
    assert (ran["length"], ran["engine_calls"], ran["formula_calls"]) == (36, 3, 3)
    proven = cli("verify", bundle, "--against", tiny_llama, "--length", 40, "--json")
    assert (proven.code, proven.json["passed"], proven.json["engine_calls"]) == (0, True, 6)
    assert cli("profile", bundle, "-o", device).code == 0
    predicted = cli("plan", bundle, "--length", 40, "--output", "hidden", "--device", device, "--json")
    assert predicted.code == 0, predicted.err


def test_a_layer_that_sees_everything_is_refused_by_name(cli, tiny_llama: Path, tmp_path: Path) -> None:
    message = cli("compile", tiny_llama, "-o", tmp_path / "bundle", "--block-size", 16, "--lowering", "model").refused()
    assert "attends to all earlier tokens" in message
    assert not (tmp_path / "bundle").exists()
