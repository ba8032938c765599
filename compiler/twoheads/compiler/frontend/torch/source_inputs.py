"""The tensor arguments of a model: what they are called, what they look like, and which axis of theirs is cut."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from twoheads.compiler.frontend.torch.hugging_face.layers.sequence_heads import shifts_its_tokens
from twoheads.graphs.errors import CompileError

__all__ = ["SourceInput", "attention_layers", "given_inputs", "hugging_face_inputs"]

EXAMPLE_LENGTH = 29
"""Tokens of the example input: a prime, so that no other dimension of a model is equal to it by accident."""

EXAMPLE_SAMPLES = 16001
"""Samples of an example waveform, a prime: one second, of which strided convolutions make some 50 tokens."""

WAVEFORMS = frozenset({"moonshine"})
"""Types of models of waveforms whose configurations do not tell their strides."""

EXAMPLE_FRAMES = 239
"""Frames of an example spectrogram that is subsampled, a prime."""

DECODER_LENGTH = 37
"""Tokens of a decoder's example input, another prime."""


@dataclass(frozen=True, slots=True)
class SourceInput:
    """One tensor argument of the source: an example, its token axis, if any, and who supplies it."""

    example: Tensor
    token_axis: int | None
    source: str


def hugging_face_inputs(name: str, module: nn.Module, size: tuple[int, int] | None = None) -> dict[str, SourceInput]:
    """The arguments that a transformers model needs: its main one, token types, a decoder's tokens.

    Args:
        name: The model's, for messages.
        module: The model.
        size: Height and width of its images, where its configuration does not say.

    Raises:
        CompileError: Its main argument is none that this version knows the shape of.
    """
    model = cast("Any", module)
    parameters = inspect.signature(model.forward).parameters
    argument = model.main_input_name
    if argument not in parameters:  # a part of a larger model may say that model's
        argument = next((name for name in _MAIN if name in parameters), argument)
    elif argument == _ANY:  # of whatever encoder there is
        argument = getattr(model.get_encoder(), "main_input_name", argument)
    main = _MAIN.get(argument)
    if main is None or argument not in parameters:
        raise CompileError(
            name,
            f"{type(module).__name__} takes {argument}, which this version can't make an example of",
            f"compile a model that takes one of {', '.join(_MAIN)}",
        )
    if _GRID in parameters and main is _image:
        raise CompileError(
            name,
            f"{type(module).__name__} takes an image as its patches, beside the rows and columns of them ({_GRID})",
            "compile a model of images of one size (SigLIP)",
        )
    unsaid = size is not None and not any(getattr(_vision(model.config), entry, None) for entry in _IMAGE_SIZES)
    inputs = {argument: _image(model.config, size) if unsaid and main is _image else main(model.config)}
    if "token_type_ids" in parameters and getattr(model.config.get_text_config(), "type_vocab_size", None):
        inputs["token_type_ids"] = _tokens(EXAMPLE_LENGTH, "zeros")
    if kinds := getattr(model.config, "type_vocab_sizes", None):
        inputs |= _cells(len(kinds))
    if beside := _BESIDE.get(model.config.model_type):
        inputs |= beside(model.config)
    pair = getattr(model.config, "is_encoder_decoder", False) and not shifts_its_tokens(module)
    if pair and "decoder_input_ids" in parameters:
        inputs["decoder_input_ids"] = _tokens(DECODER_LENGTH, "argument")
    if lacking := [entry.name for entry in parameters.values() if _needed(entry) and entry.name not in inputs]:
        raise CompileError(
            name,
            f"{type(module).__name__} needs {lacking[0]} beside {argument}, and no example can be made of that",
            "compile a part of it that takes one input: its language model, or its vision model",
        )
    return inputs


def given_inputs(examples: Mapping[str, Tensor], *, whole: bool = False) -> dict[str, SourceInput]:
    """The arguments that a caller gives examples of.

    Args:
        examples: By name: ``[1, tokens]`` or ``[1, tokens, features]``, ``[rows, 1, tokens]`` (positions of Qwen-VL's
            three kinds), or an image ``[1, channels, height, width]`` of the only size.
        whole: They all have their only size, whatever their shape.

    Raises:
        CompileError: An example has another shape, or less than 3 tokens.
    """
    if whole:
        return {name: SourceInput(example, None, "argument") for name, example in examples.items()}
    return {name: SourceInput(example, _token_axis(name, example), "argument") for name, example in examples.items()}


def _token_axis(name: str, example: Tensor) -> int | None:
    shape = list(example.shape)
    if len(shape) in (2, 3, 4) and shape[0] == 1 and shape[1] >= 3:
        return None if len(shape) == 4 else 1
    if len(shape) == 3 and shape[1] == 1 and shape[2] >= 3:
        return 2
    raise CompileError(
        f"example input {name!r}",
        f"has shape {shape}",
        "give [1, tokens] or [1, tokens, features], 3 tokens or more, or an image [1, channels, rows, columns]",
    )


def _needed(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD


def attention_layers(module: nn.Module, inputs: Mapping[str, SourceInput]) -> int:
    """Number of attentions that the configuration promises for ``inputs``; 0 if it does not say."""
    config = cast("Any", module).config
    if not getattr(config, "is_encoder_decoder", False):
        text = config.get_text_config()
        kinds = getattr(text, "layer_types", None)
        if kinds and any("attention" in kind for kind in kinds):  # others may be convolutions
            return sum("attention" in kind for kind in kinds)
        layers = getattr(text, "num_hidden_layers", None)
        return layers if isinstance(layers, int) else 0  # LXMERT counts them by its towers
    encoder = _first(config, "encoder_layers", "encoder_num_hidden_layers", "num_layers", "num_hidden_layers")
    decoder = _first(config, "decoder_layers", "decoder_num_hidden_layers", "num_decoder_layers", "num_hidden_layers")
    # A decoder's layer attends to its own tokens and to the encoder's.
    return encoder + (2 * decoder if "decoder_input_ids" in inputs else 0)


def _first(config: Any, *names: str) -> int:
    return int(next((getattr(config, name) for name in names if getattr(config, name, None)), 0))


def _tokens(length: int, source: str) -> SourceInput:
    return SourceInput(torch.zeros((1, length), dtype=torch.int64), 1, source)


def _cells(kinds: int) -> dict[str, SourceInput]:
    """What a reader of tables (TAPAS) is told of every token beside itself.

    Types ``[1, n, kinds]``, among them column and row, and ``position_ids``, its number within its cell: the library
    counts that from the types of all tokens before, which no block holds.
    """
    types = torch.zeros((1, EXAMPLE_LENGTH, kinds), dtype=torch.int64)
    return {"token_type_ids": SourceInput(types, 1, "argument"), "position_ids": _tokens(EXAMPLE_LENGTH, "argument")}


def _boxes(_config: Any) -> dict[str, SourceInput]:
    """Where every token stands on its page, ``[1, n, 4]``: left, top, right and bottom edge (BROS)."""
    return {"bbox": SourceInput(torch.zeros((1, EXAMPLE_LENGTH, 4)), 1, "argument")}


def _regions(config: Any) -> dict[str, SourceInput]:
    """Features ``[1, m, width]`` and places ``[1, m, 4]`` of the things that a detector saw in an image (LXMERT)."""
    widths = {"visual_feats": int(config.visual_feat_dim), "visual_pos": int(config.visual_pos_dim)}
    return {name: SourceInput(torch.zeros((1, DECODER_LENGTH, width)), 1, "argument") for name, width in widths.items()}


_BESIDE: Mapping[str, Callable[[Any], dict[str, SourceInput]]] = {
    "bros": _boxes,
    "lxmert": _regions,
}
"""Arguments that a type asks for beside its main one, though its signature has defaults for them."""


def _ids(config: Any) -> SourceInput:
    """Numbers of tokens ``[1, n]``; ``[1, n, 1 + codebooks]`` of a model that reads a word and its sound's codes."""
    if config.model_type not in _CODES:
        return _tokens(EXAMPLE_LENGTH, "argument")
    codes = 1 + int(_said(config, "num_codebooks"))
    return SourceInput(torch.zeros((1, EXAMPLE_LENGTH, codes), dtype=torch.int64), 1, "argument")


_CODES = frozenset({"kyutai_speech_to_text"})
"""Types of models that read a word and one code of every codebook at each step, and add up their embeddings."""


def _image(config: Any, other: tuple[int, int] | None = None) -> SourceInput:
    """``[1, channels, height, width]`` of the configured size; a model of one size is not cut along its input.

    A model of videos has ``frames`` before the channels.
    """
    vision = _vision(config)
    size = other or _said_as(vision, _IMAGE_SIZES, _OWN_IMAGE)
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    frames = next((count for name in _FRAMES if (count := getattr(vision, name, None))), None)
    channels = next((count for name in _CHANNELS if (count := getattr(vision, name, None))), 3)
    shape = (1, *([int(frames)] if frames else []), int(channels), height, width)
    return SourceInput(torch.zeros(shape), None, "argument")


def _vision(config: Any) -> Any:
    """The configuration of what sees: a part of a wrapper's, or of a pair of any encoder with any decoder."""
    return getattr(config, "vision_config", getattr(config, "encoder", config))


def _spectrogram(config: Any) -> SourceInput:
    """Log-mel features ``[1, bins, frames]`` of Whisper's window, or rows ``[1, frames, features]``, any number."""
    if width := getattr(config, "feature_projection_input_dim", None):
        return SourceInput(torch.zeros((1, EXAMPLE_LENGTH, int(width))), 1, "argument")
    encoder = getattr(config, "encoder_config", config)
    if frames := _STACKED.get(encoder.model_type):
        width = frames * int(_said_as(encoder, _BINS))
        return SourceInput(torch.zeros((1, EXAMPLE_FRAMES, width)), 1, "argument")
    if any(getattr(encoder, name, None) for name in _SUBSAMPLING):  # a convolution in front takes any number of frames
        return SourceInput(torch.zeros((1, EXAMPLE_FRAMES, int(_said_as(encoder, _BINS)))), 1, "argument")
    bins, positions = _said_as(config, _BINS), _said(config, "max_source_positions")
    return SourceInput(torch.zeros((1, bins, 2 * positions)), None, "argument")


_IMAGE_SIZES = ("image_size", "crop_size")
_FRAMES = ("num_frames", "frames_per_clip")
_CHANNELS = ("num_channels", "in_chans")
_BINS = ("num_mel_bins", "input_feat_per_channel")
"""What configurations call the same thing; V-JEPA 2 and Speech2Text have the second name."""

_STACKED = {"granite_speech5_encoder": 4}
"""Frames of a spectrogram that its extractor puts beside each other, by type: two, each with its change."""

_SUBSAMPLING = ("subsampling_factor", "subsampling_conv_stride", "num_conv_layers")
_OWN = "compile the torch module with example inputs of your own"
_OWN_IMAGE = (
    "compile it with --lowering whole, for the size that preprocessor_config.json says, or with example_inputs of yours"
)


def _said(config: Any, name: str) -> Any:
    return _said_as(config, (name,))


def _said_as(config: Any, names: tuple[str, ...], remedy: str = _OWN) -> Any:
    """An entry of the configuration that an example can't be made without, under the first name that it has.

    Raises:
        CompileError: It has none of them.
    """
    for name in names:
        if value := getattr(config, name, None):
            return value
    problem = f"does not say {names[0]}, so the shape of the model's input is not known"
    raise CompileError(type(config).__name__, problem, remedy)


def _sound(config: Any) -> SourceInput:
    """A waveform ``[1, samples]`` (or ``[1, 1, samples]``), or a spectrogram ``[1, frames, bins]`` of a fixed size."""
    config = getattr(config, "encoder", config)
    if hasattr(config, "num_mel_bins") and hasattr(config, "max_length"):
        frames, bins = (_said(config, name) for name in ("max_length", "num_mel_bins"))
        return SourceInput(torch.zeros((1, frames, bins)), None, "argument")
    if hasattr(getattr(config, "audio_config", None), "conv_stride"):
        return SourceInput(torch.zeros((1, 1, EXAMPLE_SAMPLES)), 2, "argument")
    if not hasattr(config, "conv_stride") and config.model_type not in WAVEFORMS:
        raise CompileError(
            type(config).__name__, "takes input_values that are no waveform [1, samples]", "compile the encoder below"
        )
    return SourceInput(torch.zeros((1, EXAMPLE_SAMPLES)), 1, "argument")


_GRID = "spatial_shapes"
"""The argument of models that cut their images into patches beforehand, as many as each has (SigLIP 2)."""

_ANY = "inputs"
"""What a pair of any encoder with any decoder calls its main argument; it takes the encoder's name for it too."""

_MAIN: Mapping[str, Callable[[Any], SourceInput]] = {
    "input_ids": _ids,
    "pixel_values": _image,
    "pixel_values_videos": _image,
    "input_features": _spectrogram,
    "input_values": _sound,
}
"""The example of a main argument, made from the model's configuration, by the argument's name."""
