"""A Mamba of known sizes as a block program, layer by layer, named as a capture names it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from twoheads.compiler.known.tokenwise_regions import Body, Regions
from twoheads.graphs.program.engines.port import Port
from twoheads.graphs.program.engines.scan import ScanEngine, scan_chunk
from twoheads.graphs.program.program import TOKENS, Engine, Input, Program
from twoheads.graphs.program.stages import ScanStage, Value

__all__ = ["Mamba"]

TABLE = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class Mamba:
    """A Mamba: its sizes, and its program.

    A layer is a region, a convolution of a few tokens, a region, and a scan; the next layer's region begins with what
    is behind the scan.

    Attributes:
        block: Tokens of a block.
        layers, context, hidden, inner, states, rank, taps, vocabulary: Its sizes; ``inner`` is the width of the scan,
            ``states`` the numbers of each of its channels, ``rank`` the width from which time steps are made, ``taps``
            the tokens of a convolution.
        tied: The head's table is the tokens'.
    """

    block: int
    layers: int
    context: int
    hidden: int
    inner: int
    states: int
    rank: int
    taps: int
    vocabulary: int
    tied: bool

    def program(self, name: str, tile: int) -> Program:
        """All of it.

        Args:
            name: The source's.
            tile: Tokens of a key tile.
        """
        ids = Value("input_ids", "int64", (1, TOKENS))
        body = Body(Regions(self.block))
        last = self._body(body, ids)
        logits = self._rows("logits", self.vocabulary)
        table = Port(TABLE, "float32", (self.vocabulary, self.hidden))
        head = body.regions.add("head", "head", [last], [logits], [table])
        engines: tuple[Engine, ...] = (*body.regions.engines.values(), *self._scans())
        inputs, stages = (Input(ids, "argument", self.vocabulary),), tuple(body.stages)
        return Program(
            name, self.block, tile, inputs, engines, stages, (head,), "hidden", "logits", None, None, self.context
        )

    def _body(self, body: Body, ids: Value) -> Value:
        """Adds all stages of the body; the last hidden states."""
        reads: Sequence[Value] = [ids]
        table = TABLE if self.tied else "backbone.embeddings.weight"
        weights = [Port(table, "float32", (self.vocabulary, self.hidden))]
        for layer in range(self.layers):
            region = body.next
            rows = self._rows(f"{region}.add_{4 * layer - 1}" if layer else f"{region}.embedding", self.hidden)
            convolved = self._rows(f"{region}.transpose_{14 * layer + 1}", self.inner)
            gate = self._columns(f"{region}.silu_{2 * layer + 1}")
            before = [self._weight(layer, "norm", self.hidden)]
            before += [self._weight(layer, "mixer.in_proj", 2 * self.inner, self.hidden)]
            role = "rest" if layer else "first"
            body.region(role, reads, [rows, convolved, gate], [*weights, *before], looked_up=0 if layer else 1)
            scanned, beside = self._scanned(body, layer, convolved)
            reads = [rows, scanned, beside, gate]
            weights = [self._weight(layer, "mixer.out_proj", self.hidden, self.inner)]
        last = self._rows("hidden", self.hidden)
        body.region("last", reads, [last], [*weights, Port("backbone.norm_f.weight", "float32", (self.hidden,))])
        return last

    def _scanned(self, body: Body, layer: int, operand: Value) -> tuple[Value, Value]:
        """Adds a layer's convolution of ``operand``, region and scan; what the scan gives, and what is added to it."""
        start, again = f"backbone.layers.{layer}.mixer.", f"_{layer}" if layer else ""
        conv = self._rows(f"{start}causal_conv", self.inner)
        taps = (f"{start}conv1d.weight.squeeze{again}", f"{start}conv1d.bias")
        body.stages.append(ScanStage(conv.name, "scan_0", (operand.name,), conv, taps))
        widths = (self.inner, self.inner, self.states, self.states)
        operands = [self._rows(f"{body.next}.to_{15 * layer + 10 + at}", width) for at, width in enumerate(widths)]
        beside = self._columns(f"{body.next}.mul_{4 * layer + 2}")
        weights = [
            self._weight(layer, "mixer.x_proj", self.rank + 2 * self.states, self.inner),
            self._weight(layer, "mixer.dt_proj", self.inner, self.rank),
            Port(f"{start}dt_proj.bias", "float32", (self.inner,)),
            Port(f"{start}D", "float32", (self.inner,)),
        ]
        body.region("scan", [conv], [*operands, beside], weights)
        scanned = self._rows(f"{start}selective_scan", self.inner)
        names = tuple(value.name for value in operands)
        body.stages.append(ScanStage(scanned.name, "scan_1", names, scanned, (f"{start}A_log.neg{again}",)))
        return scanned, beside

    def _scans(self) -> list[ScanEngine]:
        """The engines of convolutions and of scans."""
        sizes = {
            "causal_conv": (("bias", 1), ("channels", self.inner), ("kernel", self.taps)),
            "selective_scan": (("states", self.states), ("width", self.inner)),
        }
        return [
            ScanEngine(f"scan_{at}", operator, sized, self.block, scan_chunk(operator, self.block))
            for at, (operator, sized) in enumerate(sizes.items())
        ]

    def _weight(self, layer: int, name: str, *shape: int) -> Port:
        return Port(f"backbone.layers.{layer}.{name}.weight", "float32", shape)

    def _rows(self, name: str, width: int) -> Value:
        return Value(name, "float32", (1, TOKENS, width))

    def _columns(self, name: str) -> Value:
        return Value(name, "float32", (1, self.inner, TOKENS))
