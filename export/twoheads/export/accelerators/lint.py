"""What a target's compiler would refuse or leave to the host, found in the engines before any compiler runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod

import onnx

from twoheads.export.accelerators.precisions import PRECISIONS
from twoheads.export.accelerators.prepare_engine import prepare_engine
from twoheads.export.accelerators.target import Rule, Target
from twoheads.export.engines.jobs import engine_file_model, engine_jobs, step_jobs
from twoheads.graphs.errors import InternalError
from twoheads.runtime.bundle.reader import Bundle

__all__ = ["Finding", "lint_bundle", "lint_model"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One node that breaks one rule.

    Attributes:
        engine: The engine's file in the bundle.
        node: The node's name, or that of its first output.
        operator: Its operator.
        rule: What it breaks, with the value that is too large.
        effect: ``refused``, ``host`` (the compiler leaves it to the processor) or ``wrong`` (its result is).
        remedy: What to do about it.
    """

    engine: str
    node: str
    operator: str
    rule: str
    effect: str
    remedy: str


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A value's ONNX type name and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]


def lint_bundle(bundle: Bundle, target: Target, *, generation: bool = False) -> tuple[Finding, ...]:
    """Every finding in every engine of ``bundle``, in the form in which the compiler gets it at the first precision.

    Args:
        bundle: The bundle.
        target: What its engines are for.
        generation: Also in what extends a sequence.

    Raises:
        InputError: The bundle is none that is built, or with ``generation``, extended, on accelerators.
    """
    findings: list[Finding] = []
    precision = target.precisions[0]
    jobs = engine_jobs(bundle, once=True, half=PRECISIONS[precision].narrow)
    for job in (*jobs, *(step_jobs(bundle, once=True) if generation else ())):
        model = engine_file_model(bundle, job)
        try:
            prepared = prepare_engine(model, target, precision, job.name, job.stock, job.scores).accelerator
        except RuntimeError as error:  # what the converter of operator sets raises
            rule = f"operator set above {target.highest_opset}: {error}"
            findings.append(Finding(job.file, "", "", rule, "refused", "export the model with an older operator set"))
            continue
        if prepared is not None:
            findings += lint_model(prepared, target, job.file)
    return tuple(findings)


def lint_model(model: onnx.ModelProto, target: Target, engine: str) -> list[Finding]:
    """The findings in one model of fixed shapes; ``engine`` is what they call it."""
    tensors = _tensors(model)
    findings: list[Finding] = []
    for node in model.graph.node:
        ports = [tensors[name] for name in (*node.input, *node.output) if name in tensors]
        for rule in target.rules:
            if rule.operators and node.op_type not in rule.operators:
                continue
            if broken := next(_CHECKS[rule.rule](rule, ports), None):
                name = node.name or node.output[0]
                findings.append(Finding(engine, name, node.op_type, broken, rule.effect, rule.remedy))
    return findings


def _tensors(model: onnx.ModelProto) -> Mapping[str, _Tensor]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    tensors: dict[str, _Tensor] = {}
    for value in (*graph.input, *graph.output, *graph.value_info):
        kind = value.type.tensor_type
        shape = tuple(dim.dim_value for dim in kind.shape.dim)
        tensors[value.name] = _Tensor(value.name, onnx.TensorProto.DataType.Name(kind.elem_type).lower(), shape)
    for constant in graph.initializer:
        dtype = onnx.TensorProto.DataType.Name(constant.data_type).lower()
        tensors[constant.name] = _Tensor(constant.name, dtype, tuple(constant.dims))
    return tensors


def _operator(_rule: Rule, _ports: list[_Tensor]) -> Iterator[str]:
    yield "operator"


def _dtype(rule: Rule, ports: list[_Tensor]) -> Iterator[str]:
    return (f"dtype {port.dtype} of {port.name}" for port in ports if port.dtype in rule.dtypes)


def _limited(what: str, measure: Callable[[_Tensor], int]) -> Callable[[Rule, list[_Tensor]], Iterator[str]]:
    def check(rule: Rule, ports: list[_Tensor]) -> Iterator[str]:
        if rule.limit is None:
            raise InternalError(f"rule {rule.rule} has no limit")
        sizes = ((port.name, measure(port)) for port in ports)
        return (f"{what} {size} of {name} is above {rule.limit}" for name, size in sizes if size > rule.limit)

    return check


def _mask_elements(port: _Tensor) -> int:
    return prod(port.shape) if port.name == "mask" else 0


_CHECKS: dict[str, Callable[[Rule, list[_Tensor]], Iterator[str]]] = {
    "operator": _operator,
    "dtype": _dtype,
    "rank": _limited("rank", lambda port: len(port.shape)),
    "axis": _limited("axis", lambda port: max(port.shape, default=1)),
    "elements": _limited("number of elements", lambda port: prod(port.shape)),
    "plane": _limited("product of the last two axes", lambda port: prod(port.shape[-2:])),
    "mask": _limited("number of elements of the mask", _mask_elements),
}
