"""Documents are read as they are meant, or fail alone with the reason."""

from __future__ import annotations

import codecs
import json

import pytest

from twoheads.runtime.documents.source import Document, inspect_documents, read_documents

BOM = codecs.BOM_UTF8


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "texts"
    (path / "deep").mkdir(parents=True)
    (path / "a.txt").write_bytes(BOM + b"one")
    (path / "deep" / "b.md").write_text("two")
    (tmp_path / "secret.txt").write_text("secret")
    return path


def test_a_byte_order_mark_is_no_text(folder, tmp_path):
    assert next(read_documents(folder)) == Document("a.txt", text="one")
    lines = tmp_path / "l.jsonl"
    lines.write_bytes(BOM + b'{"text": "one"}\n{"text": "two"}\n')
    assert [document.text for document in read_documents(lines)] == ["one", "two"]
    lines.write_bytes(BOM + b'\n{"text": "two"}\n')
    assert list(read_documents(lines)) == [Document(2, text="two")]


def test_links_out_of_the_folder_are_read_if_asked_for(folder, tmp_path):
    (folder / "inside.txt").symlink_to("deep/b.md")
    (folder / "out.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "away").symlink_to(tmp_path)
    found = {document.name: document for document in read_documents(folder)}
    assert sorted(map(str, found)) == ["a.txt", "deep/b.md", "inside.txt", "out.txt"]
    assert found["inside.txt"].text == "two"
    assert found["out.txt"].text is None
    assert "leads out of the folder" in str(found["out.txt"].error)
    followed = {document.name: document.text for document in read_documents(folder, follow_links=True)}
    assert followed["out.txt"] == "secret"
    count, digest = inspect_documents(folder)
    assert (count, digest) != inspect_documents(folder, follow_links=True)
    assert count == len(found)
    (tmp_path / "secret.txt").write_text("another secret")
    assert inspect_documents(folder) == (count, digest), "what is not followed is not looked at"


@pytest.mark.parametrize("name", [True, False, 1.5, None, [1], {}])
def test_ids_that_are_none(tmp_path, name):
    lines = tmp_path / "l.jsonl"
    lines.write_text(json.dumps({"id": name, "text": "x"}))
    (found,) = read_documents(lines)
    assert found.name == 1
    assert "neither text nor a whole number" in str(found.error)


def test_an_id_is_of_one_document(tmp_path):
    lines = tmp_path / "l.jsonl"
    entries: list[dict[str, object]] = [
        {"id": "a"},
        {"id": "b"},
        {"id": "a"},
        {"id": 7},
        {},
        {"id": "5"},
        {},
        {"id": 5},
    ]
    lines.write_text("".join(json.dumps({**entry, "text": "x"}) + "\n" for entry in entries))
    found = list(read_documents(lines))
    assert [document.name for document in found] == ["a", "b", "a", 7, 5, "5", 7, 5]
    failed = [number for number, document in enumerate(found) if document.error is not None]
    assert failed == [2, 6, 7], "the number of a line is an id as well"
    assert "has the id 'a' of an earlier document" in str(found[2].error)
