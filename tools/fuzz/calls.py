"""What is done with a mutant: each reads a folder, as the product would, and gives what is compared with the base's."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tools.fuzz.bases import BLOCK, PART, TOKENS
from tools.fuzz.judge import Answer, TwoAnswersError
from twoheads.graphs.errors import TwoheadsError

__all__ = [
    "ask",
    "compile_folder",
    "compile_gguf",
    "compile_onnx",
    "generate",
    "generate_with_pages",
    "plan_folder",
    "plan_gguf",
    "read_arrays",
    "read_lines",
    "resume_documents",
    "resume_job",
    "run",
]  # fmt: skip

SHORT, LONG = 7, len(TOKENS)
MOST_TOKENS = 64
LARGE = 1e6
"""A weight beyond it is none of a trained model's."""

CLOSE = 1e-3
"""How far two ways to compute one input may differ, beside its largest number."""


def run(folder: Path) -> Answer:
    """A short input and a long one; the short one on both ways that the bundle has for it."""
    from twoheads.runtime import load

    bundle = load(folder, threads=1)
    plan = bundle.schedule(LONG, "logits").peak_bytes - bundle.process_bytes
    results: list[Any] = [bundle.run(TOKENS[:length], "logits").array for length in (SHORT, LONG)]
    other: Any = load(folder, threads=1, fused=False, check="size").run(TOKENS[:SHORT], "logits").array
    if not _rounding_decides(folder):
        _same_answer("one call", results[0], "tiles", other)
    encoded = [] if bundle.tokenizer is None else bundle.tokenizer.encode("the cat sat on a mat")
    return Answer(b"".join(result.tobytes() for result in results) + repr(encoded).encode(), plan)


def generate(folder: Path) -> Answer:
    """A few tokens behind a long prompt, whose logits must be those of a run."""
    from twoheads.runtime import load

    bundle = load(folder, threads=1)
    plan = bundle.schedule(LONG, "last").peak_bytes - bundle.process_bytes
    made: Any = bundle.generate(TOKENS.tolist(), max_new_tokens=3, return_logits=True, ignore_eos=True)
    tokens = [*TOKENS.tolist(), *made.tokens[:-1]]
    other: Any = bundle.run(np.array(tokens), "logits", positions=range(LONG - 1, len(tokens))).array
    if not _rounding_decides(folder):
        _same_answer("steps", made.logits, "tiles", other)
    return Answer(repr(made.tokens).encode() + made.text.encode() + made.logits.tobytes(), plan)


def _rounding_decides(folder: Path) -> bool:
    """Whether a weight is so large that a softmax is one key's or another's by the last bit of a sum."""
    weights = np.fromfile(folder / "engines" / "weights.bin", np.float32)
    return bool((np.abs(weights[np.isfinite(weights)]) > LARGE).any())


def _same_answer(one: str, found: Any, other: str, expected: Any) -> None:
    if found.shape != expected.shape:
        raise TwoAnswersError(f"{one} gives {found.shape}, {other} {expected.shape}")
    with np.errstate(all="ignore"):
        size = float(np.abs(expected[np.isfinite(expected)]).max(initial=1e-6))
    if not np.allclose(found, expected, rtol=0, atol=CLOSE * size, equal_nan=True):
        raise TwoAnswersError(f"{one} and {other} differ by {float(np.nanmax(np.abs(found - expected))):g}")


def generate_with_pages(folder: Path) -> Answer:
    """A generation that takes over what an earlier one has left."""
    from twoheads.runtime import load

    bundle = load(folder.parents[1] / "bases" / "bundle", threads=1)
    plan = bundle.schedule(LONG, "last").peak_bytes - bundle.process_bytes
    bundle.generation.keep_prefixes(1 << 20, folder)
    made: Any = bundle.generate(TOKENS.tolist(), max_new_tokens=2, return_logits=True, ignore_eos=True)
    return Answer(repr(made.tokens).encode() + made.logits.tobytes(), plan)


def ask(folder: Path) -> Answer:
    """Every request of the folder, one after the other; the first that is refused ends it."""
    from twoheads.runtime import load

    bundle = load(folder.parents[1] / "bases" / "bundle", threads=1)
    found: list[Any] = []
    for file in sorted(folder.iterdir()):
        request = json.loads(file.read_bytes())
        for name in ("max_new_tokens", "max_length", "num_return_sequences"):  # who asks for many waits for many
            if type(request.get(name)) in (int, float) and MOST_TOKENS < request[name] < float("inf"):
                request[name] = MOST_TOKENS
        made = bundle.generate(request.pop("prompt", None), **request)
        found += [(one.tokens, one.text) for one in (made if isinstance(made, list) else [made])]
    return Answer(repr(found).encode())


def plan_folder(folder: Path) -> Answer:
    """The plan of a model folder."""
    from twoheads.compiler import plan_model

    return Answer(str(plan_model(folder, block_size=BLOCK)).encode())


def plan_gguf(folder: Path) -> Answer:
    """The plan of a GGUF file."""
    return plan_folder(folder / "model.gguf")


def compile_folder(path: Path) -> Answer:
    """A model: its program and its weights."""
    from twoheads.compiler import compile_model
    from twoheads.compiler.ir.weights import in_memory

    compiled = compile_model(path, block_size=BLOCK)
    digest = hashlib.sha256(str(compiled.program).encode())
    for data in (compiled.tokenizer_json, compiled.generation_json):
        digest.update(data or b"")
    for name in sorted(compiled.weights):
        weight: Any = in_memory(compiled.weights[name])
        array = weight if isinstance(weight, np.ndarray) else weight.detach().numpy()
        digest.update(np.ascontiguousarray(array).tobytes())
    return Answer(digest.digest())


def compile_gguf(folder: Path) -> Answer:
    """A GGUF file."""
    return compile_folder(folder / "model.gguf")


def compile_onnx(folder: Path) -> Answer:
    """An ONNX file."""
    return compile_folder(folder / "model.onnx")


def read_arrays(folder: Path) -> Answer:
    """Files of arrays."""
    from twoheads.runtime.inputs.array_files import read_npy, read_npz

    found = {**read_npz(folder / "arrays.npz"), "single": read_npy(folder / "tokens.npy")}
    stream = io.BytesIO()
    for name in sorted(found):
        stream.write(name.encode("utf-8", "surrogateescape") + found[name].tobytes())
    return Answer(stream.getvalue())


def read_lines(folder: Path) -> Answer:
    """Documents in JSON lines."""
    from twoheads.runtime.documents.source import inspect_documents, read_documents

    inspect_documents(folder / "lines.jsonl")
    return Answer(repr(list(read_documents(folder / "lines.jsonl"))).encode("utf-8", "surrogatepass"))


def resume_job(folder: Path) -> Answer:
    """``twoheads status`` and ``twoheads resume`` of a stopped run: the file that it writes."""
    _command("status", folder / "work", codes=(0, 1))
    _command("resume", folder / "work", "--threads", "1")
    return Answer((folder / "out.npz").read_bytes())


def resume_documents(folder: Path) -> Answer:
    """The same of stopped documents: all results."""
    from twoheads.runtime.documents import document_run as documents

    documents.PART_DOCUMENTS = PART
    work = folder / "work"
    _command("status", work, codes=(0, 1))
    _command("resume", work, "--threads", "1")
    _command("status", work, codes=(0, 1))
    files = (work / "index.jsonl", *sorted(work.glob("part-*")))
    return Answer(b"".join(file.name.encode() + file.read_bytes() for file in files))


def _command(*words: object, codes: tuple[int, ...] = (0,)) -> None:
    """Runs a command line in this process; what it refuses is an error here, exit code 70 a bug."""
    from twoheads.export.cli.app import main

    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
        code = main([*map(str, words)])
    if code == 70:
        raise RuntimeError(f"exit code 70: {told.getvalue()}")
    if code not in codes:
        raise TwoheadsError(f"exit code {code}", told.getvalue())


def quiet(call: Callable[[Path], Answer]) -> Callable[[Path], Answer]:
    """``call`` without warnings, in a folder of its own."""

    def called(folder: Path) -> Answer:
        os.chdir(folder.parent)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return call(folder)

    return called
