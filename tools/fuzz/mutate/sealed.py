"""Mutations of files that hold a checksum of themselves: of what they hold, with the checksum mended or not."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from random import Random
from typing import Any

from tools.fuzz.mutate.plain import mutated_bytes, mutated_json, mutated_tree

__all__ = ["mutated_page", "mutated_sealed", "page_again", "seal", "sealed_again", "unseal"]

MAGIC, PAGE_HEADER = 16, 48
"""Bytes of a page's first line, and of it and the digest."""


def unseal(data: bytes) -> Any:
    """What a file of a job holds."""
    return json.loads(json.loads(data)["content"])


def seal(content: Any, version: int = 2) -> bytes:
    """A file of a job that holds ``content``, with its checksum."""
    text = content if isinstance(content, str) else json.dumps(content)
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return json.dumps({"format": version, "sha256": digest, "content": text}).encode()


def mutated_sealed(data: bytes, draw: Random) -> bytes:
    """A job's file with other content, mostly with its checksum mended."""
    if draw.random() < 0.15:
        return mutated_json(data, draw)
    tree = unseal(data)
    if draw.random() < 0.1:
        return seal(draw.choice(("[]", "null", "1", '"x"', "{}", "[" * 100_000, "{", "")))
    mutated_tree(tree, draw)
    return seal(tree, draw.choice((2, 2, 2, 2, 2, 2, 2, 2, 1, 3)))


def sealed_again(job: Path) -> None:
    """Makes the journal in the folder ``job`` one of its ``job.json``, whatever became of that."""
    journal = job / "journal.json"
    content = unseal(journal.read_bytes())
    content["job"] = hashlib.sha256((job / "job.json").read_bytes()).hexdigest()
    journal.write_bytes(seal(content))


def page_again(file: Path) -> None:
    """Mends the digest of a page, which is one of its file's name and of what it holds."""
    data = file.read_bytes()
    digest = hashlib.sha256(bytes.fromhex(file.stem) + data[PAGE_HEADER:]).digest()
    file.write_bytes(data[:MAGIC] + digest + data[PAGE_HEADER:])


def mutated_page(data: bytes, draw: Random) -> bytes:
    """A page of a cache with bytes changed."""
    if draw.random() < 0.3:
        return data[:PAGE_HEADER] + mutated_bytes(data[PAGE_HEADER:], draw)
    return draw.choice((mutated_bytes(data, draw), b"", data * 2, data[:PAGE_HEADER], data[: len(data) // 2]))
