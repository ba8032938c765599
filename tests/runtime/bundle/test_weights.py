"""A weight is compared with its sha256 when it is read first: bundles open unread, damaged numbers never count."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.tiny_bundle import read_manifest, write_manifest, write_tiny
from tests.runtime.tiny_model import Tiny, random_tokens
from twoheads.graphs.errors import BundleError, InputError
from twoheads.graphs.serialization.bundle_format import WEIGHT_HASHES, WEIGHTS, WeightEntry
from twoheads.runtime import load
from twoheads.runtime.bundle import weights as weights_of
from twoheads.runtime.bundle.reader import read_bundle
from twoheads.runtime.bundle.weights import Weights

TINY = Tiny(layers=2)


def nbytes(entry: dict[str, Any]) -> int:
    return int(np.prod(entry["shape"])) * np.dtype(entry["dtype"]).itemsize


def list_hashes(bundle: Path, hashes: Mapping[str, Any]) -> None:
    """Writes the file of hashes, and says so in the manifest."""
    content = json.dumps(hashes).encode()
    (bundle / WEIGHT_HASHES).write_bytes(content)
    manifest = read_manifest(bundle)
    entry = {"kind": "FileEntry", "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest["files"][WEIGHT_HASHES] = entry
    write_manifest(bundle, manifest)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that lists the sha256 of each weight."""
    bundle = write_tiny(tmp_path_factory.mktemp("weights") / "bundle", TINY)
    data, entries = (bundle / WEIGHTS).read_bytes(), read_manifest(bundle)["weights"]
    parts = {name: data[entry["offset"] : entry["offset"] + nbytes(entry)] for name, entry in entries.items()}
    list_hashes(bundle, {name: hashlib.sha256(part).hexdigest() for name, part in parts.items()})
    return bundle


@pytest.fixture
def bundle(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "bundle"))


def damage(bundle: Path, name: str) -> None:
    entry = read_manifest(bundle)["weights"][name]
    with (bundle / WEIGHTS).open("r+b") as file:
        file.seek(entry["offset"] + nbytes(entry) - 1)
        last = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([last[0] ^ 1]))


def test_a_whole_bundle_runs_as_without_checks(bundle: Path) -> None:
    tokens = random_tokens(TINY, 40)
    found, expected = (load(bundle, check=check).run(tokens, output="logits").array for check in ("read", "size"))
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


def test_no_damaged_weight_gives_a_number(whole: Path, tmp_path: Path) -> None:
    names = list(read_manifest(whole)["weights"])
    assert len(names) >= 6
    for at, name in enumerate(names):
        bundle = Path(shutil.copytree(whole, tmp_path / str(at)))
        damage(bundle, name)
        opened = load(bundle)
        for _ in range(2):  # it is not taken for checked
            with pytest.raises(BundleError, match=f"weight {name} has another sha256"):
                opened.run(random_tokens(TINY, 40), output="logits")
        with pytest.raises(BundleError, match=r"weights\.bin: is altered"):
            load(bundle, check="full")


def test_opening_reads_no_weight(bundle: Path) -> None:
    for name in read_manifest(bundle)["weights"]:
        damage(bundle, name)
    assert read_bundle(bundle, check="read").weight_hashes is not None
    load(bundle)


def test_without_hashes_the_file_is_checked_before(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    del manifest["files"][WEIGHT_HASHES]
    (bundle / WEIGHT_HASHES).unlink()
    write_manifest(bundle, manifest)
    assert read_bundle(bundle, check="read").weight_hashes is None
    damage(bundle, next(iter(manifest["weights"])))
    with pytest.raises(BundleError, match=r"weights\.bin: is altered"):
        load(bundle)


def test_hashes_that_are_damaged_or_of_other_weights(bundle: Path) -> None:
    hashes: dict[str, Any] = json.loads((bundle / WEIGHT_HASHES).read_text())
    (first, *_) = hashes
    missing = {name: value for name, value in hashes.items() if name != first}
    for wrong in (missing, hashes | {"another": "0" * 64}, hashes | {first: 7}):
        list_hashes(bundle, wrong)
        with pytest.raises(BundleError, match="does not list the sha256 of each weight"):
            load(bundle)
    list_hashes(bundle, hashes)
    (bundle / WEIGHT_HASHES).write_bytes((bundle / WEIGHT_HASHES).read_bytes()[:-1] + b" ")
    with pytest.raises(BundleError, match="sha256"):
        load(bundle)


def test_a_weight_is_hashed_once(bundle: Path) -> None:
    weights = read_bundle(bundle, check="read").open_weights()
    name, entry = next(iter(read_bundle(bundle, check="size").manifest.weights.items()))
    assert isinstance(entry, WeightEntry)
    expected = weights.view(name)
    damage(bundle, name)
    assert weights.view(name).shape == expected.shape
    with pytest.raises(BundleError, match="has another sha256"):
        read_bundle(bundle, check="read").open_weights().view(name)


def test_several_weights_are_hashed_at_the_same_time_and_once(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, names = read_bundle(bundle, check="read").open_weights(), list(read_manifest(bundle)["weights"])
    together, hashed, digest = threading.Barrier(2), list[int](), Weights._hash

    def hash_of(self: Weights, offset: int, size: int) -> str:
        if len(hashed) < 2:
            hashed.append(offset)
            together.wait(10)  # for another one that has begun, too
        else:
            hashed.append(offset)
        return digest(self, offset, size)

    monkeypatch.setattr(Weights, "_hash", hash_of)
    weights.check([*names, *names])
    for name in names:
        weights.view(name)
    assert len(hashed) == len(names)


def test_a_damaged_weight_is_found_among_several(bundle: Path) -> None:
    names = list(read_manifest(bundle)["weights"])
    damage(bundle, names[-1])
    weights = read_bundle(bundle, check="read").open_weights()
    with pytest.raises(BundleError, match="sha256"):
        weights.check(names)
    with pytest.raises(BundleError, match="sha256"):  # and again
        weights.view(names[-1])


def test_an_unknown_check_is_refused(bundle: Path) -> None:
    with pytest.raises(InputError, match="say one of read, full, size"):
        load(bundle, check="most")


def test_large_weights_are_hashed_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages are let go between them; a bit in any piece is noticed."""
    monkeypatch.setattr(weights_of, "CHUNK", 1 << 20)
    numbers = np.arange(3 << 18, dtype=np.float32)
    path = tmp_path / "weights.bin"
    path.write_bytes(numbers.tobytes())
    entries = {"a": WeightEntry(0, "float32", numbers.shape)}
    hashes = {"a": hashlib.sha256(numbers.tobytes()).hexdigest()}
    np.testing.assert_array_equal(Weights(path, entries, hashes).view("a"), numbers)
    for at in (0, 1 << 20, 3 * (1 << 20) - 1):
        damaged = bytearray(numbers.tobytes())
        damaged[at] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(BundleError, match="its weight a has another sha256"):
            Weights(path, entries, hashes).view("a")


def test_pages_are_let_go_while_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads meanwhile gets the same numbers, and nobody lets go afterwards."""
    numbers = np.arange(1 << 18, dtype=np.float32)
    (tmp_path / "weights.bin").write_bytes(numbers.tobytes())
    weights = Weights(tmp_path / "weights.bin", {"w": WeightEntry(0, "float32", numbers.shape)})
    times: list[int] = []
    twice, let_go = threading.Event(), Weights.let_go

    def counted(self: Weights, names: Any) -> None:
        let_go(self, names)
        times.append(threading.get_ident())
        if len(times) > 1:
            twice.set()

    monkeypatch.setattr(Weights, "let_go", counted)
    with weights.letting_go(["w"]):
        assert twice.wait(60)
        np.testing.assert_array_equal(weights.view("w"), numbers)
    seen = len(times)
    assert times[0] != times[-1] == threading.get_ident()
    time.sleep(0.1)
    assert len(times) == seen
    np.testing.assert_array_equal(weights.view("w"), numbers)
