"""The ``stock`` lowering: a tile program whose attention engines are replaced by plain softmax attention.

Lemma 3.1 with one call instead of two: a synthetic key and two columns beside the values give what a softmax hides.
"""

from __future__ import annotations

from dataclasses import replace

from twoheads.compiler.lowering.tile import Lowered
from twoheads.graphs.costs.maskless_costs import needs_mask
from twoheads.graphs.errors import CompileError
from twoheads.graphs.masks.pieces import code_size
from twoheads.graphs.program.program import AttentionEngine, AttentionStage, Engine, Program, StockEngine

__all__ = ["lower_stock", "refuse_cross_attention"]


def lower_stock(lowered: Lowered) -> Lowered:
    """The same program on stock engines; ``lowered`` itself where it has no attention.

    Raises:
        CompileError: A softcap, which a plain softmax attention does not have.
    """
    program = lowered.program
    refuse_cross_attention(program, "stock")
    engines = tuple(_stock_engine(program, engine) for engine in program.engines)
    if engines == program.engines:
        return lowered
    return replace(lowered, program=replace(program, engines=engines))


def _stock_engine(program: Program, engine: Engine) -> Engine:
    if not isinstance(engine, AttentionEngine):
        return engine
    stages = [s for s in program.body if isinstance(s, AttentionStage) and s.engine == engine.name]
    if engine.distances:
        raise CompileError(
            f"{stages[0].name} (attention)",
            "adds scores by distance that depend on content, and softmax attention as accelerators have it does not",
            "compile with --lowering tile",
        )
    if engine.softcap:
        raise CompileError(
            f"{stages[0].name} (attention)",
            f"caps its scores (softcap {engine.softcap}), and softmax attention as accelerators have it does not: the "
            "cap would have to come between its product and its softmax",
            "compile with --lowering tile",
        )
    return StockEngine(
        name=engine.name,
        q_num_heads=engine.q_num_heads,
        kv_num_heads=engine.kv_num_heads,
        head_dim=engine.head_dim,
        v_head_dim=engine.v_head_dim,
        block_size=engine.block_size,
        key_tile=engine.key_tile,
        scale=engine.scale,
        code_size=max((code_size(s.mask, engine.block_size) for s in stages if not needs_mask(s)), default=0),
        mask_heads=engine.mask_heads,
        dtype=engine.dtype,
    )


def refuse_cross_attention(program: Program, lowering: str) -> None:
    """Refuses programs whose queries and keys come from different sequences.

    Raises:
        CompileError: Names the layer.
    """
    axes = {value.name: value.axis for value in program.values()}
    for stage in program.body:
        if isinstance(stage, AttentionStage) and axes[stage.query] != axes[stage.key]:
            raise CompileError(
                f"{stage.name} (attention)",
                f"attends from tokens along {axes[stage.query]} to tokens along {axes[stage.key]}, and the lowering "
                f"{lowering!r} knows self-attention only",
                "compile with --lowering tile",
            )
