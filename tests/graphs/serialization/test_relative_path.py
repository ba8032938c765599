"""A name of a file in what others wrote can't lead out of the folder, whatever it says."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twoheads.graphs.serialization.json_codec import FormatError, from_json, to_json
from twoheads.graphs.serialization.relative_path import AbsolutePath, RelativePath

OUTSIDE = ["/etc/hostname", "..", "../x", "a/../../x", "a/..", ".", "./a", "a/.", "", "a//b", "/", "a/", "a\\b", "C:/x"]
ODD = ["a\0b", "a\nb", "\x7f", "\ud800"]


@dataclass(frozen=True, slots=True)
class Listing:
    """A file of names, some of them keys."""

    first: RelativePath
    sizes: dict[RelativePath, int]


@pytest.mark.parametrize("text", [*OUTSIDE, *ODD])
def test_what_is_no_path_below_a_folder(text: str) -> None:
    with pytest.raises(ValueError, match="not a plain path below its folder"):
        RelativePath(text)
    with pytest.raises(FormatError, match=r"^Listing\.first: .*plain path"):
        from_json(Listing, {"first": text, "sizes": {}})
    with pytest.raises(FormatError, match=r"^Listing\.sizes: .*plain path"):
        from_json(Listing, {"first": "a", "sizes": {text: 1}})


def test_names_round_trip() -> None:
    listing = Listing(RelativePath("engines/a.onnx"), {RelativePath("ä b/c.bin"): 3})
    read = from_json(Listing, json.loads(json.dumps(to_json(listing))))
    assert read == listing
    assert type(read.first) is RelativePath
    assert [type(name) for name in read.sizes] == [RelativePath]
    assert (RelativePath("a").is_name, read.first.is_name) == (True, False)


@given(st.text(alphabet=st.sampled_from("a./\\: \0")))
def test_whatever_is_accepted_lies_below(text: str) -> None:
    try:
        path = RelativePath(text)
    except ValueError:
        return
    joined = os.path.normpath(Path("/folder") / path)
    assert joined.startswith("/folder/")
    assert Path("/folder", path).as_posix() == f"/folder/{text}"


def test_a_path_of_a_job_is_absolute_and_names_a_file(tmp_path: Path) -> None:
    assert AbsolutePath(str(tmp_path)) == str(tmp_path)
    assert AbsolutePath(os.fsdecode(b"/a/\xff")) == "/a/\udcff"
    for text in ("", "x", "../x", "/a\0b", "/\ud800"):
        with pytest.raises(ValueError, match="is no"):
            AbsolutePath(text)
