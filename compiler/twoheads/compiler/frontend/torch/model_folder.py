"""A Hugging Face folder as data from anybody: its configuration is checked before any library looks at it.

A folder may bring code of its own, name kernels to be fetched and run, and say that its weights lie elsewhere. None of
these happens unless the caller has said that the folder is trusted; each is refused by name.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, cast

from twoheads.graphs.errors import CompileError
from twoheads.graphs.serialization.read_json import LARGEST, read_json

__all__ = [
    "CONFIG",
    "image_size_of",
    "model_class_of",
    "never_asking",
    "read_folder_json",
    "read_model_config",
    "require_below",
]

logger = logging.getLogger(__name__)

CONFIG = "config.json"

PROCESSOR = "preprocessor_config.json"

INDEXES = "*.index.json"
"""Files that say in which file each weight lies."""

LARGEST_INDEX = 4 * LARGEST

ADAPTER = "adapter_config.json"

LAYERS = ("layer", "layers")
"""How fields end that count layers: ``num_hidden_layers``, ``encoder_layers``, ``n_layer``."""

MOST_LAYERS = 2000
"""Of one kind; the library makes a module of each before it looks whether there are weights for it."""

OWN_KERNELS = ("eager", "sdpa", "flex_attention", "grouped_mm", "batched_mm")
"""Ways to compute attention and experts that are part of the library; others are fetched by name, or not there."""

TRUST = "read that code; if you trust who wrote it, --trust-remote-code (trust_remote_code=True) runs it as you"

DOWNLOAD = "download the complete model folder again"


def read_model_config(folder: Path, *, trust_remote_code: bool) -> dict[str, Any]:
    """The configuration of a model folder.

    Raises:
        CompileError: It is none, or asks for code, kernels or weights from elsewhere; names the entry.
    """
    path = folder / CONFIG
    _refuse_odd_files(folder)
    if not path.is_file():
        problem = f"is not a model folder: it has no {CONFIG}"
        files = sorted(file for file in folder.iterdir() if file.suffix in (".gguf", ".onnx"))
        raise CompileError(str(folder), problem, f"name {files[0]}" if files else "give a Hugging Face model folder")
    config = read_folder_json(path)
    if not isinstance(config, dict):
        raise CompileError(str(path), "is no JSON object", DOWNLOAD)
    entries = cast("dict[str, Any]", config)
    _check_fields(path, entries)
    _refuse_kernels(path, entries)
    if not trust_remote_code:
        _refuse_code(path, entries)
    _refuse_weights_elsewhere(folder)
    return entries


def _refuse_odd_files(folder: Path) -> None:
    """Refuses pipes and devices, at which a library would wait for ever."""
    odd = [path for path in sorted(folder.iterdir()) if path.exists() and not (path.is_file() or path.is_dir())]
    if odd:
        raise CompileError(str(odd[0]), "is neither a file nor a folder", DOWNLOAD)


def read_folder_json(path: Path, largest: int = LARGEST) -> Any:
    """What a JSON file of a model folder holds.

    Raises:
        CompileError: It can't be read.
    """
    return read_json(path, fix=DOWNLOAD, error=CompileError, largest=largest)


def require_below(folder: Path, name: Any, where: Path) -> Path:
    """The path of ``name``, which a file of the folder says.

    Raises:
        CompileError: It is no plain relative path below the folder.
    """
    plain = isinstance(name, str) and "\\" not in name and "\0" not in name
    path = PurePosixPath(name if plain else "/")
    if path.is_absolute() or ".." in path.parts:
        raise CompileError(str(where), f"names {name!r}, which is no plain path below the folder", DOWNLOAD)
    return folder.joinpath(*path.parts)


def image_size_of(folder: Path) -> tuple[int, int] | None:
    """Height and width of the images that the folder's processor makes; ``None`` where it does not say.

    Raises:
        CompileError: Its file is damaged.
    """
    path = folder / PROCESSOR
    found = read_folder_json(path) if path.is_file() else None
    entries = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    for name in ("crop_size", "size"):
        size = entries.get(name)
        if isinstance(size, dict):
            sides = cast("dict[str, Any]", size)
            size = [sides.get(side, sides.get("shortest_edge")) for side in ("height", "width")]
        pair = (size, size) if isinstance(size, int) else tuple(cast("list[Any]", size or ()))
        if len(pair) == 2 and all(type(side) is int and side > 0 for side in pair):
            return pair
    return None


@contextmanager
def never_asking() -> Generator[None]:
    """Within it, no library asks on standard input whether a model's own code may run: it is an error instead."""
    from transformers import dynamic_module_utils

    seconds = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = seconds


def model_class_of(folder: Path, config: Mapping[str, Any], *, trust_remote_code: bool) -> Any:
    """The class that makes the model: one of the library's, or the one that reads the folder's own.

    Raises:
        CompileError: The library does not know the architecture.
    """
    import transformers

    names = config.get("architectures") or []
    if not names:
        return transformers.AutoModel
    name = names[0]
    own = [auto for auto, reference in _auto_map(config) if reference.rsplit(".", 1)[-1] == name]
    if trust_remote_code and own:
        return getattr(transformers, own[0])
    try:
        found = getattr(transformers, name, None)
    except Exception:  # noqa: BLE001 - the library imports the class's module, which may need what is not there
        found = None
    if not isinstance(found, type) or not issubclass(found, transformers.PreTrainedModel):
        raise CompileError(
            str(folder),
            f"architecture {name} is not known to transformers {transformers.__version__}",
            TRUST if own else "update transformers, or name one of its model classes",
        )
    return found


def _check_fields(path: Path, config: Mapping[str, Any]) -> None:
    names = config.get("architectures")
    if names is not None and not _is_list_of_names(names):
        raise CompileError(str(path), f"architectures is {names!r:.80}, not a list of class names", DOWNLOAD)
    kind = config.get("model_type")
    if kind is not None and not isinstance(kind, str):
        raise CompileError(str(path), f"model_type is {kind!r:.80}, not a name", DOWNLOAD)
    for name, count in _counts(config):
        if name.endswith(LAYERS) and count > MOST_LAYERS:
            raise CompileError(str(path), f"{name} is {count:.12g}, and no model has over {MOST_LAYERS}", DOWNLOAD)


def _counts(config: Mapping[str, Any]) -> Iterator[tuple[str, int | float]]:
    """The numbers of a configuration and of those within it, by name."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _counts(cast("dict[str, Any]", value))
        elif type(value) in (int, float):
            yield name, value


def _is_list_of_names(found: Any) -> bool:
    return isinstance(found, list) and all(isinstance(name, str) and name for name in found)  # pyright: ignore[reportUnknownVariableType]


def _parts(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The configuration and those within it, each with its path."""
    waiting: list[tuple[str, Mapping[str, Any]]] = [("", config)]
    while waiting:
        path, part = waiting.pop()
        yield path, part
        for name, entry in part.items():
            if isinstance(entry, dict):
                waiting.append((f"{path}{name}.", cast("dict[str, Any]", entry)))


def _refuse_kernels(path: Path, config: Mapping[str, Any]) -> None:
    for where, part in _parts(config):
        for name, entry in part.items():
            if not name.strip("_").startswith(("attn_implementation", "experts_implementation")):
                continue
            wanted = cast("dict[str, Any]", entry).values() if isinstance(entry, dict) else (entry,)
            for kernel in wanted:
                if kernel is not None and kernel not in OWN_KERNELS:
                    raise CompileError(
                        str(path),
                        f"{where}{name} asks for the kernel {kernel!r:.80}, which is code from elsewhere",
                        f"remove the entry, or set it to one of the library's own: {', '.join(OWN_KERNELS)}",
                    )


def _auto_map(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Which of the folder's classes stands for which of the library's automatic ones."""
    entries = config.get("auto_map")
    if not isinstance(entries, dict):
        return []
    return [
        (name, reference)
        for name, reference in cast("dict[str, Any]", entries).items()
        if isinstance(reference, str) and name.startswith("AutoModel")
    ]


def _refuse_code(path: Path, config: Mapping[str, Any]) -> None:
    """Refuses what can't be loaded without the folder's code; where the library has its own, that is used."""
    from transformers import CONFIG_MAPPING

    for where, part in _parts(config):
        if "auto_map" not in part or (not where and part.get("model_type") in CONFIG_MAPPING):
            continue
        named = f"{part['auto_map']!r:.160}"
        kind = part.get("model_type")
        raise CompileError(
            str(path),
            f"{where}auto_map asks to run code of the model's own ({named}); transformers has none for {kind!r:.60}",
            TRUST,
        )


def _refuse_weights_elsewhere(folder: Path) -> None:
    if (folder / ADAPTER).exists():
        raise CompileError(
            str(folder / ADAPTER),
            "makes the folder an adapter, whose weights lie in another model",
            "merge it into its model and save that, or remove the file if the folder's weights are complete",
        )
    for index in sorted(folder.glob(INDEXES)):
        content = read_folder_json(index, LARGEST_INDEX)
        files = cast("dict[str, Any]", content).get("weight_map") if isinstance(content, dict) else None
        if not isinstance(files, dict):
            raise CompileError(str(index), "does not say in which file each weight lies (weight_map)", DOWNLOAD)
        if not files:
            raise CompileError(str(index), "names no weight at all (weight_map has no entries)", DOWNLOAD)
        for name in dict.fromkeys(map(str, cast("dict[str, Any]", files).values())):
            require_below(folder, name, index)


def folder_tokenizer(path: Path, options: Mapping[str, Any]) -> bytes | None:
    """The contents of a folder's ``tokenizer.json``, made by the library where there is none; ``None`` without one.

    Args:
        path: The folder.
        options: For the library's own ``from_pretrained``.

    Raises:
        CompileError: It can't be read.
    """
    ready = path / "tokenizer.json"
    if ready.is_file():
        return _checked_tokenizer(ready)
    from transformers import AutoTokenizer

    try:
        return tokenizer_bytes(AutoTokenizer.from_pretrained(path, **options))
    except Exception as error:
        files = sorted(file.name for pattern in _TOKENIZERS for file in path.glob(pattern))
        if not files:  # a model without a tokenizer is fine
            logger.info("%s has no tokenizer: %s", path, error)
            return None
        raise CompileError(
            str(path / files[0]),
            f"is a tokenizer that can't be read: {' '.join(str(error).split())[:200]}",
            "save it as tokenizer.json, install what the message asks for (pip install sentencepiece), or remove the "
            "tokenizer's files to compile without one",
        ) from error


_TOKENIZERS = ("*.model", "vocab.*", "merges.txt", "tokenizer_config.json")
"""Files of a tokenizer that is not a ``tokenizer.json``."""


def _checked_tokenizer(path: Path) -> bytes:
    """The contents of a ``tokenizer.json`` that the `tokenizers` library reads.

    Raises:
        CompileError: It can't be read.
    """
    from tokenizers import Tokenizer

    data = path.read_bytes()
    try:
        Tokenizer.from_buffer(data)
    except Exception as error:
        fix = "download it again, or remove it to compile without a tokenizer"
        raise CompileError(str(path), f"is no tokenizer: {' '.join(str(error).split())[:200]}", fix) from error
    return data


def tokenizer_bytes(tokenizer: Any) -> bytes | None:
    """One of the library's tokenizers as a file's contents; ``None`` for one of another kind."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return cast("str", backend.to_str()).encode() if backend is not None else None
