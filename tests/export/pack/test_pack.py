"""Packs: made, copied, run, damaged, refused. The target is OpenVINO, whose runtime is this environment's own."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
import subprocess
import sys
import tarfile
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.tiny_bundle import write_tiny
from tests.runtime.tiny_model import Tiny, random_tokens, reference
from twoheads.export.accelerators.build import build_target
from twoheads.export.bundle.writer import file_entry
from twoheads.export.pack import pack as pack_writer
from twoheads.export.pack.canary import run_canary
from twoheads.export.pack.pack import pack_bundle
from twoheads.graphs.errors import BundleError, InputError
from twoheads.graphs.serialization.json_codec import to_json
from twoheads.graphs.serialization.pack_format import PACK, SEAL
from twoheads.runtime import load
from twoheads.runtime.bundle import pack as pack_module
from twoheads.runtime.bundle.pack import read_pack
from twoheads.runtime.bundle.reader import read_bundle

TINY = Tiny(layers=2, sinks=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = write_tiny(tmp_path_factory.mktemp("built") / "b", TINY)
    build_target(bundle, "openvino")
    return bundle


@pytest.fixture(scope="module")
def packed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_bundle(built, "openvino", tmp_path_factory.mktemp("packed") / "pack").path


@pytest.fixture
def pack(packed: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(packed, tmp_path / "pack"))


def change(pack: Path, **facts: Any) -> None:
    """Another pack, as one who packs would write it."""
    path = pack / PACK
    data = json.loads(path.read_text()) | facts | {SEAL: ""}
    content = json.dumps(data)
    seal = hashlib.sha256(content.encode()).hexdigest()
    path.write_text(content.replace(f'"{SEAL}": ""', f'"{SEAL}": "{seal}"'))


def test_a_pack_holds_what_the_device_needs_and_its_canary_passes(packed: Path) -> None:
    names = sorted(path.name for path in packed.iterdir())
    assert names[:5] == ["README.md", "bundle", "canary.npz", "pack.json", "run"]
    assert len(names) == 6
    assert sorted(path.name for path in (packed / "bundle").iterdir()) == [
        "engines",
        "manifest.json",
        "program.json",
        "targets",
    ]
    assert [path.name for path in (packed / "bundle" / "engines").iterdir()] == ["weights.bin"]
    assert len((packed / "README.md").read_text().splitlines()) == 5
    pack = read_pack(packed)
    assert (pack.target, pack.device, pack.backend, pack.canary.output) == ("openvino", "CPU", "openvino-ir", "last")
    assert pack.canary.error is not None
    run = run_canary(packed, threads=1)
    assert run.passed
    assert run.error <= 1e-5
    assert run.calls > 4


def test_weights_that_artifacts_hold_are_left_out_and_the_rest_runs_whole_inputs(built: Path, packed: Path) -> None:
    weights = Path("engines", "weights.bin")
    assert (packed / "bundle" / weights).stat().st_size < (built / weights).stat().st_size / 10  # the sinks
    tokens = random_tokens(TINY, 75)
    result = load(packed / "bundle", backend="openvino-ir", threads=2).run(tokens, output="hidden")
    expected = reference(TINY, tokens)["hidden"]
    np.testing.assert_allclose(np.asarray(result.array), expected, rtol=0, atol=5e-5 * np.abs(expected).max())
    with pytest.raises(InputError, match=r"(?s)is packed for openvino.*run it by --backend openvino-ir"):
        load(packed / "bundle")


def test_equal_bundles_give_equal_bytes(built: Path, tmp_path: Path) -> None:
    archives = [pack_bundle(built, "openvino", tmp_path / folder / "p.tar.gz").path for folder in folders(tmp_path)]
    assert archives[0].read_bytes() == archives[1].read_bytes()
    with tarfile.open(archives[0]) as archive:
        archive.extractall(tmp_path / "out", filter="data")
    assert run_canary(tmp_path / "out" / "p", threads=1).passed
    assert (tmp_path / "out" / "p" / "run").stat().st_mode & 0o111
    with pytest.raises(InputError, match="exists already"):
        pack_bundle(built, "openvino", archives[0])


def folders(tmp_path: Path) -> tuple[str, str]:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    return "one", "two"


def test_the_wheel_is_one_that_pip_installs(packed: Path, tmp_path: Path) -> None:
    (wheel,) = packed.glob("*.whl")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        tmp_path / "site",
    ]
    done = subprocess.run([*map(str, command), str(wheel)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "site" / "twoheads").iterdir()}
    assert names == {"graphs", "compiler", "export", "runtime"}
    assert (tmp_path / "site" / "twoheads" / "runtime" / "backends" / "merge_state.ptx").exists()


def test_the_wheel_asks_for_what_running_takes_and_no_more(packed: Path) -> None:
    """Whatever the installation here says, which may be of an older checkout."""
    (wheel,) = packed.glob("*.whl")
    (about,) = importlib.metadata.distributions(path=[str(wheel)])
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = [one for one in about.requires or () if "extra ==" not in one]
    assert sorted(needed) == sorted(project["dependencies"])
    assert not [one for one in needed if one.startswith(("torch", "transformers", "onnx>"))]
    assert set(about.metadata.get_all("Provides-Extra") or ()) == set(project["optional-dependencies"])
    assert (about.version, about.metadata["Name"]) == (importlib.metadata.version("twoheads"), "twoheads")


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_pack_of_which_any_file_is_damaged_by_a_byte_is_refused_in_one_line(pack: Path) -> None:
    """By the proof as by a run: artifacts, weights, the program, the wheel, the script, the proof itself."""
    files = [path for path in sorted(pack.rglob("*")) if path.is_file()]
    assert {path.suffix for path in files} >= {".whl", ".npz", ".json", ".xml", ".bin", ".md", ""}
    for file in files:
        whole = file.read_bytes()
        damage(file)
        for refuses in (run_canary, run_in):
            with pytest.raises(BundleError) as refused:
                refuses(pack)
            assert file.name in str(refused.value)
            assert "\n" not in refused.value.problem
        file.write_bytes(whole)
    run_in(pack)


def test_any_byte_of_the_table_of_contents_counts(pack: Path) -> None:
    file = pack / PACK
    content = file.read_bytes()
    for at in range(0, len(content), 7):
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(BundleError) as refused:
            read_pack(pack)
        assert "\n" not in refused.value.problem
    file.write_bytes(content)
    read_pack(pack)


def test_a_pack_with_a_file_too_few_or_too_many_is_refused(pack: Path) -> None:
    (pack / "bundle" / "targets" / "more").write_text("x")
    with pytest.raises(BundleError, match="bundle/targets/more: is not listed"):
        read_pack(pack)
    (pack / "bundle" / "targets" / "more").unlink()
    (pack / "README.md").unlink()
    with pytest.raises(BundleError, match="is missing"):
        read_pack(pack)
    with pytest.raises(BundleError, match=r"(?s)is no pack.*name the folder"):
        read_pack(pack / "bundle")
    with pytest.raises(BundleError, match="nowhere: does not exist"):
        read_pack(pack / "nowhere")
    with pytest.raises(BundleError, match=r"(?s)is no pack.*name the folder"):  # a file, but no archive of a pack
        read_pack(pack / "canary.npz")
    with tarfile.open(pack.with_suffix(".tar"), "w") as archive:
        archive.add(pack / "canary.npz", "canary.npz")
    with pytest.raises(BundleError, match=r"(?s)is no pack.*tar xf "):
        read_pack(pack.with_suffix(".tar"))


def test_an_emulator_is_installed_in_an_environment_of_its_own(built: Path, packed: Path) -> None:
    """RKNN's wants NumPy 1, and twoheads NumPy 2: pip resolves no line that has both."""
    pack, program = read_pack(packed), read_bundle(built).program
    install = {
        backend: pack_writer._readme(replace(pack, target=target, backend=backend), program).splitlines()[1]
        for target, backend in (("rknn", "rknn-simulator"), ("openvino", "openvino-ir"))
    }
    assert install["rknn-simulator"].endswith("pip install twoheads-*.whl tokenizers && twoheads targets install rknn")
    assert install["openvino-ir"].endswith("pip install twoheads-*.whl tokenizers 'openvino'")


def test_an_environment_and_results_beside_the_bundle_are_the_users(pack: Path) -> None:
    (pack / "env" / "bin").mkdir(parents=True)
    (pack / "env" / "bin" / "python").write_text("x")
    (pack / "OUT.npz").write_text("x")
    read_pack(pack)


def test_a_pack_of_another_machine_runtime_or_format_is_refused_in_one_line(
    pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for facts, told in (
        ({"machine": "riscv128"}, "holds machine code for riscv128, and this processor is"),
        ({"machine": None, "twoheads": "99.1"}, "was packed by twoheads 99.1, and this is the older"),
        ({"format_version": 2}, "has format version 2, and this twoheads reads version 1"),
    ):
        change(pack, **facts)
        with pytest.raises(BundleError, match=told):
            read_pack(pack)
    monkeypatch.setattr(pack_module, "PACK_VERSION", 2)
    change(pack, twoheads="0.0.1")
    read_pack(pack)


def resealed(pack: Path, name: str, **facts: Any) -> None:
    """The same after the file ``name`` was written anew, and ``pack.json`` with ``facts``."""
    files = json.loads((pack / PACK).read_text())["files"]
    change(pack, files=files | {name: to_json(file_entry(pack / name))}, **facts)


def edit_manifest(pack: Path, device: str) -> None:
    manifest = pack / "bundle" / "manifest.json"
    data = json.loads(manifest.read_text())
    data["targets"]["openvino"]["device"] = device
    manifest.write_text(json.dumps(data))


def run_in(pack: Path) -> None:
    """What its script comes to: the bundle is opened by the backend, and read as runs read it."""
    load(pack / "bundle", backend="openvino-ir", threads=1)


@pytest.mark.parametrize(
    "name", ["canary.npz", "run", "README.md", "bundle/manifest.json", "bundle/program.json", "pack.json"]
)
def test_a_run_in_a_pack_damaged_by_a_byte_is_refused_in_one_line(pack: Path, name: str) -> None:
    run_in(pack)
    path = pack / name
    path.write_bytes(path.read_bytes().replace(b"o", b"0", 1) if path.suffix == ".json" else path.read_bytes()[:-1])
    with pytest.raises(BundleError) as refused:
        run_in(pack)
    assert name in str(refused.value)
    assert "\n" not in refused.value.problem


def test_the_script_in_a_pack_refuses_it_too(pack: Path) -> None:
    damage(pack / "canary.npz")
    np.save(pack / "tokens.npy", random_tokens(TINY, 20))
    script = (pack / "run").read_text().replace("exec twoheads", f"exec {sys.executable} -m twoheads.export.cli")
    (pack / "run").write_text(script)
    resealed(pack, "run")
    command = ["sh", "run", "--tokens", "tokens.npy", "-o", "out.npz"]
    done = subprocess.run(command, cwd=pack, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "canary.npz: is altered" in done.stderr
    assert not (pack / "out.npz").exists()


def test_a_bundle_that_was_taken_out_of_its_pack_is_refused(pack: Path, tmp_path: Path) -> None:
    (pack / "bundle").rename(tmp_path / "bundle")
    with pytest.raises(BundleError, match=r"lies in no pack: there is no pack\.json beside it"):
        load(tmp_path / "bundle", backend="openvino-ir", threads=1)
    load(tmp_path / "bundle", backend="openvino-ir", threads=1, check="size")  # asked for by name


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"target": "qnn", "device": "57"}, "says that it is for qnn, and its bundle was packed for openvino"),
        ({"device": "NPU"}, "says NPU in fp32, and its artifacts were built for CPU in fp32"),
        ({"precision": "w8"}, "says CPU in w8, and its artifacts were built for CPU in fp32"),
    ],
)
def test_a_table_of_contents_that_names_another_device_is_refused(pack: Path, facts: Any, told: str) -> None:
    change(pack, **facts)
    for refuses in (run_canary, run_in):
        with pytest.raises(BundleError, match=told):
            refuses(pack)


def test_artifacts_of_another_target_are_refused_whatever_the_tables_say(pack: Path) -> None:
    """As a pack whose tables of contents were both written anew."""
    manifest, artifact = pack / "bundle" / "manifest.json", pack / "bundle" / "targets" / "openvino" / "first.xml"
    artifact.write_bytes(b"\x1c\x00\x00\x00TFL3" + artifact.read_bytes())
    data = json.loads(manifest.read_text())
    data["files"]["targets/openvino/first.xml"] = to_json(file_entry(artifact))
    manifest.write_text(json.dumps(data))
    for name in ("bundle/manifest.json", "bundle/targets/openvino/first.xml"):
        resealed(pack, name)
    for refuses in (run_canary, run_in):
        with pytest.raises(BundleError, match="is no artifact of openvino, but one of litert"):
            refuses(pack)


def test_a_device_that_is_not_there_is_told_in_one_line(pack: Path) -> None:
    edit_manifest(pack, "NPU")
    resealed(pack, "bundle/manifest.json", device="NPU")
    with pytest.raises(BundleError, match=r"its runtime fails: ValueError: OpenVINO finds no NPU here, only CPU"):
        load(pack / "bundle", backend="openvino-ir", threads=1).run(random_tokens(TINY, 20), output="hidden")


def test_a_canary_that_computes_something_else_fails(pack: Path) -> None:
    with np.load(pack / "canary.npz") as arrays:
        changed = {name: arrays[name] for name in arrays.files}
    changed["expected"] = changed["expected"] * 1.01
    np.savez(pack / "canary.npz", **changed)
    resealed(pack, "canary.npz")
    run = run_canary(pack, threads=1)
    assert not run.passed
    assert 0.005 < run.error < 0.02


def test_what_can_not_be_packed_is_refused_by_name(built: Path, tmp_path: Path) -> None:
    for target, told in (("iree", "was not built for iree"), ("ethos-u", "nothing here runs its artifacts")):
        with pytest.raises(InputError, match=told):
            pack_bundle(built, target, tmp_path / "p")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    with pytest.raises(BundleError, match="is not a pack, so it is not overwritten"):
        pack_bundle(built, "openvino", tmp_path / "mine", overwrite=True)
