"""Makes what the contenders of a case load: the model, our bundle of it, and the whole graph as an ONNX file."""

from __future__ import annotations

import logging
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from tools.attention_only import AttentionOnly
from tools.bench.cases import Case
from tools.bench.inputs import HEAD_DIM, KV_HEADS, Q_HEADS
from tools.fetch_models import fetch
from tools.measured_process import ProcessFailedError, measure, twoheads_command
from tools.small_transformer import SmallTransformer
from tools.zoo.exporting import FirstOutput

__all__ = ["main", "prepare"]

ROOT = Path(__file__).parent.parent.parent
WORK = ROOT / ".cache" / "bench"

MODULES = ("attention", "windowed")
"""Models that are made here; the others are fetched."""

LONGEST = 1 << 20


def prepare(case: Case, prepared: dict[str, dict[str, str]], say: Callable[[str], None]) -> dict[str, str]:
    """Makes what is missing, each in a process of its own; returns paths by kind: ``source``, ``bundle``, ``onnx``.

    Args:
        case: Whose model and contenders.
        prepared: What earlier cases of this run have made, by bundle; it is filled. Bundles of earlier runs are
            compiled anew, because the compiler may have changed.
        say: Takes a line about what goes on.

    Raises:
        ProcessFailedError: The model does not compile.
        FetchError: It can't be downloaded.
    """
    WORK.mkdir(parents=True, exist_ok=True)
    bundle = WORK / f"{case.model}-{case.block_size}.bundle"
    if bundle.name not in prepared:
        say("  compiling")
        shutil.rmtree(bundle, ignore_errors=True)
        prepared[bundle.name] = {"bundle": str(bundle), **_compile(case, bundle)}
    paths = prepared[bundle.name]
    if any(name.startswith(("onnxruntime", "openvino")) for name in case.contenders):
        paths["onnx"] = str(_whole_graph(case.model, paths["source"], say))
    return paths


def _compile(case: Case, bundle: Path) -> dict[str, str]:
    """Writes the bundle; returns the ``source``, where there is one."""
    if case.model in MODULES:
        _run([sys.executable, "-m", "tools.bench.prepare", case.model, str(bundle), str(case.block_size)])
        return {}
    source = str(fetch(case.model, ROOT / ".cache" / "models"))
    _run(twoheads_command("compile", source, "-o", bundle, "--block-size", case.block_size))
    return {"source": source}


def _run(command: Sequence[str]) -> None:
    done = measure(command)
    if done.code:
        raise ProcessFailedError(f"{' '.join(command)}\nended with {done.code}\n{done.err}")


def _whole_graph(model: str, source: str, say: Callable[[str], None]) -> Path:
    """The model but its head with a dynamic number of tokens, exported once for every version of the exporter."""
    file = WORK / f"{model}-torch{version('torch')}-transformers{version('transformers')}" / "whole.onnx"
    if not file.exists():
        say("  exporting the whole graph")
        partly = file.parent.with_suffix(".partly")
        shutil.rmtree(partly, ignore_errors=True)
        partly.mkdir()
        _run([sys.executable, "-m", "tools.bench.prepare", source, str(partly / file.name), "onnx"])
        shutil.rmtree(file.parent, ignore_errors=True)
        partly.rename(file.parent)
    return file


def _export(source: str, path: str) -> None:
    from twoheads.compiler.sources import load_source

    model = load_source(source).module
    base = getattr(model, "base_model", model)
    assert isinstance(base, torch.nn.Module)
    dynamic = ({1: torch.export.Dim("tokens", max=LONGEST)},)
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            FirstOutput(base).eval(), (torch.arange(19)[None],), path, dynamo=True, dynamic_shapes=dynamic,
            input_names=["input_ids"], output_names=["hidden"], verbose=False,
        )  # fmt: skip


def _compile_module(name: str, bundle: str, block_size: int) -> None:
    from twoheads.compiler import compile_model
    from twoheads.export import write_bundle

    if name == "attention":
        attention = AttentionOnly(Q_HEADS, KV_HEADS, HEAD_DIM, "causal").eval()
        compiled = compile_model(attention, block_size=block_size, example_inputs=attention.example())
    else:
        model = SmallTransformer("causal & window(511, 0)", layers=4, heads=4, head_dim=64)
        ids = (torch.zeros(1, 40, dtype=torch.long),)
        compiled = compile_model(model, block_size=block_size, example_inputs=ids)
    write_bundle(compiled, bundle)


def main() -> int:
    """``SOURCE FILE onnx`` exports a whole graph, ``MODEL BUNDLE BLOCK_SIZE`` compiles one of the models made here."""
    what, where, how = sys.argv[1:]
    if how == "onnx":
        _export(what, where)
    else:
        _compile_module(what, where, int(how))
    return 0


if __name__ == "__main__":
    sys.exit(main())
