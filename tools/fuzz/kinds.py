"""What is mutated, and what is then done with it: a file of a base folder, how to change it, what to call."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tools.fuzz import calls
from tools.fuzz.judge import Answer
from tools.fuzz.mutate.gguf import mutated_gguf
from tools.fuzz.mutate.onnx import mutated_onnx
from tools.fuzz.mutate.plain import mutated_bytes, mutated_json, mutated_values
from tools.fuzz.mutate.program import mutated_program
from tools.fuzz.mutate.sealed import mutated_page, mutated_sealed, page_again, seal, sealed_again, unseal
from tools.fuzz.mutate.tensors import mutated_safetensors
from twoheads.graphs.serialization.bundle_format import WEIGHT_HASHES, WEIGHTS

__all__ = ["KINDS", "Kind", "mend_manifest"]

Settle = Callable[[Path, Path, Random], None]
"""Called with a mutant's folder and its mutated file: mends what would give the mutation away at once."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of input.

    Attributes:
        base: The folder of the bases that is copied.
        files: Patterns of the files in it of which one is mutated.
        mutate: How.
        call: Reads the copy, and returns what is compared with the base's.
        settle: See :data:`Settle`.
        source: It is a model, so that a mutant is mostly another model.
        weight: How often it is drawn.
    """

    base: str
    files: tuple[str, ...]
    mutate: Callable[[bytes, Random], bytes]
    call: Callable[[Path], Answer]
    settle: Settle | None = None
    source: bool = False
    weight: int = 4

    def copy(self, bases: Path, folder: Path) -> None:
        """Copies the base to ``folder``; what remembers absolute paths remembers those there."""
        shutil.copytree(bases / self.base, folder)
        for work in (folder / "work", folder / "work" / ".job"):
            if (work / "job.json").is_file():
                _move_job(work, bases / self.base, folder)

    def make(self, bases: Path, folder: Path, draw: Random) -> str:
        """Makes the mutant in ``folder``; returns the name of the file that is mutated."""
        self.copy(bases, folder)
        pattern = draw.choice(self.files)
        file = draw.choice(sorted(path for path in folder.rglob(pattern) if path.is_file()))
        file.write_bytes(self.mutate(file.read_bytes(), draw))
        if self.settle is not None:
            self.settle(folder, file, draw)
        return file.relative_to(folder).as_posix()


def _move_job(work: Path, before: Path, after: Path) -> None:
    content = json.dumps(unseal((work / "job.json").read_bytes())).replace(str(before), str(after))
    (work / "job.json").write_bytes(seal(content))
    sealed_again(work)


def mend_manifest(folder: Path, file: Path, _draw: Random | None = None) -> None:
    """The mutated file's size and hash stand in the manifest, so that it is read at all."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    data = file.read_bytes()
    name = file.relative_to(folder).as_posix()
    entry = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest["files"][name] = manifest["files"][name] | entry
    if name == WEIGHTS and WEIGHT_HASHES in manifest["files"]:  # each weight has a hash of its own there
        del manifest["files"][WEIGHT_HASHES]
        (folder / WEIGHT_HASHES).unlink()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _mend_journal(_folder: Path, file: Path, draw: Random) -> None:
    """The journal is that of a ``job.json`` that was mutated."""
    if file.name == "job.json" and draw.random() < 0.8:
        sealed_again(file.parent)


def _mend_values(folder: Path, file: Path, draw: Random) -> None:
    """Sometimes the journal has the digest of the mutated values."""
    journal = folder / "work" / "journal.json"
    content = unseal(journal.read_bytes())
    if draw.random() < 0.3:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        content["values"] = {
            name: digest if hashlib.sha256(name.encode()).hexdigest()[:24] == file.stem else held
            for name, held in content["values"].items()
        }
        journal.write_bytes(seal(content))


def _mend_page(_folder: Path, file: Path, draw: Random) -> None:
    if draw.random() < 0.3:
        page_again(file)


_ENGINES = ("engines/attention_*.onnx", "engines/tokenwise_*.onnx", "head.onnx", "one_block.onnx")
_STEPS = ("step_16_0.onnx", "step_16_4.onnx", "step_1_4.onnx", "step_1_head.onnx")
"""Those that a generation opens."""

_FOLDER = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
_EMBEDDER = ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json", "config.json")
_JOB = ("job.json", "journal.json", "journal.json", "progress.json")

KINDS: dict[str, Kind] = {
    # What a bundle holds, run and generated from
    "manifest": Kind("bundle", ("manifest.json",), mutated_json, calls.run),
    "program": Kind("bundle", ("program.json",), mutated_program, calls.run, mend_manifest),
    "program, generating": Kind("bundle", ("program.json",), mutated_program, calls.generate, mend_manifest, weight=2),
    "engines": Kind("bundle", _ENGINES, mutated_onnx, calls.run, mend_manifest),
    "engines, generating": Kind("bundle", _STEPS, mutated_onnx, calls.generate, mend_manifest, weight=2),
    "weights": Kind("bundle", ("weights.bin",), mutated_bytes, calls.run, mend_manifest, weight=1),
    "tokenizer": Kind("bundle", ("tokenizer.json",), mutated_json, calls.run, mend_manifest, weight=2),
    "facts": Kind("bundle", ("generation.json",), mutated_json, calls.generate, mend_manifest, weight=2),
    # Models
    "config": Kind("source", ("config.json",), mutated_json, calls.plan_folder, source=True, weight=2),
    "folder": Kind("source", _FOLDER, mutated_json, calls.compile_folder, source=True, weight=1),
    "embedder": Kind("embedder", _EMBEDDER, mutated_json, calls.compile_folder, source=True, weight=1),
    "safetensors": Kind("source", ("*.safetensors",), mutated_safetensors, calls.compile_folder, source=True, weight=1),
    "index": Kind("shards", ("*.index.json",), mutated_json, calls.compile_folder, source=True, weight=1),
    "gguf": Kind("gguf", ("model.gguf",), mutated_gguf, calls.compile_gguf, source=True, weight=1),
    "gguf, planned": Kind("gguf", ("model.gguf",), mutated_gguf, calls.plan_gguf, source=True, weight=2),
    "onnx": Kind("onnx", ("model.onnx",), mutated_onnx, calls.compile_onnx, source=True, weight=3),
    "onnx, external": Kind("external", ("model.onnx",), mutated_onnx, calls.compile_onnx, source=True, weight=2),
    # What runs leave on the disk, and go on from
    "job": Kind("job", _JOB, mutated_sealed, calls.resume_job, _mend_journal),
    "job's values": Kind("job", ("values/*.bin",), mutated_bytes, calls.resume_job, _mend_values, weight=2),
    "results": Kind("results", _JOB, mutated_sealed, calls.resume_documents, _mend_journal),
    "results' files": Kind("results", ("index.jsonl", "run.json", "part-*"), mutated_bytes, calls.resume_documents),
    "pages": Kind("cache", ("*.page",), mutated_page, calls.generate_with_pages, _mend_page, weight=2),
    # Inputs
    "requests": Kind("requests", ("*.json",), mutated_values, calls.ask),
    "arrays": Kind("inputs", ("*.np[yz]",), mutated_bytes, calls.read_arrays),
    "lines": Kind("inputs", ("lines.jsonl",), mutated_bytes, calls.read_lines),
}
