"""Where models come from: a Hugging Face folder, a GGUF file or a torch module, made ready for capture.

The result also knows how to run the *original* over a whole sequence, which is what ``verify`` compares with.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from twoheads.compiler.frontend.torch.impose_attention import Imposition
from twoheads.compiler.frontend.torch.source_inputs import SourceInput, attention_layers, hugging_face_inputs
from twoheads.graphs.errors import CompileError
from twoheads.graphs.program.program import Pooling
from twoheads.graphs.serialization.bundle_format import SourceIdentity

__all__ = ["LoadedSource", "load_source"]

logger = logging.getLogger(__name__)

SMALL = 1 << 16
"""Entries of a tensor that a plan may fill with random numbers."""


@dataclass(frozen=True, slots=True)
class LoadedSource:
    """A model ready to be captured, and its original behaviour.

    Attributes:
        identity: What it is.
        module: The model itself, in evaluation mode.
        inputs: Arguments by name.
        hugging_face: Whether ``module`` is a transformers model (attention is captured through its hooks).
        layers: Number of attention layers the configuration promises; 0 if unknown.
        missing_weights: Names of weights that the source lacks.
        trained_length: Context length it was trained on, or ``None``.
        pooling: How an embedding is made of hidden states, or ``None``.
        tokenizer_json: A `tokenizers` file's contents, or ``None``.
    """

    identity: SourceIdentity
    module: nn.Module
    inputs: Mapping[str, SourceInput]
    hugging_face: bool
    layers: int
    missing_weights: frozenset[str]
    trained_length: int | None
    pooling: Pooling | None
    tokenizer_json: bytes | None

    def hidden_and_logits(
        self,
        given: Tensor | Mapping[str, Tensor],
        positions: Tensor | None = None,
        implementation: str = "fused",
        imposition: Imposition | None = None,
        cut: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Runs the original over a whole sequence.

        Args:
            given: Arguments by name, each of batch 1; or the first alone, e.g. int64 ``[1, n]``.
            positions: int64 ``[p]``: where logits are wanted; everywhere by default. A pooled head has no positions.
            implementation: ``fused`` (torch's own attention kernels) or ``plain`` (matrix products and a softmax).
            imposition: Terms added to the scores of each attention, e.g. to hide keys; for one run.
            cut: Every matrix product is the sum of two, the first of the ``cut``-th part of its inner dimension.

        Returns:
            Last hidden states ``[n, width]`` and logits: ``[p, classes]``, ``[1, classes]`` of a pooled head, ``None``
            without a head.
        """
        from twoheads.compiler.original.torch_original import run_original

        named = given if isinstance(given, Mapping) else {next(iter(self.inputs)): given}
        return run_original(self, named, positions, implementation, imposition, cut)


def load_source(
    source: str | Path | nn.Module,
    *,
    example_inputs: Mapping[str, Tensor] | tuple[Tensor, ...] | None = None,
    weights: bool = True,
) -> LoadedSource:
    """Loads a model.

    Args:
        source: A Hugging Face folder, a ``.gguf`` file, or a torch module.
        example_inputs: For a torch module that is not a transformers model: its tensor arguments, by position or
            name, of batch 1 with tokens on axis 1, or images ``[1, channels, rows, columns]`` of the only size.
        weights: Load the weights; without them the module has shapes only (``plan``).

    Raises:
        CompileError: It is no model, not supported, or incomplete.
    """
    if isinstance(source, nn.Module):
        return _from_module(source, example_inputs)
    path = Path(source)
    if not path.exists():
        raise CompileError(
            str(path), "there is no such file or folder", "give a model folder, a .gguf file or an .onnx file"
        )
    if path.is_dir():
        return _from_folder(path, weights=weights)
    if path.suffix == ".gguf":
        return _from_gguf(path, weights=weights)
    raise CompileError(
        str(path),
        f"a {path.suffix or 'file without suffix'} is not a model this version reads",
        "give a Hugging Face folder (config.json and safetensors), a .gguf file or an .onnx file",
    )


def _from_folder(path: Path, *, weights: bool) -> LoadedSource:
    from transformers import AutoConfig

    if not (path / "config.json").is_file():
        raise CompileError(
            str(path), "is not a model folder: it has no config.json", "give a Hugging Face model folder"
        )
    config = _quietly(str(path), lambda: AutoConfig.from_pretrained(path, local_files_only=True))
    model_class = _model_class(config, str(path))
    if not weights:
        module, missing = _without_weights(model_class, config), frozenset[str]()
    else:
        if not any(path.glob("*.safetensors")) and not any(path.glob("pytorch_model*.bin")):
            raise CompileError(str(path), "has no weights (*.safetensors)", "download the complete model folder")
        module, missing = _load_weights(model_class, path, str(path))
    pooling = _folder_pooling(path, module)
    tokenizer = _folder_tokenizer(path) if weights else None
    return _hugging_face(path.resolve().name, "folder", module, missing, pooling, tokenizer)


def _from_gguf(path: Path, *, weights: bool) -> LoadedSource:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise CompileError(str(path), "is not a GGUF file: its first bytes are not 'GGUF'", "download it again")
    where, options = str(path), {"gguf_file": path.name, "local_files_only": True}
    if not weights:
        config = _quietly(where, lambda: AutoConfig.from_pretrained(path.parent, **options))
        module = _quietly(where, lambda: _without_weights(AutoModelForCausalLM, config))
        return _hugging_face(path.stem, "gguf", module, frozenset(), None, None)
    module, missing = _load_weights(AutoModelForCausalLM, path.parent, where, gguf_file=path.name)
    tokenizer = _quietly(where, lambda: AutoTokenizer.from_pretrained(path.parent, **options))
    return _hugging_face(path.stem, "gguf", module, missing, None, _tokenizer_bytes(tokenizer))


def _quietly(where: str, action: Any) -> Any:
    """Runs a transformers call and turns its many exceptions into one clear error."""
    try:
        return action()
    except CompileError:
        raise
    except Exception as error:
        message = " ".join(str(error).split())[:300] or type(error).__name__
        raise CompileError(where, f"transformers can't read it: {message}", "check the model folder or file") from error


def _model_class(config: Any, where: str) -> Any:
    import transformers

    names = getattr(config, "architectures", None) or []
    if not names:
        return transformers.AutoModel
    name = names[0]
    model_class = getattr(transformers, name, None)
    if model_class is None:
        raise CompileError(
            where, f"architecture {name} is not known to transformers {transformers.__version__}", "update transformers"
        )
    return model_class


def _without_weights(model_class: Any, config: Any) -> nn.Module:
    """The model with unset weights: reserved, never touched, so they cost no memory.

    (On torch's meta device some models compute other graphs or none.) Small tensors get numbers, because a table of
    attention biases is recognised by its values.
    """
    from transformers.initialization import no_init_weights

    build = model_class.from_config if hasattr(model_class, "from_config") else model_class
    with no_init_weights():
        module: Any = build(config).eval()
    module.tie_weights()
    for parameter in module.parameters():
        if parameter.numel() <= SMALL:
            nn.init.normal_(parameter)
    return cast("nn.Module", module)


def _load_weights(model_class: Any, folder: Path, where: str, **options: Any) -> tuple[nn.Module, frozenset[str]]:
    module, info = _quietly(
        where,
        lambda: model_class.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True, **options
        ),
    )
    return cast("nn.Module", module).eval(), frozenset(info["missing_keys"])


def _hugging_face(
    name: str, form: str, module: nn.Module, missing: frozenset[str], pooling: Pooling | None, tokenizer: bytes | None
) -> LoadedSource:
    text_config = cast("Any", module).config.get_text_config()
    inputs = hugging_face_inputs(name, module)
    return LoadedSource(
        identity=_identity(name, form, module, _stable_config(text_config)),
        module=module,
        inputs=inputs,
        hugging_face=True,
        layers=attention_layers(module, inputs),
        missing_weights=missing,
        trained_length=getattr(text_config, "max_position_embeddings", None),
        pooling=pooling,
        tokenizer_json=tokenizer,
    )


def _from_module(module: nn.Module, example_inputs: Mapping[str, Tensor] | tuple[Tensor, ...] | None) -> LoadedSource:
    from transformers import PreTrainedModel

    module = module.eval()
    if isinstance(module, PreTrainedModel) and example_inputs is None:
        name = type(module).__name__
        return _hugging_face(name, "module", module, frozenset(), _default_pooling(module), None)
    if not example_inputs:
        raise CompileError(
            type(module).__name__,
            "a torch module needs example inputs to be captured",
            "pass example_inputs=(tensor, ...), each [1, tokens, ...]",
        )
    if not isinstance(example_inputs, Mapping):
        names = list(inspect.signature(module.forward).parameters)
        example_inputs = dict(zip(names, example_inputs, strict=False))
    for name, example in example_inputs.items():
        if example.ndim not in (2, 3, 4) or example.shape[0] != 1 or example.shape[1] < 3:
            raise CompileError(
                f"example input {name!r}",
                f"has shape {list(example.shape)}",
                "give [1, tokens] or [1, tokens, features], 3 tokens or more, or an image [1, channels, rows, columns]",
            )
    inputs = {
        name: SourceInput(example, None if example.ndim == 4 else 1, "argument")
        for name, example in example_inputs.items()
    }
    identity = _identity(type(module).__name__, "module", module, {})
    return LoadedSource(identity, module, inputs, False, 0, frozenset(), None, None, None)


def _stable_config(config: Any) -> dict[str, Any]:
    """The configuration without what changes from one copy of a model to the next."""
    volatile = (
        "_",
        "transformers_version",
        "dtype",
        "torch_dtype",
        "quantization_config",
        "architectures",
        "use_cache",
    )
    entries = cast("dict[str, Any]", config.to_dict())
    return {key: value for key, value in entries.items() if not key.startswith(volatile)}


def _identity(name: str, form: str, module: nn.Module, config: dict[str, Any]) -> SourceIdentity:
    shapes = {key: list(tensor.shape) for key, tensor in module.named_parameters()}
    text = json.dumps([type(module).__name__, config, shapes], sort_keys=True, default=str)
    return SourceIdentity(name, form, type(module).__name__, hashlib.sha256(text.encode()).hexdigest())


def _default_pooling(module: nn.Module) -> Pooling | None:
    """Mean pooling for a bidirectional model without a head, as sentence-transformers assumes for a bare encoder."""
    model = cast("Any", module)
    bare = model.base_model is module and model.main_input_name == "input_ids" and not model.config.is_encoder_decoder
    causal = any(getattr(part, "is_causal", False) for part in module.modules())
    return Pooling("mean", normalize=False) if bare and not causal else None


def _folder_pooling(path: Path, module: nn.Module) -> Pooling | None:
    """Reads a sentence-transformers folder's ``modules.json``; falls back on :func:`_default_pooling`."""
    listing = path / "modules.json"
    default = _default_pooling(module)
    if not listing.is_file() or default is None:
        return default
    modules = json.loads(listing.read_text(encoding="utf8"))
    kinds = {entry["type"].rsplit(".", 1)[-1]: entry["path"] for entry in modules}
    unknown = kinds.keys() - {"Transformer", "Pooling", "Normalize"}
    if unknown or "Pooling" not in kinds:
        raise CompileError(
            str(listing),
            f"sentence-embedding stages {sorted(kinds)} are not supported",
            "only Transformer, Pooling and Normalize are; remove modules.json to compile the bare encoder",
        )
    settings = json.loads((path / kinds["Pooling"] / "config.json").read_text(encoding="utf8"))
    modes = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "last"}
    chosen = [key for key, value in settings.items() if key.startswith("pooling_mode_") and value is True]
    if len(chosen) != 1 or chosen[0] not in modes:
        raise CompileError(
            str(path / kinds["Pooling"]), f"pooling {chosen} is not supported", "mean, cls and last-token pooling are"
        )
    return Pooling(modes[chosen[0]], normalize="Normalize" in kinds)


def _folder_tokenizer(path: Path) -> bytes | None:
    ready = path / "tokenizer.json"
    if ready.is_file():
        return ready.read_bytes()
    from transformers import AutoTokenizer

    try:
        return _tokenizer_bytes(AutoTokenizer.from_pretrained(path, local_files_only=True))
    except Exception as error:  # noqa: BLE001 - a model without a tokenizer is fine, and the library raises many types
        logger.info("%s has no tokenizer: %s", path, error)
        return None


def _tokenizer_bytes(tokenizer: Any) -> bytes | None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return cast("str", backend.to_str()).encode() if backend is not None else None
