"""The bundle on disk: what the export writes and the runtime reads.

::

    BUNDLE/
        manifest.json            this module's Manifest; written last, so a folder without it is not a bundle
        manifest.sig             optional, its ed25519 signature
        program.json             the block program
        engines/<name>.onnx      token-wise engines; their initializers refer to weights.bin, so each opens on its own
        engines/<name>.<variant>.onnx   attention engines
        engines/tiles_<K>/<name>.<variant>.onnx   the same for key tiles of another width, a few KB each
        engines/weights.bin      every weight once, 64-byte aligned, little endian; memory-mapped by the runtime
        tokenizer/tokenizer.json optional, Hugging Face `tokenizers` format
        tokenizer/generation.json  optional: generation settings, chat templates and special tokens
        targets/<name>/          optional, what a vendor's compiler made of the engines for an accelerator

No pickle, no code; every path is a :class:`~twoheads.graphs.serialization.relative_path.RelativePath`, relative and
below the folder.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from twoheads.graphs.serialization.relative_path import RelativePath

__all__ = [
    "ALIGNMENT",
    "DENSE_EXPERTS",
    "ENGINES",
    "FORMAT_VERSION",
    "FULL_PRECISION",
    "FULL_PRECISIONS",
    "GENERATION",
    "LEFT_OUT",
    "LOSSLESS",
    "MANIFEST",
    "PARTIAL",
    "PROGRAM",
    "SIGNATURE",
    "TARGETS",
    "TOKENIZER",
    "WEIGHTS",
    "WEIGHT_HASHES",
    "WHOLE",
    "Artifact",
    "FileEntry",
    "HostPart",
    "Manifest",
    "QuantisedWeight",
    "SourceIdentity",
    "TargetEntry",
    "WeightEntry",
    "tiles_folder",
]

FORMAT_VERSION = 8
"""Another number for every field or file that a reader of the version before refuses or misreads."""
WHOLE = "whole"
"""A manifest's ``lowering`` where the model is one engine of its only input size."""
FULL_PRECISION = "float32"
"""The number format of a model whose numbers are rounded no further than the original's."""
LOSSLESS = "lossless"
"""The ``weight_dtype`` of such a model whose weights have 4 bits where no number changes, and float32 elsewhere."""
FULL_PRECISIONS = frozenset({FULL_PRECISION, f"{FULL_PRECISION}, weights {LOSSLESS}"})
"""A manifest's ``precision`` of both: what runs is the float32 model."""
MANIFEST = RelativePath("manifest.json")
SIGNATURE = RelativePath("manifest.sig")
PROGRAM = RelativePath("program.json")
ENGINES = "engines"
WEIGHTS = RelativePath("engines/weights.bin")
WEIGHT_HASHES = RelativePath(f"{ENGINES}/weights.sha256.json")
"""The hex sha256 of each weight's own bytes, by name; a bundle without this file is checked as a whole."""
DENSE_EXPERTS = RelativePath(f"{ENGINES}/dense_experts.json")
"""Why mixtures of experts are computed densely, by the paths of their modules; there only where some are."""
LEFT_OUT = RelativePath(f"{ENGINES}/left_out.json")
"""The names of an ONNX file's results that the bundle does not give; there only where there are some."""
TOKENIZER = RelativePath("tokenizer/tokenizer.json")
GENERATION = RelativePath("tokenizer/generation.json")
TARGETS = "targets"
PARTIAL = "partial"
"""Marks a folder that is being written, ``.NAME.partial-...``; what a killed writer leaves under it never loads."""
ALIGNMENT = 64
"""Bytes to which every weight's offset is aligned: a cache line, and AVX-512's vector."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of the bundle: its size in bytes and the hex sha256 of its contents."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class WeightEntry:
    """Where a weight lies in ``engines/weights.bin``: byte offset, NumPy dtype name, shape."""

    offset: int
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class QuantisedWeight:
    """A weight of the source that the bundle holds as small whole numbers and scales.

    Along its inner dimension every 32 numbers share one scale, and with 4 bits one offset. A
    number is ``scale * (value - 8) + offset`` then, and with 8 bits ``scale * (value - 128)``. Where products are of
    whole numbers, the values are int8 ``[inner, outer]`` instead, and a scale of ``[outer]`` times a value is a number
    of the rotated weight.

    Attributes:
        bits: 8, or 4: two values a byte, the first one in the low half.
        transposed: Whether the source has it as ``[inner, outer]``; the arrays below begin with the outer dimension.
        values: Names of the uint8 weights ``[outer, inner / 32, 32 * bits / 8]``: one, or of long rows one a piece.
        scales: Names of as many float32 weights ``[outer, inner / 32]``.
        offsets: Name of the offsets of whole rows, shaped as scales; ``None`` with 8 bits.
    """

    bits: int
    transposed: bool
    values: tuple[str, ...]
    scales: tuple[str, ...]
    offsets: str | None

    @property
    def stored(self) -> tuple[str, ...]:
        """The names of the weights that stand for it."""
        return (*self.values, *self.scales, *(() if self.offsets is None else (self.offsets,)))


@dataclass(frozen=True, slots=True)
class SourceIdentity:
    """What was compiled: name, form (``folder``, ``gguf``, ``onnx`` or ``module``) and architecture's class.

    ``sha256`` identifies the source's configuration and weight shapes, so that ``verify`` can tell a foreign source.
    """

    name: str
    form: str
    architecture: str
    sha256: str


@dataclass(frozen=True, slots=True)
class HostPart:
    """The part of an engine that the host computes in float32 before the accelerator is called.

    Attributes:
        file: An ONNX file below the target's folder. It takes inputs of the engine, and gives outputs of the engine and
            values that the accelerator's part takes, all by name.
        weights: The engine's weights that it reads, by port: it has none inside, they are bound as in engine files.
    """

    file: RelativePath
    weights: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Artifact:
    """What a compiler made of one engine with one set of weights.

    Attributes:
        key: Hex sha256 of everything that went in: the engine with its weights, compiler, version, precision, device.
            Equal keys need no new build.
        stages: The stages of the program that it serves; empty for attention, whose engines have no weights.
        files: Its files below the target's folder, which the manifest lists as well; none where the host computes
            everything.
        seconds: How long the build took.
        off: Nodes that the compiler left to the host's processor, as ``operator node``.
        error: How far the compiler's emulator or runtime was from ONNX Runtime, as a share of the largest magnitude;
            ``None`` where it was not measured.
        host: What the host computes first, if anything.
    """

    key: str
    stages: tuple[str, ...]
    files: tuple[RelativePath, ...]
    seconds: float
    off: tuple[str, ...]
    error: float | None
    host: HostPart | None


@dataclass(frozen=True, slots=True)
class TargetEntry:
    """A target's compiler, its version, precision and device, and what it made, by artifact name.

    The device is ``None`` where the compiler has no choice.
    """

    compiler: str
    version: str
    precision: str
    device: str | None
    artifacts: dict[str, Artifact]


def tiles_folder(key_tile: int) -> str:
    """Where the attention engines for key tiles of another width lie."""
    return f"{ENGINES}/tiles_{key_tile}"


@dataclass(frozen=True, slots=True)
class Manifest:
    """The table of contents.

    Attributes:
        format_version: Readers refuse any other than their own.
        producer: Name and version of the writer, e.g. ``twoheads 0.1.0``.
        source: What was compiled.
        block_size, key_tile: Tokens of a query block and of a key tile.
        lowering: How attention was lowered, e.g. ``tile``.
        dtype: Of token values, and of the weights that are not quantised.
        approximations: Names of the approximations the user asked for; empty for an exact bundle.
        weights: Every weight by name.
        packed_for: The target whose artifacts stand in the place of engine files; ``None`` where these are there.
        built_in: Weights that only artifacts hold, in a bundle that was packed; their offset is 0.
        files: Every file except the manifest and its signature, by relative path.
        targets: What was built for accelerators, by the target's name.
        weight_dtype: Of the products' weights: ``dtype``, or ``int8`` or ``int4`` where they are quantised; or
            ``lossless``: those that ``quantised`` names have 4 bits and the very numbers of float32.
        quantised: The source's weights that are quantised, by their names there.
        other_key_tiles: Further widths that a run may choose: the bundle holds attention engines for them, too.
        products: In what products of 4-bit weights are computed: ``float32``, or ``int8``, which rounds their other
            operand to 8 bits. (Those of 8-bit weights always do; with ``int8`` they are products of whole numbers.)
    """

    format_version: int
    producer: str
    source: SourceIdentity
    block_size: int
    key_tile: int
    lowering: str
    dtype: str
    approximations: tuple[str, ...]
    weights: dict[str, WeightEntry]
    files: dict[RelativePath, FileEntry]
    targets: dict[RelativePath, TargetEntry] = field(default_factory=dict[RelativePath, TargetEntry])
    weight_dtype: str = "float32"
    quantised: dict[str, QuantisedWeight] = field(default_factory=dict[str, QuantisedWeight])
    packed_for: str | None = None
    built_in: dict[str, WeightEntry] = field(default_factory=dict[str, WeightEntry])
    other_key_tiles: tuple[int, ...] = ()
    products: str = "float32"

    def declared(self, weight: str) -> WeightEntry | None:
        """What is known of a weight, whether the bundle or an artifact holds it."""
        return self.weights.get(weight) or self.built_in.get(weight)

    @property
    def key_tiles(self) -> tuple[int, ...]:
        """Every width that a run may choose, the program's own first."""
        return (self.key_tile, *self.other_key_tiles)

    @property
    def precision(self) -> str:
        """The formats of values, weights and products, e.g. ``float32`` or ``float32, weights int4, products int8``."""
        weights = "" if self.weight_dtype == self.dtype else f", weights {self.weight_dtype}"
        return f"{self.dtype}{weights}" + ("" if self.products == FULL_PRECISION else f", products {self.products}")
