"""``twoheads compile``: a model into a bundle."""

import time
from pathlib import Path
from typing import Annotated

import typer

from twoheads.export.accelerators.target import load_target
from twoheads.export.cli.shared import arguments, options
from twoheads.export.cli.shared.console import approximations_text, print_facts, print_json, seconds_text, size_text
from twoheads.export.cli.shared.progress import PhaseProgress
from twoheads.export.precision.number_formats import check_dtype
from twoheads.graphs.errors import InputError
from twoheads.graphs.masks.policy import parse_policy
from twoheads.graphs.program.program import Program
from twoheads.graphs.serialization.bundle_format import Manifest
from twoheads.runtime.bundle.reader import read_bundle

__all__ = ["NAME", "command"]

NAME = "compile"


def command(
    source: options.Source,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="BUNDLE", help="The folder to create.")],
    block_size: options.BlockSize = options.BLOCK_SIZE,
    key_tile: options.KeyTile = None,
    lowering: options.LoweringOption = options.Lowering.AUTO,
    target: options.For = None,
    oracle_layers: Annotated[
        int, typer.Option("--oracle-layers", metavar="L", help="For --lowering oracle: the small transformer's layers.")
    ] = 2,
    oracle_heads: Annotated[
        int, typer.Option("--oracle-heads", metavar="H", help="For --lowering oracle: its heads in each layer.")
    ] = 4,
    dtype: options.DtypeOption = options.Dtype.FP32,
    weights: options.WeightsOption = options.Weights.SAME,
    attention: options.Attention = "full",
    results: options.Results = None,
    trust_remote_code: options.TrustRemoteCode = False,
    allow_non_finite: Annotated[
        bool, typer.Option("--allow-non-finite", help="Compile weights that hold NaN or infinity as they are.")
    ] = False,
    generation: Annotated[
        bool, typer.Option("--generation/--no-generation", help="Engines that extend a text token by token, or none.")
    ] = True,
    sign: options.Sign = None,
    force: Annotated[bool, typer.Option("--force", help="Replace BUNDLE if it exists.")] = False,
    as_json: options.Json = False,
) -> None:
    """Compile SOURCE (a Hugging Face folder, a .gguf file or an .onnx file) into a bundle that runs any length.

    Example: twoheads compile SmolLM2-135M.gguf -o smollm2.bundle --block-size 256
    For an accelerator: twoheads compile SmolLM2-135M.gguf -o smollm2.bundle --for rknn
    """
    arguments.require_path(source, "a model folder, a .gguf file or an .onnx file")
    arguments.check_output_path(output, folder=True)
    if output.exists() and not force:
        raise InputError(str(output), "exists already", "name another place, or replace it with --force")

    if target is not None:
        preferred = load_target(target).lowering
        lowering = options.Lowering(preferred) if lowering is options.Lowering.AUTO else lowering
    parse_policy(attention)  # a wrong policy is told before the model is loaded
    check_dtype(dtype.full_name, lowering=lowering.value, weight_dtype=weights.value)
    if target is not None and dtype is not options.Dtype.FP32:
        problem = f"is for bundles that run as they are, and what is built for {target} begins with float32"
        raise InputError(f"--dtype {dtype.value}", problem, "leave it out, and choose by twoheads build --precision")

    from twoheads.compiler import compile_model
    from twoheads.export import narrow_values, quantise_weights, write_bundle
    from twoheads.export.bundle.signing import read_signing_key

    key = None if sign is None else read_signing_key(sign)
    start = time.perf_counter()
    with PhaseProgress() as progress:
        compiled = compile_model(
            source,
            block_size=block_size,
            key_tile=key_tile,
            lowering=lowering.value,
            attention=attention,
            oracle_layers=oracle_layers,
            oracle_heads=oracle_heads,
            results=results or (),
            trust_remote_code=trust_remote_code,
            allow_non_finite=allow_non_finite,
            progress=progress,
        )
        if weights is not options.Weights.SAME:
            progress("quantising the weights")
            compiled = quantise_weights(compiled, weights.value)
        if dtype is not options.Dtype.FP32:
            progress("rounding to float16")
            compiled = narrow_values(compiled)
        write_bundle(compiled, output, overwrite=force, sign=key, progress=progress, generation=generation)
    seconds = time.perf_counter() - start
    bundle = read_bundle(output, check="size", engines=False)
    _report(output, bundle.manifest, bundle.program, seconds, as_json=as_json)


def _report(path: Path, manifest: Manifest, program: Program, seconds: float, *, as_json: bool) -> None:
    size = sum(entry.size for entry in manifest.files.values())
    if as_json:
        print_json(
            {
                "bundle": str(path),
                "source": manifest.source.name,
                "architecture": manifest.source.architecture,
                "block_size": manifest.block_size,
                "key_tile": manifest.key_tile,
                "lowering": manifest.lowering,
                "dtype": manifest.dtype,
                "weight_dtype": manifest.weight_dtype,
                "approximations": list(manifest.approximations),
                "engines": len(program.engines),
                "stages": len(program.body) + len(program.head),
                "files": len(manifest.files) + 1,
                "bytes": size,
                "seconds": seconds,
            }
        )
        return
    print_facts(
        (
            ("bundle", str(path)),
            ("source", f"{manifest.source.name} ({manifest.source.architecture})"),
            ("blocks", f"{manifest.block_size} tokens, key tiles of {manifest.key_tile}"),
            ("attention", f"lowered as {manifest.lowering}"),
            ("engines", f"{len(program.engines)} for {len(program.body) + len(program.head)} stages"),
            ("precision", manifest.precision),
            ("approximations", approximations_text(manifest.approximations, manifest.precision)),
            ("size", f"{size_text(size)} in {len(manifest.files) + 1} files"),
            ("time", seconds_text(seconds)),
            ("next", f"twoheads run {path} --text FILE -o OUT.npz"),
        )
    )
