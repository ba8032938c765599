"""Finds attentions that a model spells out: products, a softmax, and whatever lies between them.

The anchor is a softmax over tokens. From it the way up leads to the product of queries and keys
(:mod:`twoheads.compiler.recognition.scores`), the way down to the product with the values. Nothing is believed: layouts
and factors are read off by evaluating the products (:mod:`twoheads.compiler.recognition.operand_layout`), masks and
biases at several lengths (:mod:`twoheads.compiler.recognition.score_terms`), and in the end the whole subgraph is run
on random activations against the formula of what was recognised (:mod:`twoheads.compiler.recognition.prove`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from twoheads.compiler.ir.op_view import Kind, OpNode, OpView, RecognisedAttention
from twoheads.compiler.recognition.experiments import experiment_lengths, scalar
from twoheads.compiler.recognition.operand_layout import ScoreProduct, ValueProduct, arrange_scores, arrange_values
from twoheads.compiler.recognition.prove import prove_attention
from twoheads.compiler.recognition.score_terms import read_terms
from twoheads.compiler.recognition.scores import REWRITE, Scores, read_scores
from twoheads.graphs.errors import CompileError

__all__ = ["recognise_attention"]


def recognise_attention(view: OpView) -> tuple[RecognisedAttention, ...]:
    """Every attention of the model, in order.

    Raises:
        CompileError: A softmax over tokens is no attention that tiles can express, or the recognised attention doesn't
            compute what the model does.
    """
    consumers = _consumers(view)
    softmaxes = [node for node in view.nodes.values() if node.kind is Kind.SOFTMAX and _over_tokens(view, node)]
    return tuple(_recognise(view, node, consumers) for node in softmaxes)


def _consumers(view: OpView) -> Mapping[str, list[OpNode]]:
    found: dict[str, list[OpNode]] = {}
    for node in view.nodes.values():
        for name in dict.fromkeys(operand for operand in node.operands if isinstance(operand, str)):
            found.setdefault(name, []).append(node)
    return found


def _over_tokens(view: OpView, softmax: OpNode) -> bool:
    type_ = view.type(softmax.name)
    over_tokens = type_ is not None and bool(type_.shape) and isinstance(type_.shape[-1], str)
    return over_tokens and view.depends_on_content(softmax.name)  # a constant one is left to the check for mixing


def _recognise(view: OpView, softmax: OpNode, consumers: Mapping[str, list[OpNode]]) -> RecognisedAttention:
    scores = read_scores(view, softmax)
    axes = _axes(view, scores.product, softmax)
    lengths = experiment_lengths(axes)
    product = arrange_scores(view, scores.product, axes, lengths)
    if product is None:
        raise CompileError(
            softmax.where,
            f"its scores come from {scores.product.operator} (node {scores.product.name!r}), which is no product of "
            "queries and keys that lie head by head",
            REWRITE,
        )
    below, probabilities = _value_product(softmax, consumers)
    values = arrange_values(view, below, probabilities, axes, lengths)
    if values is None:
        raise CompileError(
            below.where, f"{below.operator} multiplies the softmax {softmax.name!r} with no values", REWRITE
        )
    found = _described(view, softmax, scores, product, below.name, values, axes)
    prove_attention(view, found, axes)
    return found


def _axes(view: OpView, product: OpNode, softmax: OpNode) -> tuple[str, str]:
    type_ = view.type(product.name)
    rows, keys = type_.shape[-2:] if type_ is not None and len(type_.shape) > 2 else (0, 0)
    if not isinstance(rows, str) or not isinstance(keys, str):
        raise CompileError(softmax.where, f"its scores have the shape {type_}, expected [.., tokens, tokens]", REWRITE)
    return rows, keys


def _value_product(softmax: OpNode, consumers: Mapping[str, list[OpNode]]) -> tuple[OpNode, str]:
    """The product that the probabilities enter, and their name there."""
    at, passed = softmax.name, softmax
    while True:
        users = consumers.get(at, [])
        tests = {node.name for node in users if node.kind is Kind.ISNAN}
        users = [node for node in users if node.name not in tests]
        products = [node for node in users if node.kind is Kind.MATMUL and at in node.operands]
        if len(users) == 1 and products:
            return products[0], at
        if len(users) != 1 or not _passes(users[0], at, tests):
            names = ", ".join(f"{node.operator} ({node.name})" for node in users) or "nothing"
            raise CompileError(
                passed.where,
                f"attention probabilities go to {names}, expected one product with the values",
                "leave outputs of attention probabilities out of the model (output_attentions=False)",
            )
        at, passed = users[0].name, users[0]


def _passes(node: OpNode, probabilities: str, tests: set[str]) -> bool:
    """Whether a node hands the probabilities on: a cast, a view, dropping the sinks' column, a guard of hidden rows.

    What it really does is for the proof to say.
    """
    if node.kind in (Kind.CAST, Kind.MOVE, Kind.SLICE):
        return node.operands[0] == probabilities
    guard = node.kind is Kind.WHERE and probabilities in node.operands[1:]
    return guard and (node.operands[0] in tests or probabilities != node.operands[0])


def _described(
    view: OpView,
    softmax: OpNode,
    scores: Scores,
    product: ScoreProduct,
    output: str,
    values: ValueProduct,
    axes: tuple[str, str],
) -> RecognisedAttention:
    scale, softcap = _scale_and_softcap(view, scores, experiment_lengths(axes))
    terms = read_terms(view, softmax, scores, axes)
    return RecognisedAttention(
        output=output,
        query=(product.query.source, product.query.arrangement),
        key=(product.key.source, product.key.arrangement),
        value=(values.value.source, values.value.arrangement),
        output_arrangement=values.output,
        mask=terms.mask,
        scale=scale * product.scale,
        softcap=softcap,
        sinks=terms.sinks,
        bias_table=terms.bias.table,
        bias_slope=terms.bias.slope,
        bias_source=terms.bias_source,
        max_length=terms.max_length,
        node=softmax.name,
        layer=softmax.layer,
    )


def _scale_and_softcap(view: OpView, scores: Scores, lengths: Mapping[str, int]) -> tuple[float, float]:
    """Factors before the softmax: all of them without a tanh; those before and after it with one."""
    before, after, capped = 1.0, 1.0, False
    for step in scores.steps:
        if step.node.kind is Kind.TANH:
            capped = True
        elif step.node.kind in (Kind.MUL, Kind.DIV):
            number = scalar(view, step.others[0], lengths)
            if number is None or not np.isfinite(number) or number == 0:
                continue  # no number but a mask; the proof decides
            factor = number if step.node.kind is Kind.MUL else 1.0 / number
            before, after = (before, after * factor) if capped else (before * factor, after)
    return (before * after, after) if capped else (before, 0.0)
