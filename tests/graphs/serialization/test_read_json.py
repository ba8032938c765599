"""JSON within limits: everything that can be wrong with it is one clear error."""

from __future__ import annotations

from pathlib import Path

import pytest

from twoheads.graphs.errors import BundleError, InputError
from twoheads.graphs.serialization.read_json import DEEPEST, parse_json, read_json


def test_a_byte_order_mark_is_none_of_the_data() -> None:
    assert parse_json(b'\xef\xbb\xbf{"a": [1]}', "x") == {"a": [1]}


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is not JSON"),
        (b"\xff", "is not UTF-8: .* at byte 0"),
        (b'{"a": 1', "is not JSON"),
        (b"[" * 1_000_000, "nested"),
        (b"[" * (DEEPEST + 1) + b"]" * (DEEPEST + 1), "nested"),
        (b'{"a":' * (DEEPEST + 1) + b"1" + b"}" * (DEEPEST + 1), "nested"),
        (b"1" * 5000, "is not JSON"),
    ],
)
def test_what_is_no_data_is_refused(data: bytes, problem: str) -> None:
    with pytest.raises(InputError, match=f"(?s)here: .*{problem}"):
        parse_json(data, "here")


def test_what_is_just_deep_enough_passes() -> None:
    assert parse_json(b"[" * DEEPEST + b"]" * DEEPEST, "x")
    assert len(parse_json(b"[" + b"[]," * 1000 + b"[]]", "x")) == 1001


def test_files(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"[" + b" " * 100 + b"]")
    assert read_json(tmp_path / "a.json", largest=102) == []
    for path, problem in (("a.json", "larger than 101"), ("b.json", "can't be read"), ("a\0", "can't be read")):
        with pytest.raises(BundleError, match=problem):
            read_json(f"{tmp_path}/{path}", largest=101, error=BundleError)
    with pytest.raises(InputError, match="can't be read"):
        read_json(tmp_path)
