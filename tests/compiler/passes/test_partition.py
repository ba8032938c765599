"""Regions between attentions: how they are cut, what they share, and the program they become."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import RobertaConfig, RobertaModel

from tests.compiler.small_models import WIDTH, OneLayer, bert, captured, captured_llama, gemma3, gpt2, llama, opt
from twoheads.compiler import compile_model, plan_model
from twoheads.compiler.ir.source_graph import TokenwiseNode
from twoheads.compiler.ir.source_program import Captured
from twoheads.compiler.passes.find_position_limits import find_position_limits
from twoheads.compiler.passes.partition import Region, partition
from twoheads.graphs.errors import CompileError
from twoheads.graphs.program.printer import print_program
from twoheads.graphs.program.program import AttentionEngine, TokenwiseStage

GOLDEN = Path(__file__).parents[3] / "tests" / "golden"


def regions(module: object) -> list[Region]:
    return [step for step in partition(captured(module).graph).body if isinstance(step, Region)]  # type: ignore[arg-type]


def test_equal_layers_share_one_region() -> None:
    prints = [region.fingerprint for region in regions(llama(num_hidden_layers=5))]
    assert len(prints) == 6
    assert len(set(prints[1:5])) == 1
    assert len(set(prints)) == 3


def test_a_constant_that_differs_makes_another_region() -> None:
    one, other = (regions(llama(rms_norm_eps=eps))[1].fingerprint for eps in (1e-6, 1e-5))
    assert one != other


def test_one_rope_table_serves_every_layer() -> None:
    stages = plan_model(llama(num_hidden_layers=4), block_size=16).body
    first, *later = [stage for stage in stages if isinstance(stage, TokenwiseStage)]
    shared = {value.name for value in first.outputs} & set(later[0].inputs) & set(later[1].inputs)
    assert len(shared) == 2, "cosine and sine"


def test_the_head_reads_hidden_states_only() -> None:
    for module in (llama(), gpt2(), gemma3()):
        program = plan_model(module, block_size=16)
        assert [stage.inputs for stage in program.head] == [(program.hidden,)]
        assert [value.name for value in program.head[-1].outputs] == [program.logits]


def test_a_model_that_returns_one_vector_has_no_hidden_states() -> None:
    """It was a bundle that its own reader refused."""
    mean = OneLayer(after=lambda x: x.mean(1))
    with pytest.raises(CompileError, match=r"returns \[1, \d+\] where the last hidden states are expected"):
        compile_model(mean, example_inputs=(torch.zeros((1, 11), dtype=torch.int64),), block_size=16)


def test_an_axis_with_several_rows_a_token_is_refused() -> None:
    """Such an axis has no name; it was an error of ours where lengths to try are chosen."""
    flat = OneLayer(before=lambda x: x + x.reshape(1, -1)[:, :1, None])
    with pytest.raises(CompileError):
        compile_model(flat, example_inputs=(torch.zeros((1, 11), dtype=torch.int64),), block_size=16)


def test_partitioning_twice_is_the_same() -> None:
    graph = captured_llama().graph
    assert partition(graph) == partition(graph)


def test_a_changed_operator_changes_the_fingerprint() -> None:
    graph = captured_llama().graph
    at = next(i for i, node in enumerate(graph.nodes) if isinstance(node, TokenwiseNode) and "silu" in node.op)
    node = graph.nodes[at]
    assert isinstance(node, TokenwiseNode)
    changed = replace(node, op=node.op.replace("silu", "relu"))
    mutated = replace(graph, nodes=(*graph.nodes[:at], changed, *graph.nodes[at + 1 :]))
    assert partition(mutated) != partition(graph)


@pytest.mark.parametrize(
    ("capture", "length", "table"),
    [
        (lambda: captured(bert()), 50, "position_embeddings"),
        (lambda: captured(gpt2()), 50, "wpe"),
        (lambda: captured(opt()), 50, "embed_positions"),
        (captured_llama, None, ""),
    ],
)
def test_the_position_table_limits_the_length(capture: Callable[[], Captured], length: int | None, table: str) -> None:
    found = capture()
    limits = find_position_limits(found.graph, found.program)
    assert [limit.length for limit in limits] == ([] if length is None else [length])
    assert all(table in limit.reason and limit.axis == "n" for limit in limits)


@pytest.mark.parametrize("padding", [0, 1, 2])
def test_positions_counted_without_padding_reach_the_end_of_their_table_too(padding: int) -> None:
    sizes: Any = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = RobertaConfig(**sizes, vocab_size=20, max_position_embeddings=40, pad_token_id=padding)
    found = captured(RobertaModel(config))
    (limit,) = find_position_limits(found.graph, found.program)
    assert limit.length == 40 - 1 - padding
    assert "position_embeddings" in limit.reason


def test_the_shortest_of_several_tables_is_the_limit() -> None:
    long, short = torch.randn(50, WIDTH), torch.randn(30, WIDTH)

    def both(x: Tensor) -> Tensor:
        at = torch.arange(x.shape[1])
        return x + long[at] + short[at] + long[at]

    found = captured(OneLayer(before=both))
    (limit,) = find_position_limits(found.graph, found.program)
    assert limit.length == 30


def test_a_clamped_index_never_leaves_its_table() -> None:
    table = torch.randn(10, WIDTH)
    found = captured(OneLayer(before=lambda x: x + table[torch.arange(x.shape[1]).clamp(max=9)]))
    assert find_position_limits(found.graph, found.program) == ()


def test_a_plan_needs_no_weights_and_is_the_compiled_program(tiny_llama: Path) -> None:
    assert plan_model(tiny_llama, block_size=16) == compile_model(tiny_llama, block_size=16).program


def test_grouped_heads_stay_grouped() -> None:
    engines = plan_model(llama(), block_size=16).engines
    (engine,) = (engine for engine in engines if isinstance(engine, AttentionEngine))
    assert (engine.q_num_heads, engine.kv_num_heads, engine.head_dim) == (4, 2, 4)


def test_the_program_of_a_model_is_the_golden_one() -> None:
    program = plan_model(llama(num_hidden_layers=2), block_size=16, key_tile=32)
    golden = GOLDEN / "llama.program"
    assert print_program(program) == golden.read_text(encoding="utf8"), f"if the change is meant, update {golden.name}"
