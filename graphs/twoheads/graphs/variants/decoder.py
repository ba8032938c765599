"""The part of a program that a step computes: all of a decoder, or what of an encoder-decoder follows its encoder.

Behind an encoder the decoder's stages are those that depend on the decoder's own tokens. They read the encoder through
the keys and values of cross attention alone. These depend on no token that is generated: they are the *source*, which
the tile program computes once a sequence, whatever its length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from twoheads.graphs.errors import CompileError
from twoheads.graphs.masks.expressions import Full
from twoheads.graphs.program.lengths import is_cross
from twoheads.graphs.program.program import (
    COUNTING,
    TOKENS,
    AttentionEngine,
    AttentionStage,
    Program,
    SequenceStage,
    Stage,
    Value,
)
from twoheads.graphs.variants.stage_run import StageRun, is_exact, whole_body

__all__ = ["DecoderPart", "decoder_part", "source_values", "step_obstacle"]

FAR = (0, 1, 255, 256, 4099, 70_000)
"""Positions at which masks are asked whether they look ahead."""

ORIGINAL = "generate with the original"


@dataclass(frozen=True, slots=True)
class DecoderPart:
    """What steps compute.

    Attributes:
        program: The decoder alone: the program itself, if it has no encoder.
        body: All stages of its body.
        source: Keys and values of cross attention, in the order in which they are read; none without an encoder.
    """

    program: Program
    body: StageRun
    source: tuple[Value, ...]


@lru_cache(maxsize=16)
def source_values(program: Program) -> tuple[Value, ...]:
    """The keys and values that cross attentions of the decoder's tokens read, in order; none without an encoder."""
    values, stages = {value.name: value for value in program.values()}, _own_stages(program)
    own = {value.name for stage in stages for value in stage.outputs}
    read = (stage for stage in stages if isinstance(stage, AttentionStage) and is_cross(stage, values))
    names = (name for stage in read for name in (stage.key, stage.value) if name not in own)
    return tuple(values[name] for name in dict.fromkeys(names))


@lru_cache(maxsize=16)
def decoder_part(program: Program) -> DecoderPart | None:
    """What of ``program`` extends a sequence; ``None`` where :func:`step_obstacle` says why nothing does."""
    if step_obstacle(program) is not None:
        return None
    source = source_values(program)
    if source:
        decoder = _decoder(program)
        return DecoderPart(decoder, _all_stages(decoder), source)
    body = whole_body(program, mixtures=True)
    return None if body is None else DecoderPart(program, body, ())


@lru_cache(maxsize=16)
def step_obstacle(program: Program) -> CompileError | None:
    """Why sequences of ``program`` can't be extended token by token: names the place, what it does, and a remedy."""
    if program.logits is None or program.pooled_logits or not program.head:
        return CompileError(program.name, "has no logits of every token, so it generates nothing", "compile a decoder")
    source = {value.name: value for value in source_values(program)}
    decoder = _decoder(program) if source else program
    arguments = [entry for entry in decoder.inputs if entry.source == "argument"]
    if len(arguments) != 1 or arguments[0].limit is None or arguments[0].value.axis != TOKENS:
        return CompileError(program.name, "reads more or other things than tokens", ORIGINAL)
    for entry in decoder.inputs:
        if entry.source not in ("argument", "zeros", *COUNTING):
            problem = f"reads {entry.source}, which changes with every token that is added"
            return CompileError(f"input {entry.value.name}", problem, ORIGINAL)
    for stage in decoder.attentions:
        crossing = stage.key in source
        if problem := _cross_problem(program, stage) if crossing else _attention_problem(program, stage):
            return CompileError(stage.name, problem, f"{ORIGINAL}, or compile with --lowering tile")
    if source:
        return _source_obstacle(program, decoder, source)
    body = whole_body(program, mixtures=True)
    if body is None or (body.first, body.end) != (0, len(program.body)):
        return CompileError(program.name, "moves rows between its layers, or attends along several axes", ORIGINAL)
    return _hidden_obstacle(body, source)


def _source_obstacle(program: Program, decoder: Program, source: Mapping[str, Value]) -> CompileError | None:
    """The same of a decoder behind an encoder: on one axis, and reading nothing of the encoder but its source."""
    values = {value.name: value for value in program.values()}
    if len({value.axis for value in source.values()}) != 1 or any(value.axis is None for value in source.values()):
        return CompileError(program.name, "attends to several other sequences", ORIGINAL)
    for stage in decoder.body:
        own = (name for name in stage.inputs if not (isinstance(stage, AttentionStage) and name in source))
        axes = {values[name].axis for name in own} | {value.axis for value in stage.outputs}
        if isinstance(stage, SequenceStage) or axes != {TOKENS}:
            return CompileError(f"stage {stage.name}", "moves rows between the decoder's layers", ORIGINAL)
    own_values = {value.name for value in decoder.values()}
    for stage in decoder.body:
        foreign = [name for name in stage.inputs if name not in own_values and name not in source]
        if foreign or (not isinstance(stage, AttentionStage) and set(stage.inputs) & source.keys()):
            return CompileError(f"stage {stage.name}", "reads more of the encoder than keys and values", ORIGINAL)
    return _hidden_obstacle(_all_stages(decoder), source)


def _hidden_obstacle(body: StageRun, source: Mapping[str, Value]) -> CompileError | None:
    """The head reads the hidden states alone, and attention reads what the body computes, and no input."""
    program, given = body.program, {name for name in body.inputs if name not in source}
    outside = given | {value.name for value in body.outputs}
    kept = {name for stage in body.attentions for name in (stage.key, stage.value)}
    if {value.name for value in body.outputs} != {program.hidden} or outside & kept:
        return CompileError(program.name, "has a head that reads more than hidden states", ORIGINAL)
    return None


def _own_stages(program: Program) -> tuple[Stage, ...]:
    """The stages of the body that depend on the caller's tokens, or the decoder's."""
    known = {entry.value.name for entry in program.inputs if entry.value.axis == TOKENS}
    found: list[Stage] = []
    for stage in program.body:
        if not known.isdisjoint(stage.inputs):
            found.append(stage)
            known.update(value.name for value in stage.outputs)
    return tuple(found)


@lru_cache(maxsize=16)
def _decoder(program: Program) -> Program:
    """The stages that depend on the decoder's tokens, as a program whose cross attentions read what it lacks."""
    body = _own_stages(program)
    read = {name for stage in body for name in stage.inputs}
    used = {getattr(stage, "engine", None) for stage in (*body, *program.head)}
    return replace(
        program,
        inputs=tuple(entry for entry in program.inputs if entry.value.name in read),
        engines=tuple(engine for engine in program.engines if engine.name in used),
        body=body,
        max_length=next((limit for limit in program.limits if limit.axis == TOKENS), None),
        other_limits=(),
    )


def _all_stages(decoder: Program) -> StageRun:
    held = (stage for stage in decoder.body if not isinstance(stage, SequenceStage))
    return StageRun(decoder, 0, tuple(held))


def _attention_problem(program: Program, stage: AttentionStage) -> str:
    if not isinstance(program.engine(stage.engine), AttentionEngine):
        return "is lowered to engines that give no log-sum-exp"
    if not is_exact(program, stage):
        return "samples keys"
    if any(stop > at + 1 for at in FAR for _, stop in stage.mask.support((at, at + 1))):
        return f"sees later tokens ({stage.mask}), so that every token changes all others"
    return ""


def _cross_problem(program: Program, stage: AttentionStage) -> str:
    if not isinstance(program.engine(stage.engine), AttentionEngine):
        return "is lowered to engines that give no log-sum-exp"
    if not is_exact(program, stage):
        return "samples keys"
    if stage.mask != Full() or stage.bias is not None:
        return f"sees the encoder's tokens under a mask or a bias ({stage.mask})"
    return ""
