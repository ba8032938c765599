"""Documents into a folder of results: equal to single runs, in order, whatever fails or kills it on the way."""

from __future__ import annotations

import contextlib
import json
import signal
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.killed import Forks, forks
from tests.runtime.tiny_bundle import write_tiny
from tests.runtime.tiny_model import Tiny, random_tokens
from twoheads.graphs.errors import InputError, TwoheadsError
from twoheads.graphs.program.program import Limit, Pooling
from twoheads.graphs.schedule.spill import plan_spill
from twoheads.runtime import LoadedBundle, load
from twoheads.runtime.documents import document_run
from twoheads.runtime.documents.document_run import run_documents

TINY = Tiny(masks=("full",), pooling=Pooling("mean", True), max_length=Limit(60, "a table"))
TOLERANCE = 5e-5
LENGTHS = (1, 16, 17, 40, 3, 60, 32, 5, 21, 2, 48, 9)


@pytest.fixture(scope="module")
def tokenizer() -> str:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    made = Tokenizer(models.WordLevel({word: at for at, word in enumerate(("[UNK]", "[END]", "a", "b"))}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(["[END]"])
    made.post_processor = processors.TemplateProcessing(single="$A [END]", special_tokens=[("[END]", 1)])
    return made.to_str()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, tokenizer: str) -> LoadedBundle:
    return load(write_tiny(tmp_path_factory.mktemp("bundle") / "b", TINY, tokenizer=tokenizer), threads=2)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(document_run, "PART_TOKENS", 64)


def tokens_of(at: int) -> list[int]:
    return random_tokens(TINY, LENGTHS[at], at).reshape(-1).tolist()


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    return write_lines(tmp_path, *({"id": f"d{at}", "input_ids": tokens_of(at)} for at in range(len(LENGTHS))))


def write_lines(folder: Path, *lines: Any) -> Path:
    path = folder / "in.jsonl"
    written = (line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    path.write_bytes(b"\n".join(written))
    return path


def index(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "index.jsonl").read_text().splitlines()]


def rows(out: Path, entry: dict[str, Any]) -> Any:
    return np.load(out / entry["part"], mmap_mode="r")[entry["row"] : entry["row"] + entry["rows"]]


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name not in (".job", "run.json")}


@pytest.mark.parametrize("output", ["embedding", "hidden", "logits", "last"])
@pytest.mark.usefixtures("small_parts")
def test_every_document_has_its_rows_in_order(bundle, lines, tmp_path, output):
    told = []
    done = run_documents(bundle, lines, tmp_path / "out", output=output, progress=lambda *seen: told.append(seen))
    entries = index(tmp_path / "out")
    assert [entry["id"] for entry in entries] == [f"d{at}" for at in range(len(LENGTHS))]
    assert [entry["document"] for entry in entries] == list(range(len(LENGTHS)))
    for at, entry in enumerate(entries):
        alone = bundle.run(np.array(tokens_of(at)), output=output).array
        got = rows(tmp_path / "out", entry)
        np.testing.assert_allclose(got, alone.reshape(-1, alone.shape[-1]), rtol=0, atol=TOLERANCE)
        assert entry["tokens"] == LENGTHS[at]
    assert (done.documents, done.failed, done.tokens) == (len(LENGTHS), 0, sum(LENGTHS))
    assert done.engine_calls - done.repeated_calls == done.formula_calls > 0
    assert done.parts == len({entry["part"] for entry in entries}) == len(told) > 3
    assert told[-1] == (done, len(LENGTHS))
    summary = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (summary["finished"], summary["documents"], summary["output"]) == (True, len(LENGTHS), output)


def test_a_folder_of_texts_goes_by_path(bundle, tmp_path):
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    for name, text in {"b.txt": "a b", "a.md": "b", "deep/c.txt": "a a a", "no.rst": "a", "z.txt": "b a"}.items():
        (folder / name).write_text(text)
    (folder / "y.txt").write_bytes(b"a \xff")
    run_documents(bundle, folder, tmp_path / "out")
    entries = index(tmp_path / "out")
    assert [entry["id"] for entry in entries] == ["a.md", "b.txt", "deep/c.txt", "y.txt", "z.txt"]
    assert [entry.get("tokens") for entry in entries] == [2, 3, 4, None, 3], "each with [END]"
    assert "not UTF-8" in entries[3]["error"]
    want = bundle.run(np.array([3, 2, 1])).array
    np.testing.assert_allclose(rows(tmp_path / "out", entries[4])[0], want, rtol=0, atol=TOLERANCE)


def test_what_is_wrong_with_a_document_stops_no_other(bundle, tmp_path):
    bad = {
        b"{bad": "not JSON",
        b'{"text": "\xff"}': "not UTF-8",
        b'{"text": "\\ud800"}': "not UTF-8",
        b"[1]": "no object",
        b"{}": "no text or input_ids",
        b'{"text": "a", "input_ids": [1]}': "both",
        b'{"text": 3}': "no text",
        b'{"text": "  "}': "empty",
        b'{"input_ids": []}': "empty",
        b'{"input_ids": [1, 2.5]}': "whole numbers",
        b'{"input_ids": [99999999999999999999]}': "whole numbers",
        b'{"input_ids": [1, 40]}': "0 to 39",
        b'{"input_ids": [-1]}': "0 to 39",
        json.dumps({"input_ids": [1] * 61}).encode(): "61 tokens exceed",
        json.dumps({"text": "a " * 60}).encode(): "61 tokens exceed",
        b'{"text": "a", "id": [1]}': "id",
    }
    good = b'{"text": "a b a"}'
    source = write_lines(tmp_path, *(line for pair in zip(bad, [good] * len(bad), strict=True) for line in pair), b" ")
    done = run_documents(bundle, source, tmp_path / "out")
    entries = index(tmp_path / "out")
    assert (done.documents, done.failed) == (2 * len(bad), len(bad)) == (len(entries), len(bad))
    assert [entry["id"] for entry in entries] == list(range(1, 2 * len(bad) + 1)), "a line's number"
    for entry, problem in zip(entries[::2], bad.values(), strict=True):
        assert problem in entry["error"]
    for entry in entries[1::2]:
        first = rows(tmp_path / "out", entries[1])
        np.testing.assert_allclose(rows(tmp_path / "out", entry), first, rtol=0, atol=TOLERANCE)


def test_only_failures_are_a_result_too(bundle, tmp_path):
    done = run_documents(bundle, write_lines(tmp_path, b"{bad"), tmp_path / "out")
    assert (done.failed, done.parts) == (1, 0)
    assert "error" in index(tmp_path / "out")[0]


def test_truncation_keeps_special_tokens(bundle, tmp_path):
    source = write_lines(tmp_path, {"text": "a " * 99}, {"input_ids": [2] * 61}, {"text": "b"})
    done = run_documents(bundle, source, tmp_path / "out", truncate=True)
    entries = index(tmp_path / "out")
    assert done.failed == 0
    assert [(entry["tokens"], entry.get("cut_from")) for entry in entries] == [(60, 100), (60, 61), (2, None)]
    for entry, tokens in zip(entries, ([2] * 59 + [1], [2] * 60), strict=False):
        want = bundle.run(np.array(tokens)).array
        np.testing.assert_allclose(rows(tmp_path / "out", entry)[0], want, rtol=0, atol=TOLERANCE)


KILLED = """
    import os, signal, sys
    from twoheads.runtime.documents import document_run
    from twoheads.runtime import Job, load
    from twoheads.runtime.documents.results import ResultFolder
    from pathlib import Path

    document_run.PART_TOKENS = 64
    bundle, source, out, moment = arguments
    die = lambda: os.kill(os.getpid(), signal.SIGKILL)
    if moment == "after a part":
        document_run.run_documents(load(bundle), source, out, progress=lambda done, _: done.parts == 2 and die())
    elif moment == "before the journal":
        Job.write_journal = lambda job, content: die()
        document_run.run_documents(load(bundle), source, out)
    else:
        original = Path.replace
        def replace(path, target):
            if path.name == "part-00001.partial":
                die()
            return original(path, target)
        Path.replace = replace
        document_run.run_documents(load(bundle), source, out)
"""


@pytest.fixture(scope="module")
def killed() -> Iterator[Forks]:
    """Programs that run documents and kill themselves."""
    with forks("import twoheads.runtime.documents.document_run") as made:
        yield made


@pytest.mark.parametrize("moment", ["after a part", "before the journal", "within a part"])
@pytest.mark.usefixtures("small_parts")
def test_a_killed_run_goes_on_with_the_same_bits(bundle, lines, tmp_path, moment, killed):
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
    whole = run_documents(load(bundle.path, threads=1), lines, undisturbed)
    assert killed(textwrap.dedent(KILLED), bundle.path, lines, out, moment) == -signal.SIGKILL
    assert contents(out) != contents(undisturbed)
    done = run_documents(bundle, lines, out)
    assert contents(out) == contents(undisturbed)
    assert replace(done, seconds=0) == replace(whole, seconds=0)


def test_a_finished_folder_is_not_run_again(bundle, lines, tmp_path, monkeypatch):
    done = run_documents(bundle, lines, tmp_path / "out")
    monkeypatch.setattr(LoadedBundle, "run", None)
    assert run_documents(bundle, lines, tmp_path / "out") == done


@pytest.mark.parametrize("what", ["inputs", "output", "truncate", "pack", "bundle", "memory limit"])
def test_a_folder_of_something_else_is_refused(bundle, lines, tmp_path, what):
    run_documents(bundle, lines, tmp_path / "out")
    options: dict[str, Any] = {"output": {"output": "hidden"}, "truncate": {"truncate": True}, "pack": {"pack": "off"}}
    before = contents(tmp_path / "out")
    if what == "inputs":
        write_lines(tmp_path, {"input_ids": [1]})
    if what == "bundle":
        bundle = load(write_tiny(tmp_path / "other", replace(TINY, seed=1)))
    if what == "memory limit":
        bundle = load(bundle.path, memory_limit=10**9)
    with pytest.raises(InputError, match=f"another {what}"):
        run_documents(bundle, lines, tmp_path / "out", **options.get(what, {}))
    assert contents(tmp_path / "out") == before


def test_other_files_and_damage_are_refused(bundle, lines, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    with pytest.raises(InputError, match="other files"):
        run_documents(bundle, lines, tmp_path / "full")
    monkeypatch.setattr(document_run, "PART_TOKENS", 64)

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_documents(bundle, lines, tmp_path / "out", progress=stop)
    (tmp_path / "out" / "part-00000.npy").unlink()
    with pytest.raises(TwoheadsError, match=r"part-00000\.npy: is missing"):
        run_documents(bundle, lines, tmp_path / "out")


def test_what_can_not_begin_is_refused(bundle, lines, tmp_path):
    with pytest.raises(InputError, match="can't be read"):
        run_documents(bundle, tmp_path / "none.jsonl", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no files that end in"):
        run_documents(bundle, tmp_path / "empty", tmp_path / "out")
    features = load(write_tiny(tmp_path / "features", Tiny(features=True, head=False)))
    with pytest.raises(InputError, match="read one sequence of tokens"):
        run_documents(features, lines, tmp_path / "out")
    dumb = load(write_tiny(tmp_path / "dumb", TINY))
    with pytest.raises(InputError, match="has no tokenizer"):
        run_documents(dumb, write_lines(tmp_path, {"text": "a"}), tmp_path / "out")


def test_a_document_that_does_not_fit_the_memory_fails_alone(bundle, lines, tmp_path):
    short = bundle.schedule(40, "embedding")
    limit = short.memory.total
    with contextlib.suppress(InputError):  # the least that it can be run in
        while memory := plan_spill(short, limit=limit - 1, disk=False, workers=bundle.threads).memory:
            limit = memory.total
    done = run_documents(load(bundle.path, threads=bundle.threads, memory_limit=limit), lines, tmp_path / "out")
    errors = [entry.get("error") for entry in index(tmp_path / "out")]
    assert [at for at, error in enumerate(errors) if error] == [at for at, n in enumerate(LENGTHS) if n > 48]
    assert done.failed == 1
    assert "memory limit" in str(errors[5])
