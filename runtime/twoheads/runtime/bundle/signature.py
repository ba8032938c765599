"""Signatures of bundles: ed25519 over the bytes of the manifest, which names every other file by its sha256.

The signature lies beside the manifest as ``manifest.sig``, 64 bytes, as ``openssl pkeyutl -sign -rawin`` writes it. A
key is what ``openssl genpkey -algorithm ed25519`` or ``ssh-keygen -t ed25519`` makes. Needs the package cryptography.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

from twoheads.graphs.errors import BundleError, InputError
from twoheads.graphs.serialization.bundle_format import SIGNATURE
from twoheads.runtime.bundle.inside import inside

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

__all__ = ["check_signature", "read_public_key", "required_key", "signature_required"]

NO_PACKAGE = 'pip install "twoheads[signing]"'
WRONG_KEY = "give an ed25519 public key: openssl pkey -in KEY -pubout -out PUBKEY"
UNSIGNED = "use a bundle that was signed with that key, by `twoheads compile --sign KEY`; another one may be anybody's"

_required: list[Path] = []


@contextlib.contextmanager
def signature_required(key: Path | None) -> Generator[None]:
    """While it is open, every bundle that this process reads must be signed by ``key``, unless that is ``None``."""
    if key is None:
        yield
        return
    read_public_key(key)  # a wrong key is told before anything else
    _required.append(key)
    try:
        yield
    finally:
        _required.pop()


def required_key() -> Path | None:
    """The key by which bundles must be signed now."""
    return _required[-1] if _required else None


def check_signature(folder: Path, manifest: bytes, key: str | os.PathLike[str]) -> None:
    """Checks that the bundle ``folder``, whose manifest is these bytes, was signed by whoever has the key of ``key``.

    Raises:
        BundleError: It is not signed, or not by that key.
        InputError: ``key`` holds no public key, or the package cryptography is missing.
    """
    public = read_public_key(key)
    from cryptography.exceptions import InvalidSignature

    if not os.path.lexists(folder / SIGNATURE):
        raise BundleError(str(folder), f"is not signed: it has no {SIGNATURE}", UNSIGNED)
    signature = inside(folder, SIGNATURE).read_bytes()
    try:
        public.verify(signature, manifest)
    except InvalidSignature:
        raise BundleError(str(folder / SIGNATURE), f"is no signature of this bundle by {key}", UNSIGNED) from None


def read_public_key(path: str | os.PathLike[str]) -> Ed25519PublicKey:
    """The public key in a file, in PEM or as OpenSSH writes it.

    Raises:
        InputError: There is none, or the package cryptography is missing.
    """
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key, load_ssh_public_key
    except ImportError as error:
        raise InputError("signatures", f"need the package cryptography ({error})", NO_PACKAGE) from error
    try:
        content = Path(path).read_bytes()
        found = load_pem_public_key(content) if content.startswith(b"-----") else load_ssh_public_key(content)
    except OSError as error:
        raise InputError(str(path), f"can't be read: {error.strerror or error}", WRONG_KEY) from None
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputError(str(path), f"holds no public key: {error}", WRONG_KEY) from None
    if not isinstance(found, Ed25519PublicKey):
        raise InputError(str(path), "is a key of another kind than ed25519", WRONG_KEY)
    return found
