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
from tools.zoo.exporting import FirstOutput

__all__ = ["main", "prepare"]

ROOT = Path(__file__).parent.parent.parent
WORK = ROOT / ".cache" / "bench"

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
    if case.model == "attention":
        _run([sys.executable, "-m", "tools.bench.prepare", case.model, str(bundle), str(case.block_size)])
        return {}
    source = str(_windowed() if case.model == "windowed" else fetch(case.model, ROOT / ".cache" / "models"))
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
    from twoheads.compiler.frontend.torch.load_source import load_source

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


def _windowed() -> Path:
    """A decoder with a window in every layer, as a Hugging Face folder of random weights, made anew."""
    folder = WORK / "windowed"
    shutil.rmtree(folder, ignore_errors=True)
    _run([sys.executable, "-m", "tools.bench.prepare", "windowed", str(folder), "folder"])
    return folder


def _write_windowed(folder: str) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=1000, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=4, sliding_window=512, max_position_embeddings=LONGEST, initializer_range=0.05,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(folder)


def _compile_attention(bundle: str, block_size: int) -> None:
    from twoheads.compiler import compile_model
    from twoheads.export import write_bundle

    model = AttentionOnly(Q_HEADS, KV_HEADS, HEAD_DIM, "causal").eval()
    write_bundle(compile_model(model, block_size=block_size, example_inputs=model.example()), bundle)


def main() -> int:
    """Makes one thing: ``SOURCE FILE onnx``, ``windowed FOLDER folder`` or ``attention BUNDLE BLOCK_SIZE``."""
    what, where, how = sys.argv[1:]
    if how == "onnx":
        _export(what, where)
    elif how == "folder":
        _write_windowed(where)
    else:
        _compile_attention(where, int(how))
    return 0


if __name__ == "__main__":
    sys.exit(main())
