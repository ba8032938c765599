"""What a GGUF file's header says of its model, of which the library reads a part and leaves the rest to defaults.

A StarCoder2's base of rotary positions, a Phi-3's window and a Gemma 2's soft caps are such entries: a model without
them is another one, and the original that it is compared with is the same other one. So every entry is looked at.
What the library does not read is given to the configuration that it made, where that has a place for it; what changes
nothing may stay; and a file that says anything else is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isclose
from pathlib import Path
from typing import Any

from twoheads.compiler.frontend.torch.weights.gguf_header import (
    FOLDER,
    UNREAD,
    Said,
    gguf_config,
    gguf_facts,
)
from twoheads.compiler.frontend.torch.weights.gguf_positions import stretched
from twoheads.graphs.errors import CompileError

__all__ = ["file_config", "gemma_width"]

ALIKE = 1e-5
"""Between numbers of a header, which are float32, and those of a configuration, relative."""

ROTARY, FULL, SLIDING = "rope_parameters", "full_attention", "sliding_attention"
"""The entry of a configuration with everything on rotary positions, and the two kinds of layers that it may tell."""

GEMMAS = {"gemma2": 46, "gemma3": 62}
"""Layers of the Gemma of each kind whose scores are scaled by the width of hidden states for a head."""

WINDOWED = frozenset({"mistral", "phi3", "starcoder2"})
"""Types of models all of whose layers see a window where their configuration says one."""

NO_MATTER = frozenset(
    {
        "context_length",
        "feed_forward_length",
        "features_length",
        "pooling_type",
        "tensor_data_layout",
        "use_parallel_residual",
        "vocab_size",
    }
)
"""Entries that say nothing of what is computed: how tensors were arranged, what tensors show themselves (sizes, and a
product beside attention, of which converters write a guess), and the length of training, which bounds nothing."""

STRETCHING = ("rope.scaling.", "rope.scale_linear")
"""How entries begin that :func:`.gguf_positions.stretched` looks at."""

EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
"""What configurations call what a norm adds; the library writes some into an entry that their model does not read."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """How an entry is compared with a configuration.

    Attributes:
        names: Of entries of a configuration: all that it has say the same.
        neutral: Values that change nothing where it has none of them.
        given: Whether the file's value takes the place of the configuration's.
    """

    names: tuple[str, ...] = ()
    neutral: tuple[Said, ...] = ()
    given: bool = True


HEADS = _Entry(("num_key_value_heads", "num_attention_heads", "n_head"), neutral=(0,), given=False)

ENTRIES: Mapping[str, _Entry] = {
    "attention.layer_norm_rms_epsilon": _Entry(EPSILONS),
    "attention.layer_norm_epsilon": _Entry(EPSILONS),
    "attention.head_count": HEADS,
    "attention.head_count_kv": HEADS,
    "attention.key_length_swa": _Entry(("head_dim",), given=False),
    "attention.value_length_swa": _Entry(("head_dim",), given=False),
    "rope.dimension_count_swa": _Entry(("head_dim",), given=False),
    "attention.shared_kv_layers": _Entry(("num_kv_shared_layers",), neutral=(0,)),
    "embedding_length_per_layer_input": _Entry(("hidden_size_per_layer_input",), neutral=(0,)),
    "attention.causal": _Entry(neutral=(True,)),
    "attention.scale": _Entry(neutral=(0.0,)),
    "attention.clamp_kqv": _Entry(neutral=(0.0,)),
    "attention.max_alibi_bias": _Entry(neutral=(0.0,)),
    "attn_logit_softcapping": _Entry(("attn_logit_softcapping",), neutral=(0.0,)),
    "final_logit_softcapping": _Entry(("final_logit_softcapping",), neutral=(0.0,)),
    "logit_scale": _Entry(neutral=(0.0, 1.0)),
    "residual_scale": _Entry(neutral=(0.0, 1.0)),
    "embedding_scale": _Entry(neutral=(0.0, 1.0)),
    "expert_count": _Entry(neutral=(0,)),
    "expert_used_count": _Entry(neutral=(0,)),
    "expert_group_count": _Entry(neutral=(0, 1)),
    "expert_group_used_count": _Entry(neutral=(0, 1)),
    "leading_dense_block_count": _Entry(neutral=(0,)),
    "nextn_predict_layers": _Entry(neutral=(0,)),
    "expert_weights_scale": _Entry(("routed_scaling_factor",), neutral=(0.0, 1.0)),
    "expert_weights_norm": _Entry(("norm_topk_prob",)),
    "ssm.dt_b_c_rms": _Entry(neutral=(False,)),
}
"""By what stands behind the architecture's name; those that are more than a number of a configuration are below."""


def file_config(path: Path) -> Any:
    """The transformers configuration of the model in a GGUF file, with all that the file says.

    Raises:
        CompileError: It says what the library does not read and no configuration has a place for.
        ValueError, KeyError, struct.error: The header is damaged, or of a kind that is not read here.
    """
    facts, config = gguf_facts(path), gguf_config(path)
    _scale_gemma(config)
    before = getattr(config, ROTARY, None) or {}
    if (found := stretched(path, facts, before)) != before:
        setattr(config, ROTARY, found)
    architecture = f"{facts.entries.get('general.architecture')}."
    own = {key.removeprefix(architecture): key for key in facts.entries if key.startswith(architecture)}
    read = _read_by_library(config)
    for name in sorted(own, key=_SPECIAL.__contains__):  # those that compare with what the others gave come last
        key = own[name]
        if not (key in UNREAD or name in NO_MATTER or name.startswith(STRETCHING)):
            said = facts.entries[key]
            if not _fits(config, name, said, read):
                problem = f"says {key} = {said}, which transformers does not read from such a file"
                raise CompileError(str(path), problem, FOLDER)
    return config


def gemma_width(kind: str, layers: int, per_head: int, head_dim: int) -> int:
    """By the root of what a Gemma of a file divides its scores: no entry says it, and the library takes 256.

    Args:
        kind: ``gemma2`` or ``gemma3``.
        layers: Its layers.
        per_head: Its hidden width for a head.
        head_dim: The width of a head.
    """
    return per_head if GEMMAS.get(kind) == layers else head_dim


def _scale_gemma(config: Any) -> None:
    kind = config.model_type.removesuffix("_text")
    if kind in GEMMAS:
        per_head = config.hidden_size // config.num_attention_heads
        config.query_pre_attn_scalar = gemma_width(kind, config.num_hidden_layers, per_head, config.head_dim)


def _read_by_library(config: Any) -> frozenset[str]:
    """The entries that the library reads of a model of this type."""
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    known: Mapping[str, Mapping[str, str | None]] = GGUF_CONFIG_MAPPING
    mapping = known.get(config.model_type, known.get(config.model_type.removesuffix("_text"), {}))
    return frozenset(entry for entry, name in mapping.items() if name is not None)


def _fits(config: Any, name: str, said: Said, read: frozenset[str]) -> bool:
    """Whether the configuration says the same, from now on at least."""
    entry = ENTRIES.get(name)
    if (special := _SPECIAL.get(name)) is not None:
        return special(config, said)
    if name in read and (entry is None or entry.names != EPSILONS):
        return True  # its configurations check types: a list where one number belongs is refused there
    if entry is None:
        return False
    names = [name for name in entry.names if getattr(config, name, None) is not None]
    if not entry.given:
        names = names[:1]
    elif not isinstance(said, tuple):
        for name in names:
            if not _alike(getattr(config, name), said):
                setattr(config, name, said)
    return all(_alike(getattr(config, name), said) for name in names) if names else said in entry.neutral


def _alike(own: Any, said: Said) -> bool:
    if isinstance(own, bool) or isinstance(said, bool) or not isinstance(own, int | float):
        return bool(own == said)
    return isinstance(said, int | float) and isclose(float(own), said, rel_tol=ALIKE)


def _head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _width(config: Any, said: Said) -> bool:
    """How wide a head is; of a model with two kinds of layers, in those that see all tokens."""
    return said in (_head_dim(config), getattr(config, "global_head_dim", None))


def _rotary(config: Any) -> dict[str, Any]:
    return getattr(config, ROTARY, None) or {}


def _base(config: Any, said: Said) -> bool:
    """The base of rotary positions; of a model with two kinds of layers, that of those which see all tokens."""
    rotary = _rotary(config)
    if FULL in rotary:
        return _alike(rotary[FULL].get("rope_theta"), said)
    if "rope_theta" not in rotary:
        return False
    if not _alike(rotary["rope_theta"], said):
        setattr(config, ROTARY, {**rotary, "rope_theta": said})
    return True


def _base_of_window(config: Any, said: Said) -> bool:
    return _alike(_rotary(config).get(SLIDING, {}).get("rope_theta"), said)


def _turned(config: Any, said: Said) -> bool:
    """How many numbers of a head are turned."""
    if said in (getattr(config, "rotary_dim", None), getattr(config, "global_head_dim", None)):
        return True
    share = _rotary(config).get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None)) or 1.0
    return bool(_rotary(config)) and int(_head_dim(config) * share) == said


def _window(config: Any, said: Said) -> bool:
    """How many tokens a token sees."""
    longest = getattr(config, "max_position_embeddings", None) or 0
    if said in (0, getattr(config, "sliding_window", None)) or (isinstance(said, int) and 0 < longest <= said):
        return True
    if config.model_type not in WINDOWED:
        return False
    config.sliding_window = said
    return True


def _pattern(config: Any, said: Said) -> bool:
    """Which layers see a window: yes or no for each, or every how many of them one sees all tokens."""
    windowed = [kind == SLIDING for kind in getattr(config, "layer_types", None) or ()]
    if isinstance(said, int):
        said = tuple((layer + 1) % said != 0 for layer in range(len(windowed))) if said > 0 else ()
    return bool(windowed) and isinstance(said, tuple) and list(said) == windowed


_SPECIAL: Mapping[str, Callable[[Any, Said], bool]] = {
    "attention.key_length": _width,
    "attention.value_length": _width,
    "rope.freq_base": _base,
    "rope.freq_base_swa": _base_of_window,
    "rope.dimension_count": _turned,
    "attention.sliding_window": _window,
    "attention.sliding_window_pattern": _pattern,
}
