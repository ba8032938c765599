"""The page of the sweep, written from its results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from statistics import median
from typing import Any

from tools.breadth.tables import TABLES, types_of
from tools.markdown import table

__all__ = ["render"]

_TITLES = {
    "causal": "Causal language models", "masked": "Masked language models", "encoder": "Text encoders",
    "vision": "Images", "wrapper": "Language models that take images, given text alone",
    "audio": "Audio classification", "seq2seq": "Sequence to sequence", "classification": "Sequence classification",
    "ctc": "Speech to text by alignment (CTC)", "speech": "Speech to text by a decoder",
    "token": "Token classification", "question": "Question answering", "picture": "Image classification",
    "video": "Video classification",
}  # fmt: skip
_OUTCOMES = ("exact, tiled", "exact, whole", "refused", "off", "crash", "unmade")


def render(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The page."""
    lines = [
        "# Every type that transformers knows",
        "",
        f"Written by `python -m tools.breadth` with transformers {version('transformers')} and torch "
        f"{version('torch')}. Each type's default configuration is made small (64 wide, 2 layers or one of each kind, "
        "windows of 8 tokens, 211 tokens of vocabulary), its weights are random, and it is compiled for blocks of 16 "
        "tokens. *Exact*: hidden states and logits of inputs of 1, 15, 17, 53 and 200 tokens (waveforms of so many, "
        "one image or clip where a model takes one size) are those of the library's own eager code, in a model made "
        "apart and without any hook, within 4 times the largest of its "
        "distances from its fused code and from itself with every product cut in two (at a half, at a third), and "
        "1e-6 of the largest magnitude. *Verified*: `verify` passes at all of these "
        "lengths. *Whole*: refused by tiles, and exact as one engine of one input size (`--lowering whole`): an "
        "image, or 53 tokens where the model itself takes any number (`--length 53`). "
        "*Unmade*: the tool made no small model; it says nothing about the compiler. "
        "Sparse attention is compiled up to where it is no longer full, and compared up to there (53 tokens of 64 that "
        "an indexer takes here). "
        "Seconds are those of one core. "
        "Types that have not been measured yet are named, and count nowhere else.",
        "",
    ]
    rows = {table_name: _rows(found, table_name) for table_name in TABLES}
    counted = {name: Counter(_outcome(row) for row in kinds.values()) for name, kinds in rows.items() if kinds}
    known = {name: len(types_of(name)) for name in counted}
    lines += table(
        ("table", "types", "measured", *_OUTCOMES, "exact of those made"),
        [
            *(_summary(_TITLES[name], known[name], count) for name, count in counted.items()),
            _summary("All", sum(known.values()), sum(counted.values(), Counter[str]())),
        ],
        left=1,
    )
    for name, kinds in rows.items():
        if kinds:
            lines += _section(name, kinds)
    return "\n".join(lines)


def _summary(title: str, types: int, count: Counter[str]) -> tuple[str | int, ...]:
    """A row of the table in front."""
    return (title, types, sum(count.values()), *(count[outcome] for outcome in _OUTCOMES), _share(count))


def _rows(found: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, Mapping[str, Any]]:
    return {key.split("/", 1)[1]: row for key, row in sorted(found.items()) if key.startswith(f"{name}/")}


def _outcome(row: Mapping[str, Any]) -> str:
    """The column that the type is counted in."""
    outcome = str(row["outcome"])
    return outcome if outcome != "exact" else "exact, whole" if "whole" in row else "exact, tiled"


def _share(count: Counter[str]) -> str:
    made = sum(count.values()) - count["unmade"]
    return f"{(count['exact, tiled'] + count['exact, whole']) / made:.0%}" if made else ""


def _section(name: str, kinds: Mapping[str, Mapping[str, Any]]) -> list[str]:
    exact = [(kind, row) for kind, row in kinds.items() if row["outcome"] == "exact"]
    lines = [f"## {_TITLES[name]}", ""]
    if exact:
        seconds = [row["compile_seconds"] for _, row in exact]
        peak = [row["peak_mib"] for _, row in exact]
        disagree = [kind for kind, row in exact if not row["verified"]]
        tiled = [each for each in exact if "whole" not in each[1]]
        lines += [
            f"Exact ({len(exact)}; compiled in {median(seconds):.1f} s, at most {max(seconds):.0f}; the process at its "
            f"largest {max(peak)} MiB; of each its own): " + ", ".join(map(_cost, tiled)) + ".",
            "",
            f"`verify` agrees on all but {', '.join(disagree)}." if disagree else "`verify` agrees on all.",
            "",
        ]
    whole = [(_cost((kind, row)), str(row["whole"]).split("\n")[0][:260]) for kind, row in exact if "whole" in row]
    if whole:
        lines += ["As one engine of one input size:", ""]
        lines += table(("type", "why it is not tiled"), whole, left=2)
    unmade = [kind for kind, row in kinds.items() if row["outcome"] == "unmade"]
    if unmade:
        lines += [f"Unmade ({len(unmade)}): {', '.join(unmade)}.", ""]
    waiting = [kind.name for kind in types_of(name) if kind.name not in kinds]
    if waiting:
        lines += [f"Not measured yet ({len(waiting)}): {', '.join(waiting)}.", ""]
    others = [(kind, row) for kind, row in kinds.items() if row["outcome"] in ("refused", "off", "crash")]
    if others:
        lines += table(
            ("type", "outcome", "message"), [(kind, row["outcome"], _words(row)) for kind, row in others], left=3
        )
    return lines


def _cost(measured: tuple[str, Mapping[str, Any]]) -> str:
    """A type with the processor seconds of its compile and the process's largest memory."""
    kind, row = measured
    return f"{kind} ({row['compile_seconds']:.1f} s, {row['peak_mib']} MiB)"


def _words(row: Mapping[str, Any]) -> str:
    if row["outcome"] == "off":
        return f"{row['output']} at {row['at']} tokens: {row['error']:.1e} of {row['magnitude']:.1e}"
    return str(row["message"]).split("\n")[0][:260]
