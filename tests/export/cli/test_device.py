"""``twoheads pack``, ``canary`` and ``targets`` as a user types them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twoheads.export.accelerators.build import build_target
from twoheads.export.accelerators.target import target_names


def test_build_pack_canary(cli: Any, copied: Path, tmp_path: Path) -> None:
    pack = tmp_path / "pack"
    assert "was not built for openvino" in cli("pack", copied, "--target", "openvino", "-o", pack).refused()
    build_target(copied, "openvino")
    packed = cli("pack", copied, "--target", "openvino", "-o", pack, "--json")
    assert packed.code == 0, packed.err
    assert packed.json["sizes"]["tokenizer"] > 0
    assert packed.json["sizes"]["weights"] == 0
    passed = cli("canary", pack, "--json")
    assert (passed.code, passed.json["passed"]) == (0, True), passed.err
    assert passed.json["error"] <= passed.json["limit"]
    assert "passed" in cli("canary", pack).out
    assert "exists already" in cli("pack", copied, "--target", "openvino", "-o", pack).refused()
    assert cli("pack", copied, "--target", "openvino", "-o", pack, "--force").code == 0
    (pack / "run").write_text("rm -rf /")
    assert "has 8 bytes, the pack says" in cli("canary", pack).refused()


def test_targets_tell_what_is_installed(cli: Any) -> None:
    told = {entry["name"]: entry for entry in cli("targets", "--json").json}
    assert tuple(told) == target_names()
    assert told["openvino"]["ready"]
    assert told["openvino"]["backend"] == "openvino-ir"
    assert (told["rknn"]["backend"], told["rknn"]["emulator"]) == ("rknn", "rknn-simulator")
    assert told["ethos-u"]["backend"] is None
    listed = cli("targets").out
    assert "OpenVINO" in listed
    assert "twoheads targets install TARGET" in listed, "rknn's compiler is installed nowhere in the tests"
    assert "names no target" in cli("targets", "install").refused()
    assert "'abacus' is unknown" in cli("targets", "install", "abacus").refused()
    assert "lists all targets" in cli("targets", "list", "qnn").refused()
