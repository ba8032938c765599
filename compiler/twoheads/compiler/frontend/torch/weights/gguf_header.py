"""The header of a GGUF file, for the model's configuration: without the tokenizer's long lists, which take seconds.

The library that maps a header to a configuration reads every token of the vocabulary one by one. It is given a file
with the same entries and the same tensors, whose lists of the tokenizer are cut to two entries.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from twoheads.graphs.errors import CompileError
from twoheads.graphs.scratch import scratch_folder

__all__ = [
    "GgufFacts",
    "GgufTensor",
    "LeanGguf",
    "Said",
    "check_gguf",
    "gguf_config",
    "gguf_config_digest",
    "gguf_facts",
    "lean_gguf",
]

TOKENIZER, TOKENS = b"tokenizer.", b"tokenizer.ggml.tokens"
LAYERS, FEW_LAYERS = b".block_count", 32
"""The entry that says how many layers there are, and a number that is no burden, whatever the file holds."""

CUT = 2
"""Entries that are left of a list; the library takes a list of one for no list."""

MOST_DIMENSIONS = 8
"""Of a tensor; the library has 4."""

UNREAD = {
    "qwen2moe.expert_feed_forward_length": "moe_intermediate_size",
    "qwen2moe.expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "qwen3moe.expert_feed_forward_length": "moe_intermediate_size",
}
"""What the library does not read, and calls so in its configurations: it would take one model's widths for all."""

FOLDER = "compile the model's Hugging Face folder"

NOT_READ = {
    "deci": "is a DeciLM, whose code transformers does not have",
    "gpt-oss": "is a gpt-oss, of which transformers reads neither experts nor rotary positions from such a file",
    "t5": "is an encoder-decoder, and a GGUF file is read as a decoder",
    "t5encoder": "is an encoder, and a GGUF file is read as a decoder",
}
"""What stands against files of an architecture that the library lists."""

LLAMA_EXPERTS = "llama.expert_count"
"""Of a Mixtral, which is called a Llama."""

FALCON_KEYS = "falcon.attention.head_count_kv"
"""Heads of keys: the library reads a Falcon of one."""

GEMMA, GEMMA_KEYS, POSITIONS = "gemma4", "gemma4.attention.head_count_kv", "rope_freqs.weight"
"""Gemma 4: published files list heads of keys by layer, or have a tensor of what positions are divided by."""

MOST_LISTED = 1 << 10
"""Entries of a list that is read: one for each layer."""

Said: TypeAlias = "int | float | str | tuple[int, ...] | None"
"""The value of an entry."""

STRING, ARRAY = 8, 9
FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
"""How a value is packed, by the number of its type."""

SIZES = {kind: struct.calcsize(layout) for kind, layout in FORMATS.items()}
"""Its bytes."""


def gguf_config(path: Path) -> Any:
    """The transformers configuration of the model in a GGUF file; what weighs is not read.

    Raises:
        ValueError, KeyError, struct.error: The header is damaged, or of a kind that is not read here.
    """
    from transformers import AutoConfig

    with lean_gguf(path) as lean:
        file = lean.path
        options = {"gguf_file": file.name, "local_files_only": True, "trust_remote_code": False, **lean.unread}
        config: Any = AutoConfig.from_pretrained(file.parent, **options)
        # Where the header has no size of the vocabulary, the library counts the tokens.
        return (
            AutoConfig.from_pretrained(file.parent, vocab_size=lean.tokens, **options) if _counted(config) else config
        )


def gguf_config_digest(path: Path) -> str:
    """The sha256 of all that :func:`gguf_config` may read; needs none of the libraries.

    Raises:
        OSError, ValueError, KeyError, struct.error: It can't be read, or its header is damaged or of another kind.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        parts, tokens = _Header(data).cut()
        found = hashlib.sha256(f"{tokens} {len(data)} ".encode())
    for part in parts:
        found.update(part)
    return found.hexdigest()


def check_gguf(path: Path) -> None:
    """Refuses a file whose header says more than the file holds: the library would read it entry by entry for ever.

    Needs none of the libraries.

    Raises:
        CompileError: It is cut or damaged, of a kind that is not read here, or one that the library misreads.
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise CompileError(str(path), "is not a GGUF file: its first bytes are not 'GGUF'", "download it again")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        header = _Header(data)
        try:
            header.cut()
        except (ValueError, KeyError, struct.error) as error:
            problem = f"has a header that is damaged: {error!s:.100}"
            raise CompileError(str(path), problem, "download it again") from None
    if (misread := _misread(header.entries, header.tensors)) is not None:
        raise CompileError(str(path), misread, FOLDER)


def _misread(entries: Mapping[str, Said], tensors: Mapping[str, GgufTensor]) -> str | None:
    """What the library takes for something else in a file of these entries and tensors, or can't read."""
    architecture = str(entries.get("general.architecture"))
    if architecture == GEMMA and (POSITIONS in tensors or isinstance(entries.get(GEMMA_KEYS), tuple)):
        return "is a Gemma 4, of which transformers reads neither rotary positions nor heads by layer from such a file"
    if entries.get(LLAMA_EXPERTS):
        return f"mixes {entries[LLAMA_EXPERTS]} experts, and transformers reads a dense Llama from such a file"
    if entries.get(FALCON_KEYS, 1) != 1:
        return f"has {entries[FALCON_KEYS]} heads of keys, and transformers reads a Falcon of one from such a file"
    return NOT_READ.get(architecture)


def _counted(config: Any) -> bool:
    return getattr(config.get_text_config(), "vocab_size", None) == CUT


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """What a header says of a tensor.

    Attributes:
        dimensions: How many it has.
        kind: The number of its type, as in GGML: 0 is float32, 12 is Q4_K.
        offset: Where its bytes begin, from where all tensors begin.
    """

    dimensions: int
    kind: int
    offset: int


@dataclass(frozen=True, slots=True)
class GgufFacts:
    """What a header says of a model.

    Attributes:
        entries: Numbers, texts and short lists of whole numbers or of yes and no by key; ``None`` for other lists.
        tokens: Of the tokenizer's vocabulary; 0 where there is none.
        tensors: By name.
        begin: Where the tensors' bytes begin.
    """

    entries: Mapping[str, Said]
    tokens: int
    tensors: Mapping[str, GgufTensor]
    begin: int


def gguf_facts(path: Path) -> GgufFacts:
    """What the header of ``path`` says; needs none of the libraries.

    Raises:
        OSError, ValueError, KeyError, struct.error: It can't be read, or its header is damaged or of another kind.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        header = _Header(data)
        _, tokens = header.cut()
        return GgufFacts(header.entries, tokens, header.tensors, header.begin)


@dataclass(frozen=True, slots=True)
class LeanGguf:
    """A GGUF file without the tokenizer's long lists.

    Attributes:
        path: The file; what its tensors hold is a hole in it.
        tokens: How many tokens the whole list has.
        unread: What the library leaves out and its configurations hold, by their names.
        header_bytes: Of the original's header: its tensors begin at the next multiple of its alignment.
    """

    path: Path
    tokens: int
    unread: Mapping[str, Any]
    header_bytes: int


@contextmanager
def lean_gguf(path: Path) -> Generator[LeanGguf]:
    """The header of ``path`` as a file of its own, of the same size, its lists of strings cut.

    Raises:
        ValueError, KeyError, struct.error: The header is damaged, or of a kind that is not read here.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        header = _Header(data)
        parts, tokens = header.cut()
        with scratch_folder() as folder:
            lean = folder / "model.gguf"
            with lean.open("wb") as out:
                out.writelines(parts)
                out.truncate(len(data))
            unread = {name: header.entries[entry] for entry, name in UNREAD.items() if entry in header.entries}
            yield LeanGguf(lean, tokens, unread, header.at)


@dataclass
class _Header:
    """Walks over a GGUF file of version 2 or 3, little-endian."""

    data: mmap.mmap
    at: int = 0
    entries: dict[str, Said] = field(default_factory=dict[str, Said])
    tensors: dict[str, GgufTensor] = field(default_factory=dict[str, GgufTensor])

    def cut(self) -> tuple[list[bytes], int]:
        """The bytes up to the tensors' contents, with cut lists; and how many tokens there were."""
        magic, version, tensors, entries = self._take("<4sIQQ")
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError(f"a header of GGUF version {version} is not read here")
        parts, tokens = [self.data[: self.at]], 0
        for _ in range(entries):
            start = self.at
            key = self._string()
            (kind,) = self._take("<I")
            if kind == ARRAY and key.startswith(TOKENIZER):
                parts.append(self.data[start : self.at])
                count, short = self._cut_list()
                parts.append(short)
                tokens = count if key == TOKENS else tokens
            else:
                self.entries[key.decode(errors="replace")] = self._value(kind)
                parts.append(self.data[start : self.at])
                if key.endswith(LAYERS) and kind in SIZES:
                    self._check_layers(SIZES[kind], tensors)
        start = self.at
        for _ in range(tensors):
            name = self._string().decode(errors="replace")
            (dimensions,) = self._take("<I")
            if dimensions > MOST_DIMENSIONS:
                raise ValueError(f"a tensor of {dimensions} dimensions")
            self._move(8 * dimensions)  # its sizes
            self.tensors[name] = GgufTensor(dimensions, *self._take("<IQ"))
        return [*parts, self.data[start : self.at]], tokens

    @property
    def begin(self) -> int:
        """Where the tensors' bytes begin, once the header was walked over."""
        alignment = self.entries.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"an alignment of {alignment}")
        return -(-self.at // alignment) * alignment

    def _check_layers(self, nbytes: int, tensors: int) -> None:
        """The number that was read last is of layers, each of which has tensors."""
        layers = int.from_bytes(self.data[self.at - nbytes : self.at], "little")
        if layers > max(tensors, FEW_LAYERS):
            raise ValueError(f"{layers} layers, made of {tensors} tensors")

    def _cut_list(self) -> tuple[int, bytes]:
        """The length of the list that comes here, and its bytes cut."""
        kind, count = self._take("<IQ")
        start = self.at
        self._skip_items(kind, min(count, CUT))
        short = struct.pack("<IQ", kind, min(count, CUT)) + self.data[start : self.at]
        self._skip_items(kind, count - min(count, CUT))
        return count, short

    def _value(self, kind: int) -> Said:
        """The value that comes here, passed over; ``None`` for a list, unless it is short and not of fractions."""
        if kind == ARRAY:
            items, count = self._take("<IQ")
            if FORMATS.get(items, "<f")[1] in "fd" or count > MOST_LISTED:
                self._skip_items(items, count)
                return None
            return tuple(self._take(FORMATS[items])[0] for _ in range(count))
        if kind == STRING:
            return self._string().decode(errors="replace")
        value: int | float = self._take(FORMATS[kind])[0]
        return value

    def _skip_items(self, kind: int, count: int) -> None:
        if kind != STRING:
            self._move(SIZES[kind] * count)
            return
        unpack, data, at = struct.Struct("<Q").unpack_from, self.data, self.at
        for _ in range(count):  # of a large vocabulary, half a million times
            at += 8 + unpack(data, at)[0]
        self._move(at - self.at)

    def _string(self) -> bytes:
        (size,) = self._take("<Q")
        self._move(size)
        return self.data[self.at - size : self.at]

    def _move(self, nbytes: int) -> None:
        self.at += nbytes
        if self.at > len(self.data):
            raise ValueError("it ends behind the file")

    def _take(self, layout: str) -> tuple[Any, ...]:
        found = struct.unpack_from(layout, self.data, self.at)
        self.at += struct.calcsize(layout)
        return found
