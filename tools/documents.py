"""A thousand short and long documents through MiniLM in one command, beside one by one and sentence-transformers.

python -m tools.documents                       # 1,000 documents, three turns; writes docs/results/documents.*
python -m tools.documents --documents 60 --turns 1 --page /tmp/documents.md

Every contender is a process of its own, in turns; nobody computes while another one does.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import site
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import numpy.typing as npt

from tools.fetch_models import FetchError, fetch
from tools.machine import machine, machine_line
from tools.markdown import table
from tools.measured_process import measure_json, twoheads_command
from twoheads.compiler import compile_model
from twoheads.export import write_bundle
from twoheads.runtime.execution.crew import available_threads

__all__ = ["Figures", "make_texts", "render"]

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "results" / "documents.md"
LONGEST = 512
BATCH = 32
"""The default batch of sentence-transformers."""
OURS, ALONE, THEIRS = "twoheads, one command", "twoheads, one by one (`--pack off`)", "sentence-transformers"
PACKAGES = ("numpy", "onnxruntime", "torch", "transformers", "sentence-transformers", "tokenizers")

Figures = dict[str, Any]
Rows = npt.NDArray[np.float32]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and writes the page; as a child process, computes what sentence-transformers makes of the texts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--block-size", type=int, default=256)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--reference", nargs=3, metavar=("MODEL", "TEXTS", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.reference:
        print(json.dumps(_reference(*map(Path, options.reference))))
        return 0
    try:
        model = fetch("minilm")
    except FetchError as error:
        print(error, file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        figures = _measure(model, Path(folder), options.documents, options.turns, options.block_size)
    options.page.write_text(render(figures), encoding="utf-8")
    options.page.with_suffix(".json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


def make_texts(count: int, *, seed: int = 0) -> list[str]:
    """Pieces of Python's documentation and of installed licences: half of 2 to 50 words, half of up to 330."""
    sources = list(topics.values())
    for folder in site.getsitepackages():
        files = (file for file in Path(folder).glob("*.dist-info/**/*") if "LICEN" in file.name.upper())
        sources += [file.read_text(encoding="utf-8", errors="ignore") for file in sorted(files) if file.is_file()]
    words = " ".join(sources).split()
    draw = random.Random(seed)  # noqa: S311 - no secret
    lengths = [draw.randint(2, 50) if draw.random() < 0.5 else draw.randint(50, 330) for _ in range(count)]
    starts = [draw.randrange(len(words) - length) for length in lengths]
    return [" ".join(words[start : start + length]) for start, length in zip(starts, lengths, strict=True)]


def _measure(model: Path, folder: Path, count: int, turns: int, block_size: int) -> Figures:
    bundle, texts = folder / "bundle", folder / "texts.jsonl"
    write_bundle(compile_model(model, block_size=block_size), bundle)
    lines = (json.dumps({"id": at, "text": text}) for at, text in enumerate(make_texts(count)))
    texts.write_text("\n".join(lines) + "\n", encoding="utf-8")
    seconds: dict[str, list[tuple[float, float]]] = {OURS: [], ALONE: [], THEIRS: []}
    told: Figures = {}
    for turn in range(turns):
        for name, more in ((OURS, ()), (ALONE, ("--pack", "off"))):
            out = folder / f"{len(more)}-{turn}"
            words = ("batch", bundle, "--documents", texts, "-o", out, "--truncate", "--json", *more)
            process, told[name] = measure_json(twoheads_command(*words), show_stderr=True)
            seconds[name].append((told[name]["wall_seconds"], process.seconds))
        command = [sys.executable, "-m", "tools.documents", "--reference", *map(str, (model, texts, folder / "st.npy"))]
        process, told[THEIRS] = measure_json(command, show_stderr=True)
        seconds[THEIRS].append((told[THEIRS]["seconds"], process.seconds))
    lengths, ours = _results(folder / "0-0")
    _, alone = _results(folder / "2-0")
    again = [_results(folder / f"0-{turn}")[1] for turn in range(1, turns)]
    theirs = np.load(folder / "st.npy")
    return {
        "machine": machine(PACKAGES),
        "documents": len(lengths),
        "tokens": sum(lengths),
        "percentiles": np.percentile(lengths, (0, 25, 50, 75, 100)).tolist(),
        "block_size": block_size,
        "blocks": {name: told[name]["blocks"] for name in (OURS, ALONE)},
        "turns": turns,
        "seconds": {
            name: [statistics.median(part) for part in zip(*found, strict=True)] for name, found in seconds.items()
        },
        "reference": told[THEIRS]["with"],
        "difference": {"one by one": _largest(ours, alone), "sentence-transformers": _largest(ours, theirs)},
        "equal_bits": all(bool((ours == other).all()) for other in again),
        "smallest_cosine": float((ours.astype(np.float64) * theirs).sum(1).min()),
    }


def _largest(one: Rows, other: Rows) -> float:
    return float(np.abs(one - other).max())


def _results(out: Path) -> tuple[list[int], Rows]:
    """Tokens and embeddings of all documents, in order."""
    entries = [json.loads(line) for line in (out / "index.jsonl").read_text(encoding="utf-8").splitlines()]
    parts = {entry["part"]: np.load(out / entry["part"]) for entry in entries}
    return [entry["tokens"] for entry in entries], np.stack([parts[entry["part"]][entry["row"]] for entry in entries])


def _reference(model: Path, texts: Path, out: Path) -> Figures:
    """Embeddings by sentence-transformers as it is, or by its way with transformers where it is not installed."""
    import torch

    torch.set_num_threads(available_threads())
    given = [json.loads(line)["text"] for line in texts.read_text(encoding="utf-8").splitlines()]
    try:
        library = importlib.import_module("sentence_transformers")  # by name: the gate does not install it
    except ImportError:
        encode, how = _wrapped(model), "transformers, wrapped as sentence-transformers does it (it is not installed)"
    else:
        loaded: Any = library.SentenceTransformer(str(model), device="cpu")
        loaded.max_seq_length = LONGEST
        encode, how = (lambda some: loaded.encode(some, batch_size=BATCH)), "sentence-transformers"
    encode(given[:2])
    began = time.perf_counter()
    found = encode(given)
    seconds = time.perf_counter() - began
    np.save(out, np.asarray(found, np.float32))
    return {"seconds": seconds, "with": how}


def _wrapped(model: Path) -> Any:
    """Longest first, in batches; the mean over real tokens, scaled to unit length."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    network: Any = AutoModel.from_pretrained(model, dtype=torch.float32).eval()

    @torch.inference_mode()
    def encode(texts: list[str]) -> Rows:
        order = sorted(range(len(texts)), key=lambda at: -len(texts[at]))
        found = np.empty((len(texts), network.config.hidden_size), np.float32)
        for first in range(0, len(order), BATCH):
            members = order[first : first + BATCH]
            options = {"padding": True, "truncation": True, "max_length": LONGEST, "return_tensors": "pt"}
            batch = tokenizer([texts[at] for at in members], **options)
            real = batch["attention_mask"][..., None]
            mean = (network(**batch).last_hidden_state * real).sum(1) / real.sum(1)
            found[members] = torch.nn.functional.normalize(mean).numpy()
        return found

    return encode


def render(figures: Figures) -> str:
    """The page."""
    low, quarter, median, three, high = figures["percentiles"]
    tokens, blocks, block = figures["tokens"], figures["blocks"], figures["block_size"]
    rows = [
        (name, f"{inside:.1f}", f"{tokens / inside:,.0f}", f"{figures['documents'] / inside:,.0f}", f"{whole:.1f}")
        for name, (inside, whole) in figures["seconds"].items()
    ]
    ratio = figures["seconds"][OURS][0] / figures["seconds"][THEIRS][0]
    filled = tokens / blocks[OURS] / block
    alone, theirs = (figures["difference"][name] for name in ("one by one", "sentence-transformers"))
    lines = [
        "# Many documents\n",
        "Written by `python -m tools.documents`. MiniLM-L6 (all-MiniLM-L6-v2, 6 layers, width 384) makes embeddings of",
        f"{figures['documents']:,} pieces of documentation and licences, {tokens:,} tokens: {low:.0f} to {high:.0f} a",
        f"document, quartiles {quarter:.0f}, {median:.0f}, {three:.0f}. Blocks of {block} tokens, float32, all cores.",
        machine_line(figures["machine"]),
        f"Medians of {figures['turns']} turns, each contender a process of its own.\n",
        *table(("", "seconds", "tokens/s", "documents/s", "whole process, seconds"), rows, left=1),
        "Seconds are those of reading, tokenising, computing and writing for twoheads, and of `encode` (tokenising and",
        f"computing, batches of {BATCH}) for {figures['reference']}; the last column adds the interpreter's start,",
        "imports and loading.\n",
        f"- One command takes {ratio:.2f} of the time of sentence-transformers.",
        f"- It fills {blocks[OURS]} blocks, {filled:.0%} of their rows with tokens; one by one takes {blocks[ALONE]}.",
        f"- Largest difference of a number of an embedding: {alone:.1e} from one by one, {theirs:.1e} from",
        f"  sentence-transformers; smallest cosine {figures['smallest_cosine']:.7f}.",
    ]
    if figures["turns"] > 1:
        lines.append(f"- Further turns gave {'the same' if figures['equal_bits'] else 'OTHER'} bits.")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
