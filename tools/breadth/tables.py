"""The library's tables of model types, and which of them the sweep makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["TABLES", "Type", "types_of"]

TABLES = {
    "causal": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "masked": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "encoder": "MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES",
    "vision": "MODEL_FOR_IMAGE_MAPPING_NAMES",
    "wrapper": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "audio": "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES",
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "ctc": "MODEL_FOR_CTC_MAPPING_NAMES",
    "speech": "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "classification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "token": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "question": "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
    "picture": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "video": "MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES",
}
"""Names of the library's tables."""


@dataclass(frozen=True, slots=True)
class Type:
    """One row of a table: the name of the type, and of the class that makes its model."""

    table: str
    name: str
    architecture: str


def types_of(table: str) -> list[Type]:
    """The types of a table, by name."""
    from transformers.models.auto import modeling_auto

    names: dict[str, Any] = dict(getattr(modeling_auto, TABLES[table]))
    return [
        Type(table, name, made[0] if isinstance(made, (list, tuple)) else made) for name, made in sorted(names.items())
    ]
