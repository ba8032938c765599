"""``twoheads compile``: a model into a bundle."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from twoheads.export.accelerators.target import load_target
from twoheads.export.cli.inspect.facts import full_matrices, left_out, left_out_text, precision_text
from twoheads.export.cli.shared import arguments, options
from twoheads.export.cli.shared.console import approximations_text, print_facts, print_json, seconds_text, size_text
from twoheads.export.cli.shared.options_object import takes_options
from twoheads.export.cli.shared.progress import PhaseProgress
from twoheads.export.precision.number_formats import check_dtype, check_products
from twoheads.graphs.errors import InputError
from twoheads.graphs.masks.policy import parse_policy
from twoheads.graphs.program.program import Program
from twoheads.graphs.serialization.bundle_format import TOKENIZER, WHOLE, Manifest
from twoheads.runtime.bundle.reader import read_bundle

if TYPE_CHECKING:
    from twoheads.compiler.frontend.torch.weights.gguf_blocks import FileBlocks

__all__ = ["command"]


@dataclass(frozen=True, slots=True)
class CompileOptions:
    """What to make of a model, and where it goes."""

    output: Annotated[Path, typer.Option("--output", "-o", metavar="BUNDLE", help="The folder to create.")]
    block_size: options.BlockSize = options.BLOCK_SIZE
    key_tile: options.KeyTile = None
    lowering: options.LoweringOption = options.Lowering.AUTO
    target: options.For = None
    oracle_layers: Annotated[
        int,
        typer.Option("--oracle-layers", metavar="L", help="With --lowering oracle: layers of the small transformer."),
    ] = 2
    oracle_heads: Annotated[
        int, typer.Option("--oracle-heads", metavar="H", help="With --lowering oracle: its heads per layer.")
    ] = 4
    dtype: options.DtypeOption = options.Dtype.FP32
    weights: options.WeightsOption = options.Weights.SAME
    products: options.ProductsOption = options.Products.FLOAT32
    attention: options.Attention = "full"
    experts: options.ExpertsOption = options.Experts.AUTO
    results: options.Results = None
    masks: options.Masks = None
    length: Annotated[
        int | None,
        typer.Option(
            "--length",
            metavar="N",
            help="With --lowering whole: the only length that the bundle will take, of a model that takes any.",
        ),
    ] = None
    trust_remote_code: options.TrustRemoteCode = False
    allow_non_finite: Annotated[
        bool, typer.Option("--allow-non-finite", help="Compile weights that hold NaN or infinity as they are.")
    ] = False
    generation: Annotated[
        bool,
        typer.Option(
            "--generation/--no-generation", help="Write the engines that generate token by token, or leave them out."
        ),
    ] = True
    sign: options.Sign = None
    force: Annotated[bool, typer.Option("--force", help="Replace BUNDLE if it exists.")] = False
    as_json: options.Json = False

    def checked(self) -> CompileOptions:
        """The same, with the lowering that an accelerator prefers; refused before the model is loaded.

        Raises:
            InputError, CompileError: The output can't be written, or an option is wrong.
        """
        arguments.check_output_path(self.output, folder=True)
        if self.output.exists() and not self.force:
            raise InputError(str(self.output), "exists already", "name another place, or replace it with --force")
        lowering = self.lowering
        if self.target is not None:
            preferred = options.Lowering(load_target(self.target).lowering)
            lowering = preferred if lowering is options.Lowering.AUTO else lowering
        parse_policy(self.attention)
        check_dtype(self.dtype.full_name, lowering=lowering.value, weight_dtype=self.weights.value)
        check_products(self.products.value, weight_dtype=self.weights.value)
        return replace(self, lowering=lowering)


@takes_options
def command(source: options.Source, given: CompileOptions) -> None:
    """Compile SOURCE (a Hugging Face folder, a .gguf file or an .onnx file) into a bundle that runs any length.

    Example: twoheads compile SmolLM2-135M.gguf -o smollm2.bundle --block-size 256
    For an accelerator: twoheads compile SmolLM2-135M.gguf -o smollm2.bundle --for rknn
    """
    arguments.require_path(source, "a model folder, a .gguf file or an .onnx file")
    asked = given.checked()
    if asked.weights is options.Weights.LOSSLESS and source.suffix == ".gguf":
        from twoheads.compiler.frontend.torch.weights.gguf_blocks import require_4_bits

        require_4_bits(source)
    start = time.perf_counter()
    _compile(source, asked)
    seconds = time.perf_counter() - start
    bundle = read_bundle(asked.output, check="size", engines=False)
    blocks = _own_blocks(source, asked, bundle.manifest)
    _report(asked.output, bundle.manifest, bundle.program, blocks, seconds, as_json=asked.as_json)


def _compile(source: Path, asked: CompileOptions) -> None:
    from twoheads.compiler import compile_model
    from twoheads.export import narrow_values, quantise_weights, write_bundle
    from twoheads.export.bundle.signing import read_signing_key

    key = None if asked.sign is None else read_signing_key(asked.sign)
    with PhaseProgress() as progress:
        compiled = compile_model(
            source,
            block_size=asked.block_size,
            key_tile=asked.key_tile,
            lowering=asked.lowering.value,
            attention=asked.attention,
            experts=asked.experts.value,
            oracle_layers=asked.oracle_layers,
            oracle_heads=asked.oracle_heads,
            results=asked.results or (),
            masks=arguments.parse_masks(asked.masks),
            length=asked.length,
            trust_remote_code=asked.trust_remote_code,
            allow_non_finite=asked.allow_non_finite,
            progress=progress,
        )
        if asked.weights is not options.Weights.SAME:
            progress("quantising the weights")
            compiled = quantise_weights(compiled, asked.weights.value, asked.products.value)
        if asked.dtype is not options.Dtype.FP32:
            progress("rounding to float16")
            compiled = narrow_values(compiled)
        how = {"overwrite": asked.force, "generation": asked.generation}
        write_bundle(compiled, asked.output, sign=key, progress=progress, **how)


def _own_blocks(source: Path, asked: CompileOptions, manifest: Manifest) -> FileBlocks | None:
    """What became of the numbers that a GGUF file has in few bits, where they were asked for in few bits."""
    if source.suffix != ".gguf" or asked.weights is options.Weights.SAME:
        return None
    from twoheads.compiler.frontend.torch.weights.gguf_blocks import file_blocks

    found = file_blocks(source, asked.weights.value, asked.products.value)
    # Experts that are computed densely keep nothing, and the library joins stacks: the manifest's counts stand alone.
    counted = asked.weights is not options.Weights.LOSSLESS or sum(found.kept.values()) == len(manifest.quantised)
    return found if counted else None


def _report(
    path: Path, manifest: Manifest, program: Program, blocks: FileBlocks | None, seconds: float, *, as_json: bool
) -> None:
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
                "products": manifest.products,
                "matrices": {"quantised": len(manifest.quantised), "full": len(full_matrices(manifest))},
                "approximations": list(manifest.approximations),
                "left_out": list(left_out(path, manifest)),
                "file_blocks": None if blocks is None else blocks.to_json(),
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
            *_lowered_as(manifest),
            ("engines", f"{len(program.engines)} for {len(program.body) + len(program.head)} stages"),
            ("precision", precision_text(manifest)),
            *(() if blocks is None else (("file's numbers", str(blocks)),)),
            *((("left out", left_out_text(names)),) if (names := left_out(path, manifest)) else ()),
            ("approximations", approximations_text(manifest.approximations, manifest.precision)),
            ("size", f"{size_text(size)} in {len(manifest.files) + 1} files"),
            ("time", seconds_text(seconds)),
            ("next", f"twoheads run {path} {_given(manifest, program)} -o OUT.npz"),
        )
    )


def _lowered_as(manifest: Manifest) -> tuple[tuple[str, str], ...]:
    """How the model is cut; a whole one has neither blocks nor attention by tiles."""
    if manifest.lowering == WHOLE:
        return (("lowering", f"{WHOLE}: one engine of the only input size"),)
    blocks = f"{manifest.block_size} tokens, key tiles of {manifest.key_tile}"
    return ("blocks", blocks), ("attention", f"lowered as {manifest.lowering}")


def _given(manifest: Manifest, program: Program) -> str:
    """The option by which a run is given what the model reads."""
    arguments = [entry.value for entry in program.inputs if entry.source == "argument"]
    if len(arguments) > 1 or any(np.dtype(value.dtype).kind == "f" for value in arguments):
        return "--input FILE.npz"
    return "--text FILE" if TOKENIZER in manifest.files else "--tokens FILE.npy"
