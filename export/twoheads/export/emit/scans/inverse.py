"""The inverse of ``I + B``, where ``B`` is strictly lower triangular, by products of matrices.

Of two neighbouring runs of rows, the inverse has the inverses of both, and below the first ``-Z B Y``, where ``Z`` and
``Y`` are these. So it is made of runs of 1, 2, 4, ... rows. (``B`` is nilpotent, so that powers of it give the inverse
with fewer operators; but where keys are alike, the powers are binomials, of 17 digits for 64 equal keys.)
"""

from __future__ import annotations

import numpy as np

from twoheads.export.emit.scans.scan_graph import ScanGraph

__all__ = ["inverse"]

SMALL = 16
"""Rows that are inverted by products of whole matrices: many products of a few rows each take longer."""


def inverse(graph: ScanGraph, lower: str, size: int, count: int) -> str:
    """``[count, size, size]``, from as many numbers ``lower``, strictly lower triangular; ``size`` is a power of 2."""
    if size <= SMALL:
        return _of_whole_matrices(graph, graph.reshape(lower, count, size, size), size)
    half = size // 2
    matrix = graph.reshape(lower, count, size, size)
    left, right = graph.part(matrix, 2, 0, half), graph.part(matrix, 2, half, size)
    upper, corner = graph.part(left, 1, 0, half), graph.part(left, 1, half, size)
    lower = graph.part(right, 1, half, size)
    both = inverse(graph, graph.node("Concat", upper, lower, axis=0), half, 2 * count)
    first, second = graph.parts(both, 0, 2, count)
    made = graph.node("MatMul", graph.node("MatMul", second, graph.node("Neg", corner)), first)
    zeros = graph.node("Mul", corner, graph.constant(0.0))
    top, bottom = (graph.node("Concat", *pair, axis=2) for pair in ((first, zeros), (made, second)))
    return graph.node("Concat", top, bottom, axis=1)


def _of_whole_matrices(graph: ScanGraph, lower: str, size: int) -> str:
    made = graph.array(f"identity_{size}", np.eye(size, dtype=np.float32)[None])
    run = 1
    while run < size:
        corners = graph.node("Mul", lower, _corners(graph, size, run))
        if run == 1:
            made = graph.node("Sub", made, corners)
        else:
            made = graph.node("Sub", made, graph.node("MatMul", graph.node("MatMul", made, corners), made))
        run *= 2
    return made if size > 1 else graph.node("Add", graph.node("Mul", lower, graph.constant(0.0)), made)


def _corners(graph: ScanGraph, size: int, run: int) -> str:
    """Ones where the row is of the second and the column of the first run of a pair."""
    at = np.arange(size) // run
    pairs = (at[:, None] // 2 == at // 2) & (at[:, None] % 2 == 1) & (at % 2 == 0)
    return graph.array(f"corners_{size}_{run}", pairs.astype(np.float32))
