"""How far off the synthetic token's score may be: the error of ``lse`` and ``out`` of one stock call, measured.

Run it with ``python -m tools.synthetic_token``; it writes the table into ``docs/design/stock.md``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime  # type: ignore[import-untyped]

from twoheads.export.emit.stock_attention import stock_model
from twoheads.graphs.program.program import StockEngine

__all__ = ["Errors", "main", "measure"]

DOCUMENT = Path(__file__).parents[1] / "docs" / "design" / "stock.md"
MARKS = ("<!-- begin: tools/synthetic_token.py -->", "<!-- end -->")
SCORES = {
    "float32": (-90, -80, -60, -40, -20, -10, 0, 10, 20, 40, 60, 80, 90),
    "float16": (-12, -10, -5, -2, 0, 2, 5, 10, 12),
}
BLOCK, HEADS, WIDTH = 128, 4, 64

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Errors:
    """The largest absolute errors of one call against float64; ``paper`` is ``lse`` by one column, ``y / (1 - y)``."""

    away: int
    lse: float
    out: float
    paper: float


def measure(dtype: str, aways: tuple[int, ...], seed: int = 0) -> Iterator[Errors]:
    """Errors for synthetic scores that lie ``aways`` from each query's own log-sum-exp."""
    engine = StockEngine("attention", HEADS, HEADS, WIDTH, WIDTH, BLOCK, BLOCK, WIDTH**-0.5, 0, 1, dtype)
    session = onnxruntime.InferenceSession(stock_model(engine, "full").SerializeToString())
    rng = np.random.default_rng(seed)
    q, k, v = (rng.standard_normal((1, HEADS, BLOCK, WIDTH)).astype(dtype) for _ in range(3))
    scores = q.astype(np.float64) @ k.astype(np.float64).swapaxes(2, 3) * engine.scale
    lse = np.log(np.exp(scores).sum(-1))
    out = np.exp(scores - lse[..., None]) @ v.astype(np.float64)
    for away in aways:
        coordinate = ((lse + away) / engine.scale).astype(dtype)
        score = coordinate.astype(np.float64) * engine.scale
        feeds = {
            "q": np.concatenate([q, coordinate[..., None]], -1),
            "k": _with_synthetic_key(np.concatenate([k, np.zeros_like(k[..., :1])], -1), WIDTH),
            "v": _with_synthetic_key(
                np.concatenate([v, np.ones_like(v[..., :1]), np.zeros_like(v[..., :1])], -1), WIDTH + 1
            ),
        }
        result = np.asarray(session.run(None, feeds)[0]).astype(np.float64)
        real, synthetic = result[..., -2], result[..., -1]
        with np.errstate(divide="ignore", invalid="ignore"):
            yield Errors(
                away,
                lse=_largest(score + np.log(real / synthetic) - lse),
                out=_largest(result[..., :WIDTH] / real[..., None] - out),
                paper=_largest(score + np.log(real / (1 - real)) - lse),
            )


def _with_synthetic_key(keys: Array, coordinate: int) -> Array:
    first = np.zeros_like(keys[:, :, :1])
    first[..., coordinate] = 1
    return np.concatenate([first, keys], axis=2)


def _largest(difference: Array) -> float:
    return float(np.abs(difference).max()) if np.isfinite(difference).all() else float("nan")


def _table() -> str:
    lines = ["| ports | score minus lse | error of lse | error of out | lse by one column, as in the paper |"]
    lines.append("|---|---|---|---|---|")
    for dtype, aways in SCORES.items():
        for found in measure(dtype, aways):
            numbers = (found.lse, found.out, found.paper)
            cells = " | ".join("undefined" if np.isnan(number) else f"{number:.1e}" for number in numbers)
            lines.append(f"| {dtype} | {found.away:+d} | {cells} |".replace("| +0 |", "| 0 |"))
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Measures and rewrites the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--document", type=Path, default=DOCUMENT, help="the file that holds the two marks")
    path = parser.parse_args(argv).document
    before, rest = path.read_text(encoding="utf-8").split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    path.write_text(f"{before}{MARKS[0]}\n{_table()}\n{MARKS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
