"""Sequences of models with mixtures of experts, which are extended stage by stage: a token meets its experts only."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.mixtures import BLOCK, CHOSEN, EXPERTS, library_logits
from tests.runtime.generation.decoders import BEYOND, bundle, bundle_folder, tokens
from twoheads.graphs.program.program import ExpertsStage
from twoheads.graphs.variants.step_calls import generation_plan
from twoheads.graphs.variants.steps import step_steps
from twoheads.runtime import load
from twoheads.runtime.bundle.weights import Weights

BOUND = 1e-5
"""Of errors, as a share of the largest logit."""


@pytest.mark.parametrize(("name", "prompt"), [("olmoe", 1), ("olmoe", 37), ("gpt_oss", BLOCK + 1)])
def test_every_step_is_that_of_the_original(name: str, prompt: int) -> None:
    sequence = tokens(prompt + 5 * BLOCK)
    expected = library_logits(name, sequence)
    with bundle(name).open_context() as context:
        logits = [context.append(sequence[:prompt])]
        logits += [context.step(token) for token in sequence[prompt:]]
    assert np.abs(np.stack(logits) - expected[prompt - 1 :]).max() < BOUND * np.abs(expected).max()


@pytest.mark.parametrize("name", ["olmoe", "gpt_oss"])
def test_contexts_of_several_segments(name: str) -> None:
    widest = BEYOND * BLOCK
    sequence = tokens(widest + 40)
    expected = library_logits(name, sequence)
    with bundle(name).open_context() as context:
        context.append(sequence[: widest - 20])
        logits = [context.step(token) for token in sequence[widest - 20 :]]
        assert np.abs(np.stack(logits) - expected[widest - 20 :]).max() < BOUND * np.abs(expected).max()


def test_how_tokens_are_split_changes_no_bit() -> None:
    sequence = tokens(120)
    opened = load(bundle_folder("olmoe"), threads=2)
    whole, parts = opened.open_context(), opened.open_context()
    want = whole.append(sequence)
    for start, stop in ((0, 3), (3, 50), (50, 51), (51, 120)):
        got = parts.append(sequence[start:stop])
    np.testing.assert_array_equal(got, want)
    parts.rollback(90)
    np.testing.assert_array_equal(parts.append(sequence[90:]), want)
    branch = whole.fork()
    branch.rollback(100)
    np.testing.assert_array_equal(branch.append(sequence[100:]), want)


def test_a_batch_gives_what_each_gets_without_neighbours() -> None:
    """To the bit; beside what it gets without a batch, whose attention goes tile by tile, to rounding."""
    opened = bundle("olmoe")
    asked = [(1, 9), (BLOCK - 1, 5), (3 * BLOCK + 2, 12)]
    options: dict[str, Any] = {"ignore_eos": True, "return_logits": True}

    def run(requests: list[tuple[int, int]]) -> list[Any]:
        with opened.open_batch() as batch:
            made = [batch.submit(tokens(length, length), max_new_tokens=new, **options) for length, new in requests]
            while not batch.idle:
                batch.step()
            return [request.result() for request in made]

    for (length, new), together in zip(asked, run(asked), strict=True):
        (apart,) = run([(length, new)])
        np.testing.assert_array_equal(together.logits, apart.logits)
        alone: Any = opened.generate(tokens(length, length), max_new_tokens=new, steady=True, **options)
        assert together.tokens == apart.tokens == alone.tokens
        np.testing.assert_allclose(together.logits, alone.logits, atol=1e-5 * np.abs(alone.logits).max())


def test_a_step_reads_the_experts_of_its_token(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[str, int]] = []
    part = Weights.part

    def noted(self: Weights, name: str, number: int) -> Any:
        read.append((name, number))
        return part(self, name, number)

    monkeypatch.setattr(Weights, "part", noted)
    with bundle("olmoe").open_context() as context:
        context.append(tokens(40))
        read.clear()
        context.step(5)
    mixtures = [stage for stage in bundle("olmoe").program.body if isinstance(stage, ExpertsStage)]
    assert len(read) == len(mixtures) * 2 * CHOSEN < len(mixtures) * 2 * EXPERTS


@pytest.mark.parametrize(("prompt", "new"), [(1, 4), (3 * BLOCK + 5, 30), (BEYOND * BLOCK, 3)])
def test_calls_are_no_more_than_the_plan_says(prompt: int, new: int) -> None:
    opened = bundle("olmoe")
    plan, before = generation_plan(opened.program, prompt, new), opened.generation.calls
    with opened.open_context() as context:
        context.append(tokens(prompt))
        begun = opened.generation.calls
        assert begun - before <= plan.prompt_calls
        for token in tokens(new - 1):
            context.step(token)
    assert opened.generation.calls - begun == plan.step_calls  # a single token takes as many as it chooses


def test_no_engine_holds_all_layers() -> None:
    steps = step_steps(bundle("olmoe").program)
    assert steps is not None
    assert steps.layered
    files = {path.name for path in (bundle_folder("olmoe") / "engines").iterdir()}
    assert not {
        name for name in files if name in {f"step_{rows}_{capacity}.onnx" for rows in (1, 8) for capacity in (0, 4)}
    }
