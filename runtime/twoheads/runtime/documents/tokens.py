"""From documents to what a bundle runs: tokens that the model takes, or why it does not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from twoheads.graphs.errors import InputError
from twoheads.graphs.program.lengths import check_limit
from twoheads.graphs.program.program import TOKENS, Program
from twoheads.runtime.documents.source import Document
from twoheads.runtime.inputs.requests import Request, read_inputs
from twoheads.runtime.runs.session import LoadedBundle

__all__ = ["Prepared", "check_document_program", "prepare_documents"]

TOGETHER, CHARACTERS = 256, 4_000_000
"""Documents that are tokenised together: so many, or of so many characters."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A document that can be run, or not.

    Attributes:
        name: Of the document.
        request: What is run; ``None`` where there is an error.
        given: Tokens before it was cut.
        error: Why it can't be run.
    """

    name: str | int
    request: Request | None
    given: int = 0
    error: str | None = None

    @property
    def length(self) -> int:
        """Tokens that are run."""
        return 0 if self.request is None else self.request.length


def check_document_program(program: Program) -> None:
    """Refuses models that read something else than one sequence of tokens.

    Raises:
        InputError: It is one of them.
    """
    arguments = [entry.value for entry in program.inputs if entry.source == "argument"]
    if len(arguments) != 1 or arguments[0].axis != TOKENS or not arguments[0].dtype.startswith("int"):
        names = ", ".join(f"{value.name} {value.dtype}{list(value.shape)}" for value in arguments)
        problem = f"{program.name} reads {names}"
        raise InputError("documents", problem, "documents are for models that read one sequence of tokens")


def prepare_documents(
    bundle: LoadedBundle, documents: Iterable[Document], *, output: str, truncate: bool
) -> Iterator[Prepared]:
    """What each document is for ``bundle``, in order.

    Args:
        bundle: What runs.
        documents: Read one at a time, tokenised many at a time.
        output: What is computed, for what it takes of memory.
        truncate: Cut what is longer than the model takes, instead of refusing it.

    Raises:
        InputError: Texts can't become tokens: the bundle has no tokenizer, or its package is not installed.
    """
    limit = next((limit.length for limit in bundle.program.limits if limit.axis == TOKENS), None)
    for together in _together(documents):
        yield from _prepared(bundle, together, output, limit, truncate=truncate)


def _together(documents: Iterable[Document]) -> Iterator[list[Document]]:
    waiting: list[Document] = []
    characters = 0
    for document in documents:
        waiting.append(document)
        characters += len(document.text or "")
        if len(waiting) == TOGETHER or characters > CHARACTERS:
            yield waiting
            waiting, characters = [], 0
    if waiting:
        yield waiting


def _prepared(
    bundle: LoadedBundle, documents: list[Document], output: str, limit: int | None, *, truncate: bool
) -> Iterator[Prepared]:
    texts = {at: document.text for at, document in enumerate(documents) if document.text is not None}
    tokens = {at: list(document.tokens) for at, document in enumerate(documents) if document.tokens is not None}
    tokenizer = bundle.tokenizer
    if texts and tokenizer is None:
        fix = "give input_ids in JSON lines"
        raise InputError(str(bundle.path), "has no tokenizer, because its source had none", fix)
    if tokenizer is not None and texts:
        tokens |= zip(texts, tokenizer.encode_batch(list(texts.values())), strict=True)
    given = {at: len(found) for at, found in tokens.items()}
    if truncate and limit is not None:
        for at in [at for at, length in given.items() if length > limit]:
            if tokenizer is not None and at in texts:  # it keeps the special tokens that stand at the end
                (tokens[at],) = tokenizer.encode_batch([texts[at]], limit)
            else:
                tokens[at] = tokens[at][:limit]
    for at, document in enumerate(documents):
        if at not in tokens:
            yield Prepared(document.name, None, error=document.error)
        else:
            yield _checked(bundle, document.name, tokens[at], given[at], output)


def _checked(bundle: LoadedBundle, name: str | int, tokens: list[int], given: int, output: str) -> Prepared:
    """What a run would refuse is found here, where it stops no other document."""
    try:
        request = read_inputs(bundle.program, np.asarray(tokens, np.int64), output=output).requests[0]
        check_limit(bundle.program, request.lengths)
        if bundle.memory_limit is not None:
            bundle.spill_plan(bundle.schedule(request.lengths, output))
    except InputError as error:
        return Prepared(name, None, given, error=f"{error.where}: {error.problem}")
    return Prepared(name, request, given)
