"""Signed bundles: what a key signed is read, and nothing else where that key is required."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.runtime.tiny_bundle import read_manifest, rehash, write_manifest, write_tiny
from tests.runtime.tiny_model import Tiny
from twoheads.export.accelerators.build import build_target
from twoheads.export.bundle.signing import read_signing_key, sign_bundle
from twoheads.graphs.errors import BundleError, InputError, TwoheadsError
from twoheads.runtime import load
from twoheads.runtime.bundle.reader import read_bundle
from twoheads.runtime.bundle.signature import read_public_key, signature_required

PEM, SSH = serialization.Encoding.PEM, serialization.Encoding.OpenSSH
PLAIN = serialization.NoEncryption()


def write_keys(folder: Path, name: str, *, ssh: bool = False) -> tuple[Path, Path]:
    """A new private and public key in files."""
    key = Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    forms = serialization.PrivateFormat, serialization.PublicFormat
    private.write_bytes(key.private_bytes(PEM, forms[0].OpenSSH if ssh else forms[0].PKCS8, PLAIN))
    shape = (SSH, forms[1].OpenSSH) if ssh else (PEM, forms[1].SubjectPublicKeyInfo)
    public.write_bytes(key.public_key().public_bytes(*shape))
    return private, public


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("whole") / "b", Tiny(layers=1))


@pytest.fixture
def bundle(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "b"))


@pytest.mark.parametrize("ssh", [False, True])
def test_what_a_key_signed_is_read(bundle, tmp_path, ssh):
    private, public = write_keys(tmp_path, "k", ssh=ssh)
    sign_bundle(bundle, read_signing_key(private))
    assert load(bundle, require_signature=public).run([1, 2]).array is not None
    assert load(bundle).run([1, 2]).array is not None  # nobody has to look at it


def test_what_nobody_or_somebody_else_signed_is_refused(bundle, tmp_path):
    private, public = write_keys(tmp_path, "mine")
    _, other = write_keys(tmp_path, "other")
    with pytest.raises(BundleError, match="is not signed"):
        load(bundle, require_signature=public)
    sign_bundle(bundle, read_signing_key(private))
    with pytest.raises(BundleError, match="is no signature of this bundle by"):
        load(bundle, require_signature=other)
    (bundle / "manifest.sig").write_bytes(b"\0" * 63)
    with pytest.raises(BundleError, match="is no signature of this bundle by"):
        load(bundle, require_signature=public)
    (bundle / "manifest.sig").unlink()
    (bundle / "manifest.sig").symlink_to(tmp_path / "mine.pub")
    with pytest.raises(BundleError, match="link that leaves"):
        load(bundle, require_signature=public)


def test_every_file_that_is_changed_is_noticed(bundle, tmp_path):
    """Also by those who would look at sizes only, and with a manifest that has the new sha256."""
    private, public = write_keys(tmp_path, "k")
    sign_bundle(bundle, read_signing_key(private))
    for name in read_manifest(bundle)["files"]:
        path = bundle / name
        content, manifest = path.read_bytes(), (bundle / "manifest.json").read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with signature_required(public), pytest.raises(BundleError, match="altered"):
            read_bundle(bundle, check="size", engines=False)
        rehash(bundle, name)
        with pytest.raises(BundleError, match="is no signature of this bundle"):
            load(bundle, require_signature=public)
        path.write_bytes(content)
        (bundle / "manifest.json").write_bytes(manifest)
    write_manifest(bundle, read_manifest(bundle) | {"producer": "me"})
    with pytest.raises(BundleError, match="is no signature of this bundle"):
        load(bundle, require_signature=public)


def test_openssl_signs_and_checks_as_well(bundle, tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    private, public, signature = tmp_path / "k", tmp_path / "k.pub", bundle / "manifest.sig"

    def openssl(*words: object) -> None:
        subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)

    openssl("genpkey", "-algorithm", "ed25519", "-out", private)
    openssl("pkey", "-in", private, "-pubout", "-out", public)
    sign_bundle(bundle, read_signing_key(private))
    given = ("-rawin", "-in", bundle / "manifest.json")
    openssl("pkeyutl", "-verify", "-pubin", "-inkey", public, *given, "-sigfile", signature)
    signature.unlink()
    openssl("pkeyutl", "-sign", "-inkey", private, *given, "-out", signature)
    load(bundle, require_signature=public)


def test_files_that_are_no_such_keys(tmp_path):
    private, public = write_keys(tmp_path, "k")
    curve = generate_private_key(SECP256R1())
    (tmp_path / "curve").write_bytes(curve.private_bytes(PEM, serialization.PrivateFormat.PKCS8, PLAIN))
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    (tmp_path / "curve.pub").write_bytes(curve.public_key().public_bytes(PEM, form))
    locked = serialization.BestAvailableEncryption(b"secret")
    key = Ed25519PrivateKey.generate().private_bytes(PEM, serialization.PrivateFormat.PKCS8, locked)
    (tmp_path / "locked").write_bytes(key)
    (tmp_path / "garbage").write_bytes(b"\xff\0garbage")
    for path in (public, tmp_path / "curve", tmp_path / "locked", tmp_path / "garbage", tmp_path / "nothing", tmp_path):
        with pytest.raises(InputError):
            read_signing_key(path)
    for path in (private, tmp_path / "curve.pub", tmp_path / "garbage", tmp_path / "nothing", tmp_path):
        with pytest.raises(InputError):
            read_public_key(path)


def test_sizes_alone_prove_nothing(bundle, tmp_path):
    private, public = write_keys(tmp_path, "k")
    sign_bundle(bundle, read_signing_key(private))
    with pytest.raises(InputError, match="a signature is one of the sha256"):
        load(bundle, check="size", require_signature=public)


def test_what_is_built_is_signed_anew_or_not_at_all(bundle, tmp_path):
    private, public = write_keys(tmp_path, "k")
    sign_bundle(bundle, read_signing_key(private))
    build_target(bundle, "openvino", sign=read_signing_key(private))
    assert "openvino" in load(bundle, require_signature=public).manifest.targets
    build_target(bundle, "openvino")
    assert not (bundle / "manifest.sig").exists()


def test_commands_require_signatures(cli, tiny_llama, text, tmp_path, monkeypatch):
    private, public = write_keys(tmp_path, "k")
    signed, plain = tmp_path / "signed", tmp_path / "plain"
    assert cli("compile", tiny_llama, "-o", signed, "--block-size", 16, "--no-generation", "--sign", private).code == 0
    shutil.copytree(signed, plain)
    (plain / "manifest.sig").unlink()
    tokens = ("--text", text, "-o", tmp_path / "o.npz")
    commands = {
        "run": tokens,
        "batch": ("--lines", text, "-o", tmp_path / "l.npz"),
        "plan": ("-n", 40),
        "inspect": (),
        "profile": ("-o", tmp_path / "p.json"),
        "verify": ("--against", tiny_llama),
        "bench": ("--length", 32),
        "lint": ("--target", "qnn"),
        "build": ("--target", "openvino"),
        "debug": ("--engine", "attention_0", "--against", "openvino", "-o", tmp_path / "d"),
        "export": ("-o", tmp_path / "m.onnx"),
    }
    for name, words in commands.items():
        assert "is not signed" in cli(name, plain, *words, "--require-signature", public).refused(), name
    assert cli("run", signed, *tokens, "--require-signature", public).code == 0
    assert f"by {public}" in cli("inspect", signed, "--require-signature", public).out.replace("\n", "")
    assert "not compared" in cli("run", signed, *tokens, "--require-signature", public, "--check", "size").refused()
    monkeypatch.setenv("TWOHEADS_REQUIRE_SIGNATURE", str(public))
    assert "is not signed" in cli("run", plain, *tokens).refused()
    assert "is for bundles" in cli("plan", tiny_llama, "-n", 40).refused()


def test_the_requirement_ends_with_its_command(cli, bundle, tmp_path):
    _, public = write_keys(tmp_path, "k")
    assert cli("inspect", bundle, "--require-signature", public).code == 1
    assert cli("inspect", bundle).code == 0
    with pytest.raises(TwoheadsError), signature_required(tmp_path / "nothing"):
        pass
