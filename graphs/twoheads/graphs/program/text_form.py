"""What the printer and the parser of a program's text agree on."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields
from typing import Any, TypeAlias, get_type_hints

from twoheads.graphs.program.engines.experts import ExpertsEngine
from twoheads.graphs.program.engines.oracle import OracleEngine
from twoheads.graphs.program.engines.scan import ScanEngine
from twoheads.graphs.program.engines.stock_attention import StockEngine
from twoheads.graphs.program.engines.tile_attention import AttentionEngine

__all__ = ["ENGINE_FORMS", "WHOLE", "engine_defaults", "engine_fields"]

WHOLE = re.compile(r"[+-]?[0-9]+")
"""A whole number: a dimension of this form is a number, not a symbol."""

FormedEngine: TypeAlias = AttentionEngine | StockEngine | OracleEngine | ScanEngine | ExpertsEngine

ENGINE_FORMS: dict[str, type[FormedEngine]] = {
    form.kind: form for form in (AttentionEngine, StockEngine, OracleEngine, ScanEngine, ExpertsEngine)
}
"""Engines that a word and their fields describe, e.g. ``attention q_num_heads=9 kv_num_heads=3 ...``."""


def engine_fields(form: type[Any]) -> dict[str, type]:
    """The fields of such an engine and their types, in the order of its text."""
    return {name: kind for name, kind in get_type_hints(form).items() if name != "name"}


def engine_defaults(form: type[Any]) -> dict[str, Any]:
    """Fields that such an engine's text leaves out where they have this value."""
    return {field.name: field.default for field in fields(form) if field.default is not MISSING}
