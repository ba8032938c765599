"""Signing a bundle: ed25519 over its manifest; see :mod:`twoheads.runtime.bundle.signature`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from twoheads.graphs.errors import InputError
from twoheads.graphs.serialization.bundle_format import MANIFEST, SIGNATURE

__all__ = ["SigningKey", "read_signing_key", "sign_bundle"]

WRONG_KEY = "give an ed25519 private key without a passphrase: openssl genpkey -algorithm ed25519 -out KEY"


class SigningKey(Protocol):
    """What signs, such as a key of the package cryptography, or one that never leaves its hardware."""

    def sign(self, data: bytes, /) -> bytes:
        """The ed25519 signature of ``data``, 64 bytes."""
        ...


def read_signing_key(path: str | os.PathLike[str]) -> SigningKey:
    """The private key in a file, in PEM or as OpenSSH writes it.

    Raises:
        InputError: There is none, it has a passphrase, or the package cryptography is missing.
    """
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key
    except ImportError as error:
        fix = 'pip install "twoheads[signing]"'
        raise InputError("signatures", f"need the package cryptography ({error})", fix) from error
    try:
        content = Path(path).read_bytes()
        load = load_ssh_private_key if b"OPENSSH" in content[:64] else load_pem_private_key
        found = load(content, password=None)
    except OSError as error:
        raise InputError(str(path), f"can't be read: {error.strerror or error}", WRONG_KEY) from None
    except (TypeError, ValueError, UnsupportedAlgorithm) as error:
        raise InputError(str(path), f"holds no private key that can be used: {error}", WRONG_KEY) from None
    if not isinstance(found, Ed25519PrivateKey):
        raise InputError(str(path), "is a key of another kind than ed25519", WRONG_KEY)
    return found


def sign_bundle(folder: Path, key: SigningKey) -> None:
    """Writes the signature of the manifest in ``folder`` beside it."""
    (folder / SIGNATURE).write_bytes(key.sign((folder / MANIFEST).read_bytes()))
