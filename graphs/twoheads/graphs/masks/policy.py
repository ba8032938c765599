"""Attention policies: what a user may impose on a model whose layers see everything before (or around) a query.

A policy is the answer to ``--attention``. All but ``full`` are approximations and are recorded as such:

* ``full``: the model as it is;
* ``window:1024``: a query sees itself and the 1023 keys before it (in a bidirectional model also the 1023 after it);
* ``window:1024+sinks:4``: and the first 4 keys (attention sinks, Theorem 5.1);
* ``average:samples=2+window:512+sinks:4+seed:7``: the keys outside of the diagonal tile (and of the window and the
  sinks, where given) are estimated from 2 tiles of randomly drawn ones (Theorem 4.1).

Text and policy convert into each other: ``str(policy)`` and :func:`parse_policy`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from twoheads.graphs.errors import CompileError
from twoheads.graphs.masks.expressions import And, Causal, Chunk, Full, Mask, Or, Sinks, Window, disjunction

__all__ = ["Policy", "parse_policy", "restrict"]

_LARGEST = 1 << 40
_ENDLESS = 1 << 62


@dataclass(frozen=True, slots=True)
class Policy:
    """See the module's docstring.

    Attributes:
        window: Keys that a query sees, itself included, on each side that it sees at all; ``None`` for no bound.
        sinks: First keys that every query sees.
        samples: Key tiles drawn at random for each query block; 0 where nothing is drawn.
        seed: Of the draws.
    """

    window: int | None = None
    sinks: int = 0
    samples: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.window is not None and not 1 <= self.window <= _LARGEST:
            raise _refusal(self, f"a window of {self.window}", "give a window of 1 token or more")
        if not 0 <= self.sinks <= _LARGEST:
            raise _refusal(self, f"{self.sinks} sinks", "give 1 sink token or more, or leave the sinks out")
        if not 0 <= self.samples <= 1 << 16:
            raise _refusal(self, f"{self.samples} samples", "give 1 to 65536 samples")
        if not 0 <= self.seed < 1 << 32:
            raise _refusal(self, f"a seed of {self.seed}", "give a seed from 0 to 4294967295")
        if self.sinks and self.window is None and not self.samples:
            raise _refusal(self, "sinks without a window: every query sees them already", "add window:W")
        if self.seed and not self.samples:
            raise _refusal(self, "a seed, but nothing is drawn at random", "leave it out, or ask for average:samples=N")

    @property
    def exact(self) -> bool:
        """Whether the model stays as it is."""
        return self.window is None and not self.samples

    def __str__(self) -> str:
        terms = [f"average:samples={self.samples}"] if self.samples else []
        terms += [f"window:{self.window}"] if self.window is not None else []
        terms += [f"sinks:{self.sinks}"] if self.sinks else []
        terms += [f"seed:{self.seed}"] if self.seed else []
        return "+".join(terms) or "full"


def _refusal(policy: Policy, problem: str, fix: str) -> CompileError:
    return CompileError(f"--attention {policy}", f"has {problem}", fix)


def parse_policy(text: str) -> Policy:
    """Reads a policy, e.g. ``window:1024+sinks:4``.

    Raises:
        CompileError: The text is no policy, a term is given twice, or a number is out of range.
    """
    words = text.strip().split("+")
    if words == ["full"]:
        return Policy()
    numbers: dict[str, int] = {}
    for word in words:
        found = re.fullmatch(r"(?:(window|sinks|seed):|(average):samples=)([0-9]{1,15})", word.strip())
        if found is None:
            raise _no_policy(text, f"{word.strip()!r} is no term of an attention policy")
        name = "samples" if found[2] else str(found[1])
        if name in numbers:
            raise _no_policy(text, f"{name} is given twice")
        if not int(found[3]) and name != "seed":
            raise _no_policy(text, f"{word.strip()!r} is zero")
        numbers[name] = int(found[3])
    return Policy(**numbers)


def _no_policy(text: str, problem: str) -> CompileError:
    return CompileError(
        f"--attention {text}",
        problem,
        "give full, window:W, window:W+sinks:S, or average:samples=N with +window:W, +sinks:S, +seed:K as wanted",
    )


def restrict(mask: Mask, policy: Policy) -> Mask:
    """The mask of a layer under a window policy: what both allow; ``mask`` itself where that changes nothing.

    A layer that is narrower already stays as it is, and one with a wider window of its own gets the narrower one: no
    policy shows what the model itself hides. ``window:W`` means ``window(W - 1, 0)``, as the Hugging Face
    ``sliding_window`` does; in a layer that sees ahead ``window(W - 1, W - 1)``.
    """
    if policy.window is None or policy.samples:
        return mask
    left, right = _reach(mask)
    side = policy.window - 1
    if left <= side and right <= side:
        return mask
    near: tuple[Mask, ...] = (Window(side, 0 if right == 0 else side),)
    return mask & disjunction((*near, Sinks(policy.sinks)) if policy.sinks else near)


def _reach(mask: Mask) -> tuple[int, int]:
    """How many keys before and after itself a query may see, at most."""
    match mask:
        case Causal():
            return _ENDLESS, 0
        case Window(left, right):
            return left if left >= 0 else _ENDLESS, right if right >= 0 else _ENDLESS
        case Chunk(size):
            return size - 1, size - 1
        case And(terms):
            sides = [_reach(term) for term in terms]
            return min(side[0] for side in sides), min(side[1] for side in sides)
        case Or(terms):
            sides = [_reach(term) for term in terms]
            return max(side[0] for side in sides), max(side[1] for side in sides)
        case Full() | _:
            return _ENDLESS, _ENDLESS
