"""A block program as text: one statement a line, indented lines continue it; printed and parsed without loss.

::

    program SmolLM2-135M block_size=256 key_tile=256
    max_length 8192 "position table"
    axis_limit m 1024 "the encoder's position table"
    trained_length 8192
    input %input_ids: int64[1, n] = argument < 49152
    engine @region_0: (input_ids: int64[1, 256]) -> (h: float32[1, 256, 576], q: float32[1, 9, 256, 64]) flops=31
        weights w0: float32[49152, 576]
    engine @attention_0: attention q_num_heads=9 kv_num_heads=3 head_dim=64 ...
    engine @scan_0: scan operator=causal_conv sizes=(bias=0, channels=576, kernel=3) block_size=256 chunk=256
    engine @experts_0: experts experts=64 chosen=8 width=2048 inner=1024 gate=silu ...
    stage embed: %h0: float32[1, n, 576], %q0: float32[1, 9, n, 64] = @region_0(%input_ids)
        weights model.embed_tokens.weight
    stage layers.0.attn: %a0: float32[1, 9, n, 64] = @attention_0(%q0, %k0, %v0) mask="causal"
    stage layers.1.conv: %y1: float32[1, n, 576] = @scan_0(%x1) scan(layers.1.conv.weight)
    stage layers.1.mlp.experts: %e1: float32[n, 2048] = @experts_0(%x1, %i1, %s1) experts(layers.1.up, layers.1.down)
    stage first: %first: float32[1, 1, 576] = take(%h30) axis=1 from_end=0 start=0 step=1
    head lm_head: %logits: float32[1, n, 49152] = @region_2(%h30)
    output hidden = %h30
    output logits = %logits
    pooling mean normalize

An input that holds a length says whose: ``input %length: int64[1] = length(n)``. Names other than letters, digits,
``_``, ``.`` and ``-`` are quoted as in JSON, as are axes with a division and those of constant length. ``#`` begins a
line of comment. The text carries no ids, addresses or times, so equal programs have equal texts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from twoheads.graphs.by_kind import ByKind
from twoheads.graphs.program.program import (
    AttentionStage,
    Dim,
    Engine,
    ExpertsStage,
    Port,
    Program,
    ScanStage,
    SequenceStage,
    Stage,
    TokenwiseStage,
    Value,
)
from twoheads.graphs.program.text_form import ENGINE_FORMS, WHOLE, engine_defaults, engine_fields

__all__ = ["print_program"]

_BARE = re.compile(r"[A-Za-z0-9_.-]+")
_BARE_AXIS = re.compile(r"[A-Za-z0-9_.+-]+")


def print_program(program: Program) -> str:
    """The program as text; ``parse_program`` reads it back as an equal program."""
    lines = [f"program {_name(program.name)} block_size={program.block_size} key_tile={program.key_tile}"]
    if program.max_length is not None:
        lines.append(f"max_length {program.max_length.length} {json.dumps(program.max_length.reason)}")
    lines += [f"axis_limit {limit.axis} {limit.length} {json.dumps(limit.reason)}" for limit in program.other_limits]
    if program.trained_length is not None:
        lines.append(f"trained_length {program.trained_length}")
    for entry in program.inputs:
        limit = "" if entry.limit is None else f" < {entry.limit}"
        axis = "" if entry.axis is None else f"({_axis(entry.axis)})"
        lines.append(f"input {_value(entry.value)} = {_name(entry.source)}{axis}{limit}")
    for engine in program.engines:
        lines += _engine_lines(engine)
    for stage in program.body:
        lines += _stage_lines("stage", stage)
    for stage in program.head:
        lines += _stage_lines("head", stage)
    lines.append(f"output hidden = %{_name(program.hidden)}")
    if program.logits is not None:
        lines.append(f"output logits = %{_name(program.logits)}")
    if program.pooling is not None:
        lines.append(f"pooling {_name(program.pooling.mode)}{' normalize' if program.pooling.normalize else ''}")
    return "\n".join(lines) + "\n"


def _name(name: str) -> str:
    return name if _BARE.fullmatch(name) else json.dumps(name, ensure_ascii=not name.isprintable())


def _shape(shape: tuple[Dim, ...]) -> str:
    return f"[{', '.join(str(dim) if isinstance(dim, int) else _axis(dim) for dim in shape)}]"


def _axis(axis: str) -> str:
    if WHOLE.fullmatch(axis):
        return json.dumps(axis)  # a constant number of rows; bare, it would be a number
    return axis if _BARE_AXIS.fullmatch(axis) else _name(axis)


def _value(value: Value) -> str:
    return f"%{_name(value.name)}: {_name(value.dtype)}{_shape(value.shape)}"


def _ports(ports: tuple[Port, ...]) -> str:
    return ", ".join(f"{_name(port.name)}: {_name(port.dtype)}{_shape(port.shape)}" for port in ports)


def _engine_lines(engine: Engine) -> list[str]:
    start = f"engine @{_name(engine.name)}:"
    if (form := ENGINE_FORMS.get(engine.kind)) is not None:
        usual = engine_defaults(form)
        fields = [(name, getattr(engine, name)) for name in engine_fields(form)]
        fields = [(name, value) for name, value in fields if name not in usual or usual[name] != value]
        return [f"{start} {engine.kind} " + " ".join(f"{name}={_scalar(value)}" for name, value in fields)]
    inputs, outputs = engine.ports("")
    lines = [f"{start} ({_ports(inputs)}) -> ({_ports(outputs)}) flops={engine.call_flops()}"]
    return [*lines, f"    weights {_ports(engine.weights)}"] if engine.weights else lines


def _scalar(value: str | float | tuple[tuple[str, int], ...]) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(f'{_name(name)}={number}' for name, number in value)})"
    return _name(value) if isinstance(value, str) else repr(value)


def _stage_lines(keyword: str, stage: Stage) -> list[str]:
    defined = " " + ", ".join(map(_value, stage.outputs)) if stage.outputs else ""
    reads = ", ".join(f"%{_name(name)}" for name in stage.inputs)
    called, more = _CALLS.of(stage)(stage)
    return [f"{keyword} {_name(stage.name)}:{defined} = {called}({reads}){more}"]


def _tokenwise(stage: TokenwiseStage) -> tuple[str, str]:
    """What is called, and what follows its operands."""
    weights = f"\n    weights {', '.join(map(_name, stage.weights))}" if stage.weights else ""
    return f"@{_name(stage.engine)}", weights


def _attention(stage: AttentionStage) -> tuple[str, str]:
    more = f' mask="{stage.mask}"'
    if stage.sinks is not None:
        more += f" sinks={_name(stage.sinks)}"
    if stage.bias is not None:
        parts = (("table", stage.bias.table), ("slope", stage.bias.slope))
        more += f" bias({', '.join(f'{key}={_name(name)}' for key, name in parts if name is not None)})"
    if stage.average is not None:
        average = stage.average
        window = "" if average.window is None else f"window={average.window}, "
        more += f" average(samples={average.samples}, {window}sinks={average.sinks}, seed={average.seed})"
    return f"@{_name(stage.engine)}", more


def _sequence(stage: SequenceStage) -> tuple[str, str]:
    return _name(stage.operator), "".join(f" {_name(name)}={number}" for name, number in stage.attributes)


def _scan(stage: ScanStage) -> tuple[str, str]:
    return f"@{_name(stage.engine)}", f" scan({', '.join(map(_name, stage.weights))})"


def _experts(stage: ExpertsStage) -> tuple[str, str]:
    return f"@{_name(stage.engine)}", f" experts({', '.join(map(_name, stage.weights))})"


_CALLS: ByKind[Callable[[Any], tuple[str, str]]] = ByKind(
    "printer",
    {
        TokenwiseStage: _tokenwise,
        AttentionStage: _attention,
        SequenceStage: _sequence,
        ScanStage: _scan,
        ExpertsStage: _experts,
    },
)
