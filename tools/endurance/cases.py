"""The commands that write something: how each starts, how it goes on, and what then stands in its place."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tools.endurance.bases import BLOCK
from twoheads.runtime.jobs.job import PROGRESS

__all__ = ["CASES", "Case", "Work"]

Words = tuple[object, ...]

NOTHING = b"nothing"
"""What stands where nothing is."""


@dataclass(frozen=True, slots=True)
class Work:
    """The folders of one case.

    Attributes:
        bases: What :func:`~tools.endurance.bases.make_bases` made; never written to.
        root: What is the case's own, with the three folders that a command may write to.
    """

    bases: Path
    root: Path

    @property
    def place(self) -> Path:
        """The folder of the target."""
        return self.root / "place"

    @property
    def temporary(self) -> Path:
        """The folder for temporary files."""
        return self.root / "temporary"

    @property
    def home(self) -> Path:
        """The user's own."""
        return self.root / "home"

    @property
    def folders(self) -> tuple[Path, Path, Path]:
        """All that a command may write to."""
        return self.place, self.temporary, self.home

    def names(self) -> list[str]:
        """Everything below these folders, by name; progress is written now and then, so it may be there or not."""
        paths = (path for base in self.folders for path in base.rglob("*"))
        return sorted(path.relative_to(self.root).as_posix() for path in paths if path.name != PROGRESS)


def _unprepared(_work: Work) -> None:
    """Nothing is there before."""


@dataclass(frozen=True, slots=True)
class Case:
    """A command.

    Attributes:
        name: As it is typed.
        words: The command line.
        look: What stands at the target: its bytes, or what it computes. Raises where that is half written. Called in a
            process of its own.
        again: The next command of the same target; ``None``: the same.
        prepare: Puts there what is there before.
        grows: Whether the target grows step by step and a later command goes on: then it may stand at any step.
        keeps: Beginnings of names that a refused command may leave: what a later one goes on with.
    """

    name: str
    words: Callable[[Work], Words]
    look: Callable[[Work], bytes]
    again: Callable[[Work], Words] | None = None
    prepare: Callable[[Work], None] = _unprepared
    grows: bool = False
    keeps: tuple[str, ...] = ()

    def next_words(self, work: Work) -> Words:
        """What a user types next."""
        return (self.again or self.words)(work)


def _of_bundle(path: Path) -> bytes:
    """What the bundle computes, all its files compared."""
    from twoheads.runtime import load
    from twoheads.runtime.bundle.reader import read_bundle

    if not path.exists():
        return NOTHING
    loaded = load(path, threads=1)
    tokens = np.arange(1, 60) % 15
    array = np.asarray(loaded.run(tokens, output="hidden").array)
    return array.tobytes() + repr(sorted(read_bundle(path).manifest.targets)).encode()


def _of_file(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else NOTHING


def _of_arrays(path: Path) -> bytes:
    if not path.exists():
        return NOTHING
    with np.load(path) as found:
        return b"".join(name.encode() + found[name].tobytes() for name in found.files)


def _of_onnx(path: Path) -> bytes:
    if not path.exists():
        return NOTHING
    import onnxruntime  # type: ignore[import-untyped]

    session = onnxruntime.InferenceSession(str(path))
    (result,) = session.run(None, {session.get_inputs()[0].name: np.arange(1, 30)[None] % 15})
    return np.asarray(result).tobytes()


def _of_job(work: Work) -> bytes:
    """The output; and the job, if there is one, is read by ``twoheads status``."""
    _require_status(work.place / "job")
    return _of_arrays(work.place / "out.npz")


def _of_documents(work: Work) -> bytes:
    folder = work.place / "out"
    _require_status(folder / ".job")
    parts = sorted(folder.glob("part-*.npy"))
    index = folder / "index.jsonl"
    return b"".join(map(_of_file, (*parts, index)))


def _require_status(job: Path) -> None:
    from twoheads.export.cli.app import main

    if (job / "job.json").exists():
        folder = job.parent if job.name == ".job" else job
        if main(["status", str(folder), "--json"]) != 0:
            raise RuntimeError(f"{folder}: status fails")


def _of_cache(work: Work) -> bytes:
    """What every process that shares the pages reads; a damaged one is an error."""
    pages = sorted((work.place / "cache").glob("*.page"))
    return b"".join(map(_of_file, pages)) or NOTHING


def _copy(name: str, to: str) -> Callable[[Work], None]:
    def prepare(work: Work) -> None:
        shutil.copytree(work.bases / f"{name}.bundle", work.place / to)

    return prepare


def _compile(*more: object) -> Callable[[Work], Words]:
    return lambda work: (
        *("compile", work.bases / "one.source", "-o", work.place / "b", "--block-size", BLOCK),
        "--no-generation",
        *more,
    )


def _run(*more: str) -> Callable[[Work], Words]:
    def words(work: Work) -> Words:
        tokens, out = work.bases / "tokens.npy", work.place / "out.npz"
        placed = (work.place / word.removeprefix("@") if word.startswith("@") else word for word in more)
        return ("run", work.bases / "one.bundle", "--tokens", tokens, "-o", out, "--threads", 1, *placed)

    return words


def _spilled_again(work: Work) -> Words:
    """Goes on where there is something to go on with."""
    from twoheads.runtime.jobs.job import Job

    job = work.place / "job"
    if (job / "job.json").exists() and not Job(job).finished:
        return ("resume", job)
    return _run("--spill", "@job", "--output", "logits")(work)


def _batch(*more: str) -> Callable[[Work], Words]:
    return lambda work: (
        *("batch", work.bases / "one.bundle", "--documents", work.bases / "documents.jsonl"),
        *("-o", work.place / "out", "--output", "last", "--threads", 1, *more),
    )


def _lines(work: Work) -> Words:
    lines, out = work.bases / "lines.txt", work.place / "out.npz"
    return ("batch", work.bases / "one.bundle", "--lines", lines, "-o", out, "--output", "last", "--threads", 1)


def _generate(work: Work) -> Words:
    prompt, cache = work.bases / "prompt.npy", work.place / "cache"
    bundle = work.bases / "one.bundle"
    return ("generate", bundle, "--tokens", prompt, "--max-new-tokens", 40, "--ignore-eos", "--cache", cache)


def _export(*more: object) -> Callable[[Work], Words]:
    return lambda work: ("export", work.bases / "one.bundle", "-o", work.place / "m.onnx", *more)


def _pack(name: str, *more: object) -> Callable[[Work], Words]:
    return lambda work: (
        *("pack", work.bases / "built.bundle", "--target", "openvino", "-o", work.place / name),
        *more,
    )


def _of_pack(work: Work) -> bytes:
    """The canary of a pack says whether it is whole."""
    from twoheads.export.cli.app import main

    folder = work.place / "p"
    if not folder.exists():
        return NOTHING
    if main(["canary", str(folder)]) != 0:
        raise RuntimeError("the canary fails")
    return b"".join(map(_of_file, sorted(path for path in folder.rglob("*") if path.is_file())))


CASES: dict[str, Case] = {
    case.name: case
    for case in (
        Case("compile", _compile(), lambda work: _of_bundle(work.place / "b"), _compile("--force")),
        Case(
            "compile --force",
            _compile("--force"),
            lambda work: _of_bundle(work.place / "b"),
            prepare=_copy("other", "b"),
        ),
        Case(
            "build",
            lambda work: ("build", work.place / "b", "--target", "openvino"),
            lambda work: _of_bundle(work.place / "b"),
            prepare=_copy("other", "b"),
        ),
        Case(
            "run -o",
            _run("--output", "hidden", "--report", "@report.json"),
            lambda work: _of_arrays(work.place / "out.npz"),
        ),
        Case(
            "run --spill",
            _run("--spill", "@job", "--output", "logits"),
            _of_job,
            _spilled_again,
            keeps=("place/job", "place/.out.npz."),
        ),
        Case("batch --documents", _batch(), _of_documents, grows=True, keeps=("place/out",)),
        Case("batch --lines", _lines, lambda work: _of_arrays(work.place / "out.npz")),
        Case("generate --cache", _generate, _of_cache, grows=True, keeps=("place/cache",)),
        Case("export", _export(), lambda work: _of_onnx(work.place / "m.onnx"), _export("--force")),
        Case(
            "export --force --weights beside",
            _export("--force", "--weights", "beside"),
            lambda work: _of_onnx(work.place / "m.onnx"),
        ),
        Case("pack", _pack("p"), _of_pack, _pack("p", "--force")),
        Case(
            "pack .tar.gz",
            _pack("p.tar.gz"),
            lambda work: _of_file(work.place / "p.tar.gz"),
            _pack("p.tar.gz", "--force"),
        ),
        Case(
            "verify",
            lambda work: ("verify", work.bases / "one.bundle", "--against", work.bases / "one.source", "--length", 60),
            lambda _work: NOTHING,
        ),
    )
}
"""All, by name."""
