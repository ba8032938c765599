"""Layers of the library that are refused by name: their graph would look right and be wrong, or would say less."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import nn

from twoheads.compiler.frontend.torch.hugging_face.layers.sparse_layers import SPARSE_LAYERS
from twoheads.graphs.errors import CompileError

__all__ = ["refuse_known"]


def refuse_known(module: nn.Module) -> None:
    """Refuses what is known not to work, with a better reason than its graph would give.

    Raises:
        CompileError: Names the layer.
    """
    for name, part in module.named_modules():
        for pattern, (reason, remedy) in _REFUSED.items():
            if re.search(pattern, type(part).__name__) and type(part).__name__ not in SPARSE_LAYERS:
                raise CompileError(f"{name} ({type(part).__name__})" if name else type(part).__name__, reason, remedy)


_ONE_LENGTH = "compile one length of it as one engine, --lowering whole --length 512"
_OTHER = "compile a model whose tokens meet in softmax attention only"
_TRANSFORMER = f"{_ONE_LENGTH}; or {_OTHER}"
_WHOLE = "--lowering whole compiles it as one engine of its whole size: nothing is tiled"
_ONE_GRID = f"{_WHOLE}; or compile a vision transformer of one grid of patches (ViT, DINOv2, SigLIP)"
_ENCODER = "compile the model below its head"
_REFUSED: Mapping[str, tuple[str, str]] = {
    r"^mLSTM(Block|Layer|Backend)$": (
        "computes its recurrence by the package xlstm, whose kernels no graph holds",
        "uninstall the package: transformers has code of its own for the same weights",
    ),
    r"DeepseekV4(HCA|CSA)Compressor": (
        "makes keys that stand for windows of tokens, some of which an indexer chooses by their content: tiles are "
        "chosen by positions alone",
        _TRANSFORMER,
    ),
    r"Indexer$": (
        "chooses by their content which keys every token attends to (a sparse indexer), and tiles are chosen by "
        "positions alone",
        "compile a model whose tokens see all keys, a window or a chunk",
    ),
    r"RelMultiheadAttention|RelPositionalMultiHeadAttention": (
        "has scores of content with embeddings of distances, shifted row by row: a bias that depends on content",
        f"{_ONE_LENGTH}; or a model with rotary or absolute positions, or a bias by distance (T5, ALiBi)",
    ),
    r"^CanineModel$": (
        "makes one token of several characters, and repeats each behind its encoder: blocks of the two do not lie on "
        "each other",
        "compile a model of tokens",
    ),
    r"SEWD?Upsampling": (
        "makes several tokens of each one behind its encoder: blocks of the two do not lie on each other",
        "compile wav2vec 2, HuBERT or WavLM",
    ),
    r"LSHSelfAttention": ("sorts tokens into buckets by their content before it attends", _OTHER),
    r"FNetFourierTransform": ("mixes all tokens by a Fourier transform", _TRANSFORMER),
    r"NystromformerSelfAttention|YosoSelfAttention|MraSelfAttention": (
        "approximates attention by an algorithm over the whole input, which blocks can't follow",
        _TRANSFORMER,
    ),
    r"NgramSelfAttention": (
        "predicts several tokens ahead by streams that attend to each other, with a bias that depends on content",
        _TRANSFORMER,
    ),
    r"^(MBart|PLBart)ForSequenceClassification": (
        "puts the last token that is no padding in front of its decoder's tokens, wherever the input has it",
        f"{_ENCODER}, or a classifier whose decoder begins with a token of its own (BART, T5)",
    ),
    r"^BigBirdForQuestionAnswering$": (
        "types and hides the tokens up to the first separator, wherever the input has it",
        _ENCODER,
    ),
    r"^LongformerForQuestionAnswering$": (
        "gives the tokens of the question, up to the first separator, global attention, which is computed by other "
        "weights than that of the rest",
        "compile the base model or its masked language model, whose attention is local",
    ),
    r"^BrosSelfAttention$": (
        "has scores of queries with embeddings of where words stand to each other on the page: a bias that depends on "
        "content",
        f"{_ONE_LENGTH}; or LayoutLM, whose places are embedded with its tokens",
    ),
    r"^GraniteSpeech5EncoderAttention$": (
        "attends within blocks of its rows, with a bias by distance that depends on content, and has half as many rows "
        "behind some of its layers",
        f"{_ONE_LENGTH}; or a Conformer with one attention over all rows (Parakeet)",
    ),
    r"^DiaForConditionalGeneration$": (
        "reads and makes several channels of sound at every step, which its head lays beside each other as a batch",
        "compile a model of one sequence of tokens",
    ),
    r"^MoonshineStreamingEncoderEmbedder$": (
        "cuts its waveform into frames of one size, and takes whole ones only",
        "compile Moonshine, whose convolutions take any number of samples",
    ),
    r"^BltModel$": (
        "cuts its bytes into patches where a small model's entropy says, and attends to patches: which bytes share one "
        "depends on content",
        "compile a model of tokens",
    ),
    r"CpmAntModel": (
        "hides token 0 wherever it stands in the input, and puts tokens of its own before it",
        f"{_ONE_LENGTH}; or a decoder whose mask is given",
    ),
    r"Gemma4(Unified)?AssistantForCausalLM": (
        "reads the keys and values of another model: it guesses that model's next tokens, and is none alone",
        "compile the model that it assists; `generate --draft` takes any smaller model of the same vocabulary",
    ),
    r"^Musicgen(Melody)?Decoder$": (
        "takes the codes of every moment, one of each codebook, as so many inputs of a batch, and gives as many rows "
        "of logits: a token is several inputs at once",
        "compile a model that takes one input of tokens; MusicGen's text encoder (T5) is one",
    ),
    r"T5Gemma2MergedAttention": (
        "has one softmax over the decoder's own tokens and the encoder's: keys along two axes in one attention",
        "compile T5Gemma, whose decoder attends to the two in turns",
    ),
    r"^BlipForConditionalGeneration$": (
        "reads an image and a text at once: every word attends to the image's patches, so neither alone is an input",
        "compile a part of it that takes one input (BlipVisionModel)",
    ),
    r"^VoxtralRealtimeForConditionalGeneration$": (
        "adds the sound of its own moment to every token of its text: neither alone is an input",
        "compile a model whose sound is read by an encoder (Voxtral, Whisper)",
    ),
    r"PerceiverModel": (
        "reads its input into a fixed number of latent vectors, and its decoder asks for as many outputs as it has "
        "positions: no length of the input is that of its output",
        _TRANSFORMER,
    ),
    r"LongT5TransientGlobalAttention": (
        "has one softmax over a window of tokens and over sums of blocks of tokens: keys along two axes in one "
        "attention",
        'compile a LongT5 with encoder_attention_type="local", or a model with one attention over all tokens (T5)',
    ),
    r"PegasusXGlobalLocalAttention": (
        "has one softmax over a block of tokens and over global tokens that attend to all: keys along two axes in one "
        "attention",
        f"{_ONE_LENGTH}; or a model with one attention over all tokens (BART, T5), or one over a window (LED)",
    ),
    r"^(Swin|Swinv2|Swin2SR|DonutSwin)\w*Attention|HieraMaskUnitAttention|NeighborhoodAttention$|VitDetAttention|"
    r"SamVision(Sdpa)?Attention": (
        "attends within windows of an image's grid, whose tokens lie along no one axis",
        _ONE_GRID,
    ),
    r"(Pvt|PvtV2|Segformer|GLPN)(Efficient)?(Self)?Attention$|LevitAttention|MobileViTAttention|"
    r"MobileViTV2LinearSelfAttention|SwiftFormerEfficientAdditiveAttention": (
        "attends in a pyramid of grids, each of which has other tokens than the one before",
        _ONE_GRID,
    ),
    r"TimesformerSelfAttention|VideoPrismTemporalEmbeddings": (
        "attends to places of one frame and to frames of one place in turns: its tokens lie along two axes",
        f"{_WHOLE}; or compile a video model with one sequence of patches (VideoMAE, ViViT)",
    ),
    r"FocalNetModulation|^(ResNet|RegNet|ConvNext|ConvNextV2|DINOv3ConvNext|MobileNetV1|MobileNetV2|EfficientNet|"
    r"PoolFormer|Bit)Model$": (
        "is a convolutional network: it has no attention, so there are no tokens to cut into blocks",
        _WHOLE,
    ),
}  # fmt: skip
"""Reason and remedy by a pattern of class names."""
