"""The pipeline: source -> capture -> partition -> checks -> lowering."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from twoheads.compiler.compiled_model import CompiledModel
from twoheads.compiler.frontend.torch.weights.gguf_header import check_gguf
from twoheads.compiler.ir.source_program import Captured
from twoheads.compiler.known.known_decoder import known_decoder
from twoheads.compiler.lowering.oracle import lower_oracle
from twoheads.compiler.lowering.stock import lower_stock
from twoheads.compiler.lowering.tile import Lowered, lower_tile
from twoheads.compiler.passes.apply_policy import apply_policy
from twoheads.compiler.passes.check_tokenwise import check_tokenwise
from twoheads.compiler.passes.check_weights import check_weights
from twoheads.compiler.passes.find_position_limits import find_position_limits
from twoheads.compiler.passes.partition import Partition, Region, partition
from twoheads.graphs.errors import CompileError
from twoheads.graphs.masks.policy import Policy, parse_policy
from twoheads.graphs.program.program import Program
from twoheads.graphs.serialization.bundle_format import WHOLE
from twoheads.graphs.variants.key_tiles import LARGEST_TILE, other_key_tiles
from twoheads.graphs.variants.model_steps import MODEL, model_obstacle
from twoheads.graphs.variants.window_steps import MOST_TILES, WINDOW, window_steps

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["LOWERINGS", "compile_model", "plan_model"]

logger = logging.getLogger(__name__)

LOWERINGS = ("auto", "tile", "window", "model", "stock", "oracle", WHOLE)

EXPERTS_WAYS = ("auto", "dense", "grouped")
"""How mixtures of experts may be computed."""

Progress: TypeAlias = Callable[[str], None]
"""Called with the name of each phase as it begins."""

Source: TypeAlias = "str | Path | nn.Module"
Examples: TypeAlias = "Mapping[str, Tensor] | tuple[Tensor, ...]"


def compile_model(
    source: Source,
    *,
    example_inputs: Examples | None = None,
    block_size: int = 256,
    key_tile: int | None = None,
    lowering: str = "auto",
    attention: str = "full",
    experts: str = "auto",
    oracle_layers: int = 2,
    oracle_heads: int = 4,
    results: Sequence[str] = (),
    masks: Mapping[str, str] | None = None,
    length: int | None = None,
    trust_remote_code: bool = False,
    allow_non_finite: bool = False,
    progress: Progress | None = None,
) -> CompiledModel:
    """Compiles a model for fixed-shape engines of ``block_size`` tokens; any input length runs afterwards.

    Args:
        source: A Hugging Face folder, a ``.gguf`` or ``.onnx`` file, a transformers model or any other torch
            module. An ONNX file needs no torch.
        example_inputs: Of another torch module, or to read other arguments of a library's (``inputs_embeds``).
        block_size: Tokens of a query block: a multiple of 8 from 16 to 4096.
        key_tile: Tokens of a key tile, a multiple of ``block_size``; equal to it by default, and the bundle then offers
            wider ones beside (``load(tune=...)``).
        lowering: ``tile``, ``window`` (the same, and a windowed layer of a single input is one call a block), ``model``
            (all layers of a single input are one call a block, where each is a causal window or a scan), ``stock``
            (softmax attention and nothing else), ``oracle`` (a plain small transformer that is told its parameters),
            ``whole`` (a model of one input size is one engine), or ``auto``: ``tile``, as fast where calls are free.
        attention: ``full``, or an approximation of :mod:`twoheads.graphs.masks.policy`: ``window:1024+sinks:4``.
        experts: How mixtures are computed: ``grouped`` by expert, ``dense`` (the same sums), or ``auto``: the cheaper.
        oracle_layers: ``L'`` of the ``oracle`` lowering, 1 to 32.
        oracle_heads: ``H'`` of the ``oracle`` lowering, 1 to 32.
        results: For an ONNX file: its names of the last hidden states and, if wanted, of the logits; chosen by default.
        masks: For an ONNX file: what masks of queries and keys hold, by :mod:`twoheads.compiler.frontend.onnx.masks`.
        length: With ``whole``, of a transformers model that takes any length: the only one (tokens, samples, frames).
        trust_remote_code: Run code that a folder brings, with all rights of this process; else it never runs.
        allow_non_finite: Compile weights that hold NaN or infinity, which are refused otherwise.
        progress: Told the name of each phase.

    Raises:
        CompileError: The model or an option is not supported; names the layer, the reason and a remedy.
    """
    tell = progress or (lambda _phase: None)
    tile = _check_options(block_size, key_tile, lowering)
    policy = _check_policy(attention, lowering)
    tell("loading the model")
    options = _options(results, masks, trust_remote_code, experts, block_size, length)
    front = _front(source, example_inputs, weights=True, whole=lowering == WHOLE, **options)
    tell("capturing its graph")
    captured, parts, imposed = _capture_and_partition(front, policy)
    if not allow_non_finite:
        check_weights(captured.program.weights, (name for node in captured.graph.nodes for name in node.inputs))
    tell("checking that regions are token-wise")
    check_tokenwise(captured.graph, captured.program, _unique_regions(parts))
    tell("lowering to a block program")
    lowered = _lower(captured, parts, block_size, tile, lowering, (oracle_layers, oracle_heads))
    return _assemble(captured, lowered, lowering, (str(policy),) if imposed else (), own_tile=key_tile is not None)


def plan_model(
    source: Source,
    *,
    example_inputs: Examples | None = None,
    block_size: int = 256,
    key_tile: int | None = None,
    lowering: str = "auto",
    attention: str = "full",
    experts: str = "auto",
    oracle_layers: int = 2,
    oracle_heads: int = 4,
    results: Sequence[str] = (),
    masks: Mapping[str, str] | None = None,
    length: int | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Program:
    """The block program that :func:`compile_model` would make, from the model's configuration alone.

    No weights are loaded and no engine is built. Arguments and errors as there.
    """
    tell = progress or (lambda _phase: None)
    tile = _check_options(block_size, key_tile, lowering)
    policy = _check_policy(attention, lowering)
    tell("reading the configuration")
    options = _options(results, masks, trust_remote_code, experts, block_size, length)
    plain = policy.exact and experts == "auto" and not results and not masks and not trust_remote_code
    if plain and lowering in ("auto", "tile", WINDOW, MODEL) and isinstance(source, str | Path):
        known = known_decoder(Path(source), block_size, tile)
        if known is not None:
            _chosen(lowering, known)
            return known
    front = _front(source, example_inputs, weights=False, whole=lowering == WHOLE, **options)
    tell("capturing its graph")
    captured, parts, _ = _capture_and_partition(front, policy)
    program = _lower(captured, parts, block_size, tile, lowering, (oracle_layers, oracle_heads)).program
    _chosen(lowering, program)
    return program


def _assemble(
    captured: Captured, lowered: Lowered, lowering: str, approximations: tuple[str, ...], *, own_tile: bool
) -> CompiledModel:
    """All that a bundle is written from.

    Args:
        captured: The model.
        lowered: Its block program.
        lowering: As it was asked for.
        approximations: What the program leaves out of the model's attention.
        own_tile: The width of key tiles was asked for, so that no others are offered.
    """
    weights = {name: captured.program.weights[name] for name in lowered.program.weights()}
    return CompiledModel(
        program=lowered.program,
        regions=lowered.regions,
        weights=weights,
        identity=captured.identity,
        tokenizer_json=captured.tokenizer_json,
        generation_json=captured.generation_json,
        dense_experts=captured.dense_experts,
        left_out=captured.left_out,
        lowering=_chosen(lowering, lowered.program),
        dtype="float32",
        approximations=approximations,
        other_key_tiles=other_key_tiles(lowered.program) if not own_tile and lowering in ("auto", "tile") else (),
    )


def _chosen(lowering: str, program: Program) -> str:
    """The lowering that the bundle has.

    Raises:
        CompileError: ``window`` where no layer can be lowered so, ``model`` where some layer can't.
    """
    if lowering == "auto":
        return "tile"
    if lowering == MODEL and (obstacle := model_obstacle(program)) is not None:
        raise obstacle
    if lowering != WINDOW or window_steps(program) is not None:
        return lowering
    problem = (
        f"has no layer under a window that touches {MOST_TILES} key tiles or fewer, as large as blocks, "
        "without biases and sinks"
    )
    raise CompileError(program.name, problem, "choose --lowering tile, or a larger --block-size")


def _options(
    results: Sequence[str],
    masks: Mapping[str, str] | None,
    trust: bool,
    experts: str,
    block_size: int,
    length: int | None,
) -> dict[str, Any]:
    """How :func:`_front` reads a source."""
    experts_way = (experts, block_size)
    return {"results": results, "masks": masks or {}, "trust": trust, "experts": experts_way, "length": length}


def _front(
    source: Source,
    example_inputs: Any,
    *,
    weights: bool,
    results: Sequence[str],
    masks: Mapping[str, str],
    trust: bool,
    experts: tuple[str, int],
    length: int | None,
    whole: bool,
) -> Callable[[], Captured]:
    """The model, loaded by the front door for its kind: what captures it."""
    if experts[0] not in EXPERTS_WAYS:
        raise CompileError("experts", f"is {experts[0]!r}", f"choose one of {', '.join(EXPERTS_WAYS)}")
    if trust and (not isinstance(source, str | Path) or Path(source).suffix in (".gguf", ".onnx")):
        problem = "is for model folders, and nothing else brings code of its own"
        raise CompileError("trust_remote_code", problem, "leave it out")
    _check_length(source, length, whole=whole)
    if isinstance(source, str | Path) and Path(source).suffix == ".onnx":
        from twoheads.compiler.frontend.onnx.capture import capture_onnx
        from twoheads.compiler.frontend.onnx.capture_whole import capture_whole_onnx

        if experts[0] == "grouped":
            problem = "is for models that the library loads: a file's operators say nothing of experts"
            raise CompileError("--experts grouped", problem, "leave it out")

        if whole and masks:
            raise CompileError("--mask", "is for files of any length, and a whole model has one size", "leave it out")
        return (lambda: capture_whole_onnx(source, results)) if whole else lambda: capture_onnx(source, results, masks)
    for name, given in (("results", results), ("masks", masks)):
        if given:
            raise CompileError(name, "are named for a source that is no ONNX file", "leave them out")
    if isinstance(source, str | Path) and Path(source).suffix == ".gguf" and Path(source).is_file():
        check_gguf(Path(source))  # before torch is loaded, for seconds
    from twoheads.compiler.frontend.torch.capture import capture
    from twoheads.compiler.frontend.torch.capture_whole import capture_whole
    from twoheads.compiler.frontend.torch.hugging_face.grouped_experts import ExpertsChoice
    from twoheads.compiler.frontend.torch.load_source import load_source
    from twoheads.compiler.original.prove_capture import prove_capture

    how: dict[str, Any] = {"weights": weights, "trust_remote_code": trust, "deferred": weights}
    loaded = load_source(source, example_inputs=example_inputs, whole=whole, length=length, **how)

    fixed = not whole and all(entry.token_axis is None for entry in loaded.inputs.values())

    def proven() -> Captured:
        with _naming_whole(possible=fixed):
            found = capture_whole(loaded) if whole else capture(loaded, ExpertsChoice(*experts))
        if weights:
            prove_capture(loaded, found)
        return found

    return proven


def _check_length(source: Source, length: int | None, *, whole: bool) -> None:
    """Refuses an only length that is none, or of what has another."""
    if length is None:
        return
    if length < 1:
        raise CompileError("--length", f"is {length}", "give the number of tokens, 1 or more")
    if not whole:
        problem = "is the only length of a model in one engine, and a model by blocks takes any"
        raise CompileError(f"--length {length}", problem, "leave it out, or choose --lowering whole")
    if isinstance(source, str | Path) and Path(source).suffix == ".onnx":
        raise CompileError(f"--length {length}", "is for models that the library loads", "leave it out")


@contextmanager
def _naming_whole(*, possible: bool) -> Generator[None]:
    """Adds to what is refused within it that the model can be whole, if that is ``possible``."""
    try:
        yield
    except CompileError as error:
        if not possible or WHOLE in error.fix:
            raise
        fix = f"{error.fix}; or compile it as one engine of its only input size, --lowering whole"
        raise CompileError(error.where, error.problem, fix) from error


def _check_options(block_size: int, key_tile: int | None, lowering: str) -> int:
    if block_size % 8 or not 16 <= block_size <= 4096:
        raise CompileError("block_size", f"is {block_size}", "give a multiple of 8 from 16 to 4096")
    tile = block_size if key_tile is None else key_tile
    if tile < block_size or tile % block_size or tile > LARGEST_TILE:
        raise CompileError(
            "key_tile", f"is {tile}", f"give a multiple of the block size {block_size}, at most {LARGEST_TILE}"
        )
    if lowering not in LOWERINGS:
        raise CompileError("lowering", f"is {lowering!r}", f"choose one of {', '.join(LOWERINGS)}")
    return tile


def _check_policy(attention: str, lowering: str) -> Policy:
    policy = parse_policy(attention)
    if lowering == WHOLE and attention != "full":
        problem = "is a policy on attention by tiles, and a whole model has none"
        raise CompileError(f"--attention {attention}", problem, "choose --lowering tile, or leave the policy out")
    if policy.samples and lowering not in ("auto", "tile"):
        raise CompileError(
            f"--attention {attention}", f"samples keys, which the lowering {lowering!r} can't", "choose --lowering tile"
        )
    return policy


def _capture_and_partition(front: Callable[[], Captured], policy: Policy) -> tuple[Captured, Partition, bool]:
    """The captured model under ``policy``, its parts, and whether the policy changed anything."""
    began = time.perf_counter()
    original = front()
    captured = replace(original, graph=apply_policy(original.graph, policy))
    one_size = all(entry.value.axis is None for entry in captured.graph.inputs)
    with _naming_whole(possible=one_size):
        parts = partition(captured.graph)
    logger.info("captured and partitioned %s in %.2f s", captured.graph.name, time.perf_counter() - began)
    logger.debug("%s", captured.graph)
    return captured, parts, captured.graph is not original.graph


def _unique_regions(parts: Partition) -> list[Region]:
    regions = [step for step in (*parts.body, parts.head) if isinstance(step, Region)]
    return list({region.fingerprint: region for region in regions}.values())


def _lower(
    captured: Captured, parts: Partition, block_size: int, key_tile: int, lowering: str, oracle: tuple[int, int]
) -> Lowered:
    limits = find_position_limits(captured.graph, captured.program)
    lowered = lower_tile(captured, parts, block_size=block_size, key_tile=key_tile, limits=limits)
    if lowering == "oracle":
        return lower_oracle(lowered, layers=oracle[0], heads=oracle[1])
    return lower_stock(lowered) if lowering == "stock" else lowered
