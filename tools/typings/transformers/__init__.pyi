# pyright: reportIncompleteStub=false
# What pyright is told of transformers: nothing. Its package imports its 400 models for type checkers, half of all files
# that pyright would read, and what they make is untyped in what we use. mypy skips it too; tests import every name.
from typing import Any

def __getattr__(name: str) -> Any: ...
