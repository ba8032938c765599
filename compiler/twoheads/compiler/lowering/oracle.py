"""The ``oracle`` lowering: the paper to the letter, every attention by calls of a plain small transformer.

Theorem 3.4 for bidirectional attention, Theorem 3.5 for causal, Theorem 5.1 for windows and sinks, with Lemma 3.3's
packing. Token-wise maps stay regions of their own, which the theorems allow as well as the oracle's MLP.
"""

from __future__ import annotations

from dataclasses import replace

from twoheads.compiler.lowering.stock import refuse_cross_attention
from twoheads.compiler.lowering.tile import Lowered
from twoheads.graphs.errors import CompileError
from twoheads.graphs.masks.bands import band_of
from twoheads.graphs.masks.pieces import code_size
from twoheads.graphs.masks.terms import INFINITE
from twoheads.graphs.program.program import AttentionEngine, AttentionStage, Engine, OracleEngine, Program

__all__ = ["lower_oracle"]

FIX = "compile with --lowering tile"
LARGEST = 32


def lower_oracle(lowered: Lowered, *, layers: int, heads: int) -> Lowered:
    """The same program on oracles of ``layers`` layers and ``heads`` heads.

    Raises:
        CompileError: An attention that softmax alone is not: a softcap, a bias, or a mask that is no band.
    """
    program = lowered.program
    for name, number in (("oracle_layers", layers), ("oracle_heads", heads)):
        if not 1 <= number <= LARGEST:
            raise CompileError(name, f"is {number}", f"give a number from 1 to {LARGEST}")
    if program.key_tile != program.block_size:
        raise CompileError(
            "key_tile",
            f"is {program.key_tile}; in an oracle queries and keys travel side by side, {program.block_size} of each",
            "leave --key-tile out",
        )
    refuse_cross_attention(program, "oracle")
    engines = tuple(_oracle(program, engine, layers, heads) for engine in program.engines)
    return replace(lowered, program=replace(program, engines=engines))


def _oracle(program: Program, engine: Engine, layers: int, heads: int) -> Engine:
    if not isinstance(engine, AttentionEngine):
        return engine
    stages = [s for s in program.body if isinstance(s, AttentionStage) and s.engine == engine.name]
    for stage in stages:
        _check(stage, engine)
    bands = [band for band in (band_of(stage.mask) for stage in stages) if band is not None]
    bidirectional = all((band.left, band.right) == (INFINITE, INFINITE) for band in bands)
    return OracleEngine(
        name=engine.name,
        layers=layers,
        heads=heads,
        block_size=engine.block_size,
        head_dim=engine.head_dim,
        v_head_dim=engine.v_head_dim,
        code_size=max((code_size(stage.mask, engine.block_size) for stage in stages), default=0),
        mask="full" if bidirectional else "causal",
        dtype=engine.dtype,
        q_num_heads=engine.q_num_heads,
        kv_num_heads=engine.kv_num_heads,
        scale=engine.scale,
    )


def _check(stage: AttentionStage, engine: AttentionEngine) -> None:
    where = f"{stage.name} (attention)"
    if engine.softcap:
        raise CompileError(where, f"caps its scores (softcap {engine.softcap}), a transformer oracle does not", FIX)
    if stage.bias is not None:
        raise CompileError(where, "adds a bias to its scores, a transformer oracle takes none", FIX)
    if band_of(stage.mask) is None:
        raise CompileError(where, f"has the mask {stage.mask}, which can't be cut into rectangles and triangles", FIX)
