"""A loaded model through torch.export: our hooks in its place of attention, nothing written in place."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim as ExportDim
from torch.export import ExportedProgram
from torch.fx import config
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from twoheads.compiler.frontend.torch.hugging_face.architectures import replaced
from twoheads.compiler.frontend.torch.hugging_face.grouped_experts import DENSE, ExpertsChoice
from twoheads.compiler.frontend.torch.hugging_face.hooks import hooked
from twoheads.compiler.frontend.torch.hugging_face.library_attention import EAGER, using_attention
from twoheads.compiler.frontend.torch.load_source import LoadedSource
from twoheads.compiler.frontend.torch.model_outputs import hugging_face_outputs, named_outputs, whole_outputs
from twoheads.compiler.frontend.torch.repeats.copy_layers import EqualLayers
from twoheads.compiler.frontend.torch.rewrites.written_operands import replace_writes
from twoheads.compiler.frontend.torch.weights.stored_tensor import unset_parameters
from twoheads.graphs.errors import CompileError

__all__ = ["ROOT", "export_source", "without_remembered_shapes", "without_stack_traces"]

logger = logging.getLogger(__name__)

ROOT = "module"
"""Name of the source model inside the wrapper that is exported; stripped from every path."""


class _Wrapper(nn.Module):
    """Runs the model and returns its last hidden states and, where it has a head, its logits."""

    def __init__(self, source: LoadedSource, check: Callable[[Iterable[Tensor]], None]) -> None:
        super().__init__()
        self.module = source.module
        self.hugging_face = source.hugging_face
        self.whole = source.whole
        self.check = check

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.hugging_face:
            outputs = hugging_face_outputs(self.module, inputs)
        else:
            outputs = named_outputs(self.module(**inputs), type(self.module).__name__)
        if self.whole:
            outputs = whole_outputs(outputs, type(self.module).__name__)
        self.check(outputs.values())
        return outputs


def export_source(source: LoadedSource, experts: ExpertsChoice = DENSE) -> ExportedProgram:
    """The model's last hidden states and logits as a graph of ATen operators, its token axes symbolic.

    Args:
        source: The model.
        experts: How mixtures of experts are to be computed; densely by default.

    Raises:
        CompileError: torch.export can't trace it, or it is known not to work.
    """
    examples = {name: entry.example for name, entry in source.inputs.items()}
    dynamic = {
        name: {} if entry.token_axis is None else {entry.token_axis: ExportDim.AUTO}
        for name, entry in source.inputs.items()
    }

    def traced(layers: EqualLayers | None) -> ExportedProgram:
        # A function, because torch copies whatever else a module holds.
        check = (lambda outputs: None) if layers is None else (lambda outputs: layers.require_closed(outputs))
        with nullcontext() if layers is None else layers.installed():
            wrapper = _Wrapper(source, check).eval()
            return torch.export.export(wrapper, (examples,), dynamic_shapes=(dynamic,), strict=False)

    try:
        with (
            torch.no_grad(),
            without_stack_traces(),
            without_remembered_shapes() if any(dynamic.values()) else nullcontext(),
            unset_parameters(source.module) as stored,
            _capturing(source, experts),
        ):
            try:
                found = _functional(traced(EqualLayers(source.module)))
            except CompileError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever it is, tracing every layer is what torch.export promises
                logger.info("every layer is traced, for copying failed: %s: %s", type(error).__name__, error)
                found = _functional(traced(None))
    except CompileError:
        raise
    except Exception as error:
        raise CompileError(
            source.identity.name,
            _untraced(source.identity.architecture, error),
            "rewrite the data-dependent or length-dependent code it names",
        ) from error
    named = {f"{ROOT}.{name}": tensor for name, tensor in stored.items()}
    found.state_dict.update((name, tensor) for name, tensor in named.items() if name in found.state_dict)
    return found


def _untraced(architecture: str, error: Exception) -> str:
    """Why the model could not be traced: in our words where code asks for a number that only an input tells."""
    message = " ".join(str(error).split())
    if not isinstance(error, GuardOnDataDependentSymNode):
        return f"torch.export can't trace {architecture}: {type(error).__name__}: {message[:400]}"
    place = re.search(r"Caused by: \(transformers/(?:\S*/)?([^/]+\.py:\d+ in [^)]+)\)", message)
    return (
        f"{architecture} decides by the content of its input what it computes"
        f"{f' ({place.group(1)})' if place else ''}, and a graph computes the same for every input"
    )


@contextmanager
def without_stack_traces() -> Generator[None]:
    """Within it, torch does not look up for each operator where it was called from: a seventh of a capture, unread.

    Errors still say where. A release of torch without this setting records it.
    """
    with _set(config, "do_not_emit_stack_traces", True):
        yield


@contextmanager
def without_remembered_shapes() -> Generator[None]:
    """Within it, torch does not look up what an operator gave before for such shapes.

    With a symbolic number of tokens that costs more than it saves, a tenth of a capture; with numbers it saves.
    """
    import torch._dynamo.config as dynamo

    with _set(dynamo, "fake_tensor_cache_enabled", False):
        yield


@contextmanager
def _set(settings: Any, name: str, value: bool) -> Generator[None]:
    """Within it, a setting of torch has this value, where this release of torch has the setting."""
    before = getattr(settings, name, None)
    if before is None:
        yield
        return
    setattr(settings, name, value)
    try:
        yield
    finally:
        setattr(settings, name, before)


@contextmanager
def _capturing(source: LoadedSource, experts: ExpertsChoice) -> Generator[None]:
    """A transformers model under our hooks and replacements, or whole, under the library's own eager code."""
    if not source.hugging_face:
        yield
        return
    if source.whole:
        with using_attention(source.module, EAGER):
            yield
        return
    with hooked(source.module, experts), replaced(source.module):
        yield


def _functional(exported: ExportedProgram) -> ExportedProgram:
    """Replaces operators that write into their operands (``x += y``): a region must not change what others read."""
    return exported if replace_writes(exported.graph_module.graph) else exported.run_decompositions({})
