"""The arguments and options that several commands share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "BLOCK_SIZE",
    "DEFAULT_BACKEND",
    "Arrays",
    "Attention",
    "BackendOption",
    "BlockSize",
    "BuildPrecision",
    "Bundle",
    "DeviceMemoryLimit",
    "Documents",
    "Dtype",
    "DtypeOption",
    "Experts",
    "ExpertsOption",
    "For",
    "Json",
    "KeyTile",
    "Lowering",
    "LoweringOption",
    "MemoryLimit",
    "Output",
    "OutputOption",
    "Positions",
    "Precision",
    "PrecisionOption",
    "Products",
    "ProductsOption",
    "ReportFile",
    "Results",
    "Sign",
    "Source",
    "Spill",
    "Target",
    "Text",
    "Tokens",
    "Tolerance",
    "TrustRemoteCode",
    "Weights",
    "WeightsOption",
    "WeightsPlace",
]

BLOCK_SIZE = 256
"""Tokens of a block unless told otherwise: the matrix products are near their peak, and a block's work is small."""


class Lowering(StrEnum):
    """How attention is lowered."""

    AUTO = "auto"
    TILE = "tile"
    WINDOW = "window"
    MODEL = "model"
    STOCK = "stock"
    ORACLE = "oracle"
    WHOLE = "whole"


class Experts(StrEnum):
    """How mixtures of experts are computed."""

    AUTO = "auto"
    DENSE = "dense"
    GROUPED = "grouped"


class Dtype(StrEnum):
    """The number format of weights and activations."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"

    @property
    def full_name(self) -> str:
        """NumPy's name of it."""
        return {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[self.value]


class Weights(StrEnum):
    """The number format of the products' weights."""

    SAME = "same"
    INT8 = "int8"
    INT4 = "int4"


class Products(StrEnum):
    """In what products of 4-bit weights are computed."""

    FLOAT32 = "float32"
    INT8 = "int8"


class WeightsPlace(StrEnum):
    """Where the weights of an exported file lie."""

    AUTO = "auto"
    INSIDE = "inside"
    BESIDE = "beside"


class Precision(StrEnum):
    """In what a backend multiplies."""

    F32 = "f32"
    BF16 = "bf16"
    F16 = "f16"


class Tune(StrEnum):
    """How thoroughly engines are measured before a width of key tiles is chosen."""

    OFF = "off"
    QUICK = "quick"
    FULL = "full"


class BuildPrecision(StrEnum):
    """In what an accelerator multiplies; which of these it can, its data file says."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    W8 = "w8"
    W4 = "w4"
    W8A8 = "w8a8"
    W4A8 = "w4a8"
    W8A16 = "w8a16"
    W4A16 = "w4a16"
    PALETTE8 = "palette8"
    PALETTE4 = "palette4"


class Output(StrEnum):
    """What a run computes."""

    LOGITS = "logits"
    LAST = "last"
    HIDDEN = "hidden"
    EMBEDDING = "embedding"


Source = Annotated[Path, typer.Argument(metavar="SOURCE", help="A Hugging Face folder, a .gguf file or an .onnx file.")]
Results = Annotated[
    list[str] | None,
    typer.Option(
        "--result",
        metavar="NAME",
        help="For an .onnx file: its output of last hidden states; given twice, then that of logits.",
    ),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run Python code that SOURCE's folder brings, with all your rights: only if you trust who wrote it.",
    ),
]
Sign = Annotated[
    Path | None,
    typer.Option("--sign", metavar="KEY", help="Sign the bundle with this ed25519 private key (PEM or OpenSSH)."),
]
Bundle = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder that `twoheads compile` wrote.")]
BlockSize = Annotated[
    int, typer.Option("--block-size", metavar="M", help="Tokens of a block: a multiple of 8 from 16 to 4096.")
]
KeyTile = Annotated[
    int | None,
    typer.Option("--key-tile", metavar="K", help="Keys of one attention call, a multiple of M; chosen if not given."),
]
LoweringOption = Annotated[
    Lowering,
    typer.Option(
        "--lowering",
        help="How attention is lowered; window: a windowed layer of a single input in one call a block; model: all "
        "layers in one call a block, where each is a causal window or a scan; auto: as --for prefers it, else tile, "
        "whose blocks are computed side by side.",
    ),
]
Attention = Annotated[
    str,
    typer.Option(
        "--attention",
        metavar="POLICY",
        help="full (as the model is), or an approximation: window:1024+sinks:4, average:samples=2+window:512+sinks:4.",
    ),
]
ExpertsOption = Annotated[
    Experts,
    typer.Option(
        "--experts",
        help="Of a mixture of experts; grouped: each computes the tokens that chose it; dense: every one all "
        "tokens, the same sums; auto: whichever costs less.",
    ),
]
DtypeOption = Annotated[
    Dtype,
    typer.Option("--dtype", help="Number format of values, products and weights; fp16 is an approximation."),
]
WeightsOption = Annotated[
    Weights,
    typer.Option(
        "--weights",
        help="Of the products' weights alone: int8 or int4 with a scale for 32 of them, an approximation.",
    ),
]
ProductsOption = Annotated[
    Products,
    typer.Option(
        "--products",
        help="Of --weights int4: int8 rounds what is multiplied by them to 8 bits as well, and is several times faster "
        "in steps.",
    ),
]
DEFAULT_BACKEND = "onnxruntime"
BackendOption = Annotated[
    str,
    typer.Option(
        "--backend",
        metavar="NAME[:DEVICE]",
        help="What runs the engines: onnxruntime or openvino on the CPU or on a device (openvino:GPU, openvino:NPU, "
        "onnxruntime:coreml, :dml, :migraphx, :rocm, :webgpu, :xnnpack), cuda or tensorrt on an NVIDIA GPU. What "
        "`twoheads build` made runs by openvino-ir, litert, executorch, iree, qnn, rknn, coreml, tensorrt-engine, "
        "tensorrt-rtx, onnxruntime-int8, qnn-emulator, rknn-simulator. All but the first need a package of their own.",
    ),
]
PrecisionOption = Annotated[
    Precision,
    typer.Option(
        "--precision",
        help="In what it multiplies; approximations are bf16, of openvino, and f16, of tensorrt, openvino:GPU, :NPU.",
    ),
]
TuneOption = Annotated[
    Tune,
    typer.Option(
        "--tune",
        help="Choose the key tiles that are fastest here, measured once and kept in BUNDLE.tune.json: quick (1-2 s, "
        "for 4,096 tokens) or full (about 10 s, for 1,024 to 16,384). Results differ by rounding.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.")]
Text = Annotated[Path | None, typer.Option("--text", metavar="FILE", help="The input as UTF-8 text.")]
Tokens = Annotated[
    Path | None, typer.Option("--tokens", metavar="FILE.npy", help="The input as token numbers, [N] or [1, N].")
]
Arrays = Annotated[
    Path | None,
    typer.Option(
        "--input",
        metavar="FILE.npz",
        help="Arrays by input name, each of one input or of a batch; beside them attention_mask or documents.",
    ),
]
Documents = Annotated[
    Path | None,
    typer.Option(
        "--documents",
        metavar="FOLDER|FILE.jsonl",
        help="The .txt and .md files of a folder, or JSON lines with text or input_ids, and id.",
    ),
]
ReportFile = Annotated[
    Path | None, typer.Option("--report", metavar="R.json", help="Write calls, times and peak memory there.")
]
OutputOption = Annotated[
    Output | None,
    typer.Option("--output", help="What to compute; by default an embedding where the model has one, else logits."),
]
MemoryLimit = Annotated[
    str | None,
    typer.Option("--memory-limit", metavar="SIZE", help='The most memory a run may take, e.g. "4GB" or "900MB".'),
]
DeviceMemoryLimit = Annotated[
    str | None,
    typer.Option(
        "--device-memory-limit",
        metavar="SIZE",
        help="The most GPU memory a run may take; keys and values, then more, go to host memory if they do not fit.",
    ),
]
Spill = Annotated[
    Path | None,
    typer.Option(
        "--spill",
        metavar="DIR",
        help="Keep token values in files there: as few as --memory-limit allows, or all large ones without it.",
    ),
]
ClusterAddress = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="ADDRESS|local:2",
        help="Run on a Ray cluster, with a worker on every node; local:2 starts one of two workers on this machine.",
    ),
]
Target = Annotated[str, typer.Option("--target", metavar="NAME", help="The accelerator: qnn, rknn, tensorrt-rtx, ...")]
For = Annotated[
    str | None,
    typer.Option(
        "--for",
        metavar="NAME",
        help="The accelerator to build for later: attention is lowered as its data file says, unless --lowering does.",
    ),
]
Tolerance = Annotated[
    float | None,
    typer.Option(
        "--tolerance",
        metavar="E",
        min=0.0,
        help="The largest error that is fine, as a share of a value's largest magnitude; in fp32 1e-4 if not given.",
    ),
]
Positions = Annotated[
    str | None,
    typer.Option(
        "--positions", metavar="LIST", help='Rows of logits or hidden states to compute, e.g. "0,5,100:200,-1".'
    ),
]
