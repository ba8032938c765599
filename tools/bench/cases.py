"""What is measured: which models, at which lengths, and who takes part."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["CASES", "Case", "quick"]

EVERYBODY = (
    "ours",
    "torch",
    "onnxruntime",
    "openvino-f32",
    "ours-openvino",
    "openvino-default",
    "ours-openvino-bf16",
    "llama.cpp",
)
"""All but the tiles alone, beside each whole graph the runs of our bundle on the same backend."""


@dataclass(frozen=True, slots=True)
class Case:
    """One table of the page: contenders that take turns on the same inputs.

    Attributes:
        name: On the command line.
        title: What is run.
        question: What the figures answer.
        model: A name of :mod:`tools.fetch_models`, ``attention`` or ``windowed``.
        contenders: Keys of ``tools.bench.contenders.CONTENDERS``, ours first.
        lengths: Tokens, ascending.
        quick_lengths: Those of a quick try.
        repeats: Measured runs of every contender at every length.
        vocabulary: Tokens are random numbers below it.
        threads: Of every contender; 0 for as many as there are processors.
        block_size: Of our bundle.
    """

    name: str
    title: str
    question: str
    model: str
    contenders: tuple[str, ...]
    lengths: tuple[int, ...]
    quick_lengths: tuple[int, ...]
    repeats: int
    vocabulary: int = 40_000
    threads: int = 0
    block_size: int = 256


_SHORT = Case(
    name="short",
    title="SmolLM2-135M, one input of a block or less, all threads",
    question="What does a single short input cost, beside the same model as one plain engine of a block's size?",
    model="smollm2",
    contenders=("ours", "onnxruntime-fixed", "onnxruntime", "torch"),
    lengths=(16, 128, 256),
    quick_lengths=(16,),
    repeats=7,
)

_ALONE = Case(
    name="smollm2-onnxruntime",
    title="SmolLM2-135M at 8,192 tokens: ONNX Runtime's whole graph, with the memory to itself",
    question="What does the whole graph take where it finds the memory it wants?",
    model="smollm2",
    contenders=("ours", "onnxruntime"),
    lengths=(8192,),
    quick_lengths=(512,),
    repeats=2,
)

CASES = {
    case.name: case
    for case in (
        Case(
            name="attention",
            title="Causal attention alone: 9 query heads, 3 key/value heads, head dim 64",
            question="How fast are our attention engines, tiles, merge and scheduling, without the rest of a model?",
            model="attention",
            contenders=("ours-attention", "tile-engine", "torch-attention"),
            lengths=(1024, 2048, 4096, 8192),
            quick_lengths=(1024,),
            repeats=5,
        ),
        Case(
            name="smollm2",
            title="SmolLM2-135M without its head: full causal attention",
            question="How does a whole decoder compare with other runtimes, and how does time grow with the input?",
            model="smollm2",
            contenders=EVERYBODY,
            lengths=(512, 1024, 2048, 4096, 8192),
            quick_lengths=(512,),
            repeats=3,
        ),
        _ALONE,
        replace(
            _ALONE,
            name="smollm2-openvino",
            title="SmolLM2-135M at 8,192 tokens: OpenVINO, with the memory to itself",
            contenders=("ours", "openvino-f32"),
        ),
        Case(
            name="gemma3",
            title="Gemma-3-270M without its head: windows of 512 in most layers, full attention in the others",
            question="What is gained where windows cost no more than they must?",
            model="gemma3",
            contenders=("ours", "torch"),
            lengths=(8192, 16384),
            quick_lengths=(512,),
            repeats=2,
        ),
        Case(
            name="windowed-torch",
            title="A windowed decoder: 8 layers of width 512, windows of 512 tokens",
            question="From which length on does a window pay, beside a framework that computes with dense masks?",
            model="windowed",
            contenders=("ours", "torch"),
            lengths=(1024, 2048, 4096, 8192, 16384),
            quick_lengths=(512,),
            repeats=3,
            vocabulary=1000,
        ),
        Case(
            name="windowed",
            title="The windowed decoder at any length",
            question="Is time linear in the input where every layer has a window?",
            model="windowed",
            contenders=("ours",),
            lengths=(8192, 16384, 32768, 65536, 131072),
            quick_lengths=(2048, 4096),
            repeats=2,
            vocabulary=1000,
        ),
        _SHORT,
        replace(
            _SHORT,
            name="short-one-thread",
            title="SmolLM2-135M, one input of a block or less, one thread",
            question="The same on one thread, where our engines and the plain engine do the same work.",
            threads=1,
        ),
    )
}


def quick(case: Case) -> Case:
    """The case at lengths that take seconds, once."""
    return replace(case, lengths=case.quick_lengths, repeats=1)
