"""One bundle as what generates: its engines, its tokenizer, and what the model says about prompts and settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from twoheads.graphs.errors import InputError
from twoheads.graphs.variants.steps import Steps
from twoheads.runtime.bundle.reader import Bundle
from twoheads.runtime.bundle.tokenizer import Tokenizer
from twoheads.runtime.bundle.weights import Weights
from twoheads.runtime.generation.choosing.settings import Settings, split_unsupported
from twoheads.runtime.generation.choosing.speech import Speech, split_speech
from twoheads.runtime.generation.encoder import RunsEncoder
from twoheads.runtime.generation.kept.prompt_blocks import RunsPrompts
from twoheads.runtime.generation.steps.engines import StepEngines
from twoheads.runtime.generation.text.model_facts import ModelFacts, read_facts

__all__ = ["GenerationModel", "generation_model"]


@dataclass(frozen=True, slots=True)
class GenerationModel:
    """What all calls on one bundle share.

    Attributes:
        bundle: Which.
        weights: Its weights.
        engines: Its step engines.
        tokenizer: Its tokenizer, if it has one.
        encoder: Runs its encoder, if it has one.
        prompts: Computes whole blocks of prompts; ``None`` where steps do.
        facts: What the model says about generating.
        settings: The model's own, which every call begins with.
        refused: Those of its settings that are not supported: an error of every call that does not replace them.
        speech: What the model knows of speech, if it does.
    """

    bundle: Bundle
    weights: Weights
    engines: StepEngines
    tokenizer: Tokenizer | None
    encoder: RunsEncoder
    prompts: RunsPrompts | None
    facts: ModelFacts
    settings: Settings
    refused: Mapping[str, Any]
    speech: Speech | None

    @property
    def steps(self) -> Steps:
        """What a step computes."""
        return self.engines.steps

    @property
    def identity(self) -> tuple[str, str]:
        """Of the bundle, and of what computes."""
        whole = () if self.prompts is None else (f"whole blocks by runs, key tiles of {self.steps.program.key_tile}",)
        rows = () if self.engines.rows_in_place is None else ("rows of open blocks in place",)
        return self.bundle.identity, "\n".join((*self.engines.identity, *whole, *rows))

    def encode(self, text: str, *, special: bool) -> list[int]:
        """The tokens of a text, ``special`` ones of its beginning and end among them.

        Raises:
            InputError: The bundle has no tokenizer.
        """
        if self.tokenizer is None:
            raise InputError("prompt", "is a text, and the bundle has no tokenizer", "give tokens")
        return self.tokenizer.encode(text, special=special)


def generation_model(
    bundle: Bundle,
    weights: Weights,
    engines: StepEngines,
    tokenizer: Tokenizer | None,
    encoder: RunsEncoder,
    prompts: RunsPrompts | None = None,
) -> GenerationModel:
    """A bundle as what generates; see :class:`GenerationModel`. Engines are told where steps compute whole blocks.

    Raises:
        InputError: The model's settings are no such; the field is named.
    """
    facts = read_facts(bundle.generation_file)
    supported, refused = split_unsupported(facts.settings)
    own, speech = split_speech(supported, facts.where)
    settings = Settings().changed(own, facts.where)
    if prompts is None:
        engines.compute_blocks()
    return GenerationModel(bundle, weights, engines, tokenizer, encoder, prompts, facts, settings, refused, speech)
