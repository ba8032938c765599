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
    "Masks",
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
    "WithGeneration",
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
    LOSSLESS = "lossless"


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
        help="For an .onnx file: the output that holds the last hidden states; given a second time, the one "
        "that holds logits.",
    ),
]
Masks = Annotated[
    list[str] | None,
    typer.Option(
        "--mask",
        metavar="NAME=MASK",
        help="For an .onnx file: what its mask of queries and keys holds in every run: causal, full, or a window.",
    ),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run Python code from SOURCE's folder, with all your rights: only if you trust its author.",
    ),
]
Sign = Annotated[
    Path | None,
    typer.Option("--sign", metavar="KEY", help="Sign the bundle with this ed25519 private key (PEM or OpenSSH)."),
]
Bundle = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder that `twoheads compile` wrote.")]
BlockSize = Annotated[
    int, typer.Option("--block-size", metavar="M", help="Tokens per block: a multiple of 8 from 16 to 4096.")
]
KeyTile = Annotated[
    int | None,
    typer.Option(
        "--key-tile", metavar="K", help="Keys of one attention call, a multiple of M; chosen for you by default."
    ),
]
LoweringOption = Annotated[
    Lowering,
    typer.Option(
        "--lowering",
        help="How attention is lowered. tile: tile by tile, blocks side by side; window: the same, and a "
        "windowed layer in one "
        "call per block; model: all layers in one call per block, where each is a causal window or a scan; "
        "stock: softmax "
        "attention only; oracle: the paper's small transformer; whole: a model of one input size as one "
        "engine; auto: what "
        "--for prefers, else tile.",
    ),
]
Attention = Annotated[
    str,
    typer.Option(
        "--attention",
        metavar="POLICY",
        help="full (the model's own), or an approximation such as window:1024+sinks:4 or "
        "average:samples=2+window:512+sinks:4.",
    ),
]
ExpertsOption = Annotated[
    Experts,
    typer.Option(
        "--experts",
        help="For mixtures of experts. grouped: each expert computes the tokens that chose it; dense: every "
        "expert computes "
        "all tokens, with the same sums; auto: whichever costs less.",
    ),
]
DtypeOption = Annotated[
    Dtype,
    typer.Option("--dtype", help="The number format of values, products and weights; fp16 is an approximation."),
]
WeightsOption = Annotated[
    Weights,
    typer.Option(
        "--weights",
        help="The number format of products' weights alone: int8 or int4 with a scale per 32 numbers, an "
        "approximation; lossless: 4 bits where a GGUF file has them and no number changes, float32 elsewhere.",
    ),
]
ProductsOption = Annotated[
    Products,
    typer.Option(
        "--products",
        help="With --weights int4: int8 also rounds what they are multiplied by to 8 bits, which makes "
        "generation several times faster. With --weights int8: products of whole numbers, with a scale a row, which "
        "makes long prompts up to twice as fast.",
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
        "`twoheads build` made is run by openvino-ir, litert, executorch, iree, qnn, rknn, coreml, tensorrt-engine, "
        "tensorrt-rtx, onnxruntime-int8, qnn-emulator, rknn-simulator. All but the first need a package of their own.",
    ),
]
PrecisionOption = Annotated[
    Precision,
    typer.Option(
        "--precision",
        help="The number format in which the backend multiplies. Approximations: bf16 (openvino), f16 "
        "(tensorrt, openvino:GPU, openvino:NPU).",
    ),
]
TuneOption = Annotated[
    Tune,
    typer.Option(
        "--tune",
        help="Use the key tiles that are fastest on this machine, measured once and kept in BUNDLE.tune.json: "
        "quick (1-2 s, "
        "at 4,096 tokens) or full (about 10 s, at 1,024 to 16,384 tokens). Results differ by rounding.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout, and nothing else.")]
Text = Annotated[Path | None, typer.Option("--text", metavar="FILE", help="The input as UTF-8 text.")]
Tokens = Annotated[
    Path | None, typer.Option("--tokens", metavar="FILE.npy", help="The input as token numbers, [N] or [1, N].")
]
Arrays = Annotated[
    Path | None,
    typer.Option(
        "--input",
        metavar="FILE.npz",
        help="The input as arrays by name, one input or a batch; attention_mask or documents may be among them.",
    ),
]
Documents = Annotated[
    Path | None,
    typer.Option(
        "--documents",
        metavar="FOLDER|FILE.jsonl",
        help="A folder of .txt and .md files, or lines of JSON with text or input_ids, and an id.",
    ),
]
ReportFile = Annotated[
    Path | None, typer.Option("--report", metavar="R.json", help="Write calls, times and peak memory to this file.")
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
        help="The most GPU memory a run may take; what does not fit goes to host memory, keys and values first.",
    ),
]
Spill = Annotated[
    Path | None,
    typer.Option(
        "--spill",
        metavar="DIR",
        help="Keep token values in files in this folder: with --memory-limit as few as it allows, else all large ones.",
    ),
]
ClusterAddress = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="ADDRESS|local:2",
        help="Run on a Ray cluster, with a worker on every node; local:2 starts a cluster of two workers on "
        "this machine.",
    ),
]
Target = Annotated[str, typer.Option("--target", metavar="NAME", help="The accelerator: qnn, rknn, tensorrt-rtx, ...")]
WithGeneration = Annotated[
    bool,
    typer.Option(
        "--generation",
        help="Also what extends a sequence token by token, for `generate --backend`: with all weights a second time.",
    ),
]
For = Annotated[
    str | None,
    typer.Option(
        "--for",
        metavar="NAME",
        help="The accelerator that the bundle will be built for: it decides how attention is lowered, unless "
        "--lowering does.",
    ),
]
Tolerance = Annotated[
    float | None,
    typer.Option(
        "--tolerance",
        metavar="E",
        min=0.0,
        help="The largest error to accept, as a share of a value's largest magnitude; in fp32 1e-4 by default.",
    ),
]
Positions = Annotated[
    str | None,
    typer.Option(
        "--positions", metavar="LIST", help='The rows of logits or hidden states to compute, e.g. "0,5,100:200,-1".'
    ),
]
