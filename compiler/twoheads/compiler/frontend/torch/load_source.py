"""Where models come from: a Hugging Face folder, a GGUF file or a torch module, made ready for capture."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
from collections.abc import Generator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from twoheads.compiler.frontend.generation_facts import generation_facts
from twoheads.compiler.frontend.torch.hugging_face.layers.exponential_layers import rescale_once
from twoheads.compiler.frontend.torch.hugging_face.layers.sparse_layers import dense_length
from twoheads.compiler.frontend.torch.hugging_face.refused_layers import refuse_known
from twoheads.compiler.frontend.torch.model_folder import (
    folder_tokenizer,
    image_size_of,
    model_class_of,
    never_asking,
    read_model_config,
    tokenizer_bytes,
)
from twoheads.compiler.frontend.torch.source_inputs import (
    SourceInput,
    attention_layers,
    given_inputs,
    hugging_face_inputs,
)
from twoheads.compiler.frontend.torch.source_pooling import (
    default_pooling,
    embedder_of,
    first_token_encoder,
    stage_pooling,
)
from twoheads.compiler.frontend.torch.unused_weights import refuse_unused_weights
from twoheads.compiler.frontend.torch.weights.deferred_loading import SMALL, deferred_loading
from twoheads.compiler.frontend.torch.weights.gguf_entries import file_config
from twoheads.compiler.frontend.torch.weights.gguf_header import FOLDER, check_gguf
from twoheads.compiler.frontend.torch.weights.gguf_tokenizer import file_tokenizer
from twoheads.graphs.errors import CompileError, InternalError
from twoheads.graphs.program.program import Limit, Pooling
from twoheads.graphs.serialization.bundle_format import SourceIdentity

__all__ = ["LoadedSource", "load_source"]

logger = logging.getLogger(__name__)


Examples: TypeAlias = "Mapping[str, Tensor] | tuple[Tensor, ...] | None"


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
        generation_json: What it says about generating; see
            :mod:`~twoheads.compiler.frontend.generation_facts`. ``None`` where it does not generate.
        dense: The longest input that a model of sparse attention attends to in full: it ends there.
        whole: Whether it is to be one engine of its only input size.
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
    generation_json: bytes | None = None
    dense: Limit | None = None
    whole: bool = False


def load_source(
    source: str | Path | nn.Module,
    *,
    example_inputs: Mapping[str, Tensor] | tuple[Tensor, ...] | None = None,
    weights: bool = True,
    trust_remote_code: bool = False,
    deferred: bool = False,
    whole: bool = False,
    length: int | None = None,
) -> LoadedSource:
    """Loads a model. Code that a folder brings never runs, unless the caller says that it is trusted.

    Args:
        source: A Hugging Face folder, a ``.gguf`` file, or a torch module.
        example_inputs: Tensor arguments by position or name, as :func:`.source_inputs.given_inputs` takes them. A
            transformers model needs none, unless it is to read other arguments than its main one: ``inputs_embeds``.
        weights: Load the weights; without them the module has shapes only (``plan``).
        trust_remote_code: Run the Python code of a model folder, with all rights of this process, where transformers
            has none for its architecture.
        deferred: Leave large weights in their files: the module's parameters are
            :class:`~twoheads.compiler.frontend.torch.weights.stored_tensor.StoredTensor`, each of which is read
            whenever an operator computes with it.
        whole: The model is to be one engine of its only input size: what can't be cut into blocks is not refused.
        length: Of such a transformers model that takes any length: the only one (tokens, samples, frames).

    Raises:
        CompileError: It is no model, not supported, or incomplete; or it is to be whole and takes any length.
    """
    only = _Whole(length) if whole else None
    loaded = _load(source, example_inputs, weights=weights, trust=trust_remote_code, deferred=deferred, whole=only)
    if whole and (cut := [name for name, entry in loaded.inputs.items() if entry.token_axis is not None]):
        raise CompileError(
            loaded.identity.name,
            f"takes {cut[0]} of any length, and one engine of the whole model would have a single length for good",
            "leave --lowering whole out, and any length runs; or say which length it is to be: --length 512",
        )
    return loaded


def _load(
    source: str | Path | nn.Module,
    examples: Examples,
    *,
    weights: bool,
    trust: bool,
    deferred: bool,
    whole: _Whole | None,
) -> LoadedSource:
    """See :func:`load_source`."""
    if isinstance(source, nn.Module):
        return _from_module(source, examples, whole)
    path = Path(source)
    if not path.exists():
        raise CompileError(
            str(path), "there is no such file or folder", "give a model folder, a .gguf file or an .onnx file"
        )
    if path.is_dir():
        with _reading(str(path)), deferred_loading() if deferred else nullcontext():
            return _from_folder(path, weights=weights, trust=trust, whole=whole, examples=examples)
    if path.suffix == ".gguf":
        with _reading(str(path), FOLDER), deferred_loading() if deferred else nullcontext():
            return _from_gguf(path, weights=weights)
    raise CompileError(
        str(path),
        f"a {path.suffix or 'file without suffix'} is not a model this version reads",
        "give a Hugging Face folder (config.json and safetensors), a .gguf file or an .onnx file",
    )


def _from_folder(path: Path, *, weights: bool, trust: bool, whole: _Whole | None, examples: Examples) -> LoadedSource:
    from transformers import AutoConfig, AutoModel

    name, embedder = path.resolve().name, embedder_of(path)
    path = path if embedder is None else embedder.model
    entries = read_model_config(path, trust_remote_code=trust)
    # An embedder reads hidden states, whatever head its weights may have been trained with.
    model_class = AutoModel if embedder is not None else model_class_of(path, entries, trust_remote_code=trust)
    options = {"local_files_only": True, "trust_remote_code": trust}
    if not weights:
        config = AutoConfig.from_pretrained(path, **options)
        module, missing = _without_weights(model_class, config, trust=trust), frozenset[str]()
    else:
        if not any(path.glob("*.safetensors")) and not any(path.glob("pytorch_model*.bin")):
            raise CompileError(str(path), "has no weights (*.safetensors)", "download the complete model folder")
        module, missing = _load_weights(model_class, path, options)
    pooling = default_pooling(module) if embedder is None else stage_pooling(embedder)
    tokenizer = folder_tokenizer(path, options) if weights else None
    facts = generation_facts(module, folder=path) if weights else None
    given = _named(module, examples)
    fixed = whole and replace(whole, image=image_size_of(path), examples=given)
    return _hugging_face(name, "folder", module, missing, pooling, tokenizer, facts, fixed, given)


def _from_gguf(path: Path, *, weights: bool) -> LoadedSource:
    """A GGUF file holds no code; files beside it, which the library looks at, are not trusted."""
    from transformers import AutoModelForCausalLM

    check_gguf(path)
    options = {"gguf_file": path.name, "local_files_only": True, "trust_remote_code": False}
    if not weights:
        module = _without_weights(AutoModelForCausalLM, file_config(path), trust=False)
        return _hugging_face(path.stem, "gguf", module, frozenset(), None, None, None)
    # The library's own way to the configuration reads every token of the vocabulary, for seconds.
    module, missing = _load_weights(AutoModelForCausalLM, path.parent, {**options, "config": file_config(path)})
    tokenizer = file_tokenizer(path, options)
    facts = generation_facts(module, tokenizer=tokenizer)
    return _hugging_face(path.stem, "gguf", module, missing, None, tokenizer_bytes(tokenizer), facts)


@contextmanager
def _reading(where: str, fix: str = "check the model folder") -> Generator[None]:
    """Turns the many exceptions of the libraries that read a model into one clear error; nothing is asked."""
    try:
        with never_asking():
            yield
    except (CompileError, InternalError):
        raise
    except Exception as error:
        message = " ".join(str(error).split())[:300] or type(error).__name__
        raise CompileError(where, f"transformers can't read it: {message}", fix) from error


def _without_weights(model_class: Any, config: Any, *, trust: bool) -> nn.Module:
    """The model with unset weights: reserved, never touched, so they cost no memory.

    (On torch's meta device some models compute other graphs or none.) Small tensors get numbers, because a table of
    attention biases is recognised by its values.
    """
    from transformers.initialization import no_init_weights

    with no_init_weights():
        if hasattr(model_class, "from_config"):
            module: Any = model_class.from_config(config, trust_remote_code=trust)
        else:
            module = model_class(config)
    module.eval().tie_weights()
    for parameter in module.parameters():
        if parameter.numel() <= SMALL:
            nn.init.normal_(parameter)
    rescale_once(module, weights=False)
    return cast("nn.Module", module)


def _load_weights(model_class: Any, folder: Path, options: Mapping[str, Any]) -> tuple[nn.Module, frozenset[str]]:
    module, info = model_class.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, **options)
    refuse_unused_weights(str(folder / options.get("gguf_file", "")), module, info["unexpected_keys"])
    return cast("nn.Module", module).eval(), frozenset(info["missing_keys"])


@dataclass(frozen=True, slots=True)
class _Whole:
    """The only size of a model that is to be whole.

    Attributes:
        length: Of inputs of any length, the only one.
        image: Height and width of its images, where its configuration does not say.
        examples: Of its arguments; made from its configuration if there are none.
    """

    length: int | None
    image: tuple[int, int] | None = None
    examples: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])

    def inputs(self, name: str, module: nn.Module) -> Mapping[str, SourceInput]:
        """The arguments of a transformers model; with a length of its own, none that it makes itself (zeros).

        Raises:
            CompileError: There is such a length, and the inputs have one already.
        """
        made = given_inputs(self.examples, whole=True) or hugging_face_inputs(name, module, self.image)
        if self.length is None:
            return made
        if all(entry.token_axis is None for entry in made.values()):
            problem = f"takes {next(iter(made))} of one size, which is no length of tokens"
            raise CompileError(name, problem, f"leave --length {self.length} out")
        own = {argument: entry for argument, entry in made.items() if entry.source == "argument"}
        return {argument: _of_length(entry, self.length) for argument, entry in own.items()}


def _of_length(entry: SourceInput, length: int) -> SourceInput:
    """The input with an only length along its axis, if it has one."""
    if entry.token_axis is None:
        return entry
    shape = [length if at == entry.token_axis else size for at, size in enumerate(entry.example.shape)]
    return SourceInput(torch.zeros(shape, dtype=entry.example.dtype), None, entry.source)


def _hugging_face(
    name: str,
    form: str,
    module: nn.Module,
    missing: frozenset[str],
    pooling: Pooling | None,
    tokenizer: bytes | None,
    generation: bytes | None,
    whole: _Whole | None = None,
    examples: Mapping[str, Tensor] = MappingProxyType({}),
) -> LoadedSource:
    if (encoder := first_token_encoder(module)) is not None:
        (path, module), pooling = encoder, Pooling("cls", normalize=False)
        missing = frozenset(weight.removeprefix(f"{path}.") for weight in missing)
    text_config = cast("Any", module).config.get_text_config()
    if whole is None:
        refuse_known(module)
    rescale_once(module)
    inputs: Mapping[str, SourceInput]
    if whole is None:
        inputs = given_inputs(examples) if examples else hugging_face_inputs(name, module)
    else:
        inputs = whole.inputs(name, module)
    return LoadedSource(
        identity=_identity(name, form, module, _stable_config(text_config)),
        module=module,
        inputs=inputs,
        hugging_face=True,
        layers=attention_layers(module, inputs),
        missing_weights=missing,
        trained_length=_trained_length(name, text_config),
        pooling=pooling if whole is None else None,
        tokenizer_json=tokenizer,
        generation_json=generation,
        dense=dense_length(module),
        whole=whole is not None,
    )


def _trained_length(name: str, config: Any) -> int | None:
    length = getattr(config, "max_position_embeddings", None)
    if length == -1:  # the library's word for a model without a limit (XLNet)
        return None
    if length is not None and (type(length) is not int or length < 1):
        raise CompileError(name, f"max_position_embeddings is {length!r:.60}, not a number of tokens", "correct it")
    return length


def _from_module(module: nn.Module, example_inputs: Examples, whole: _Whole | None) -> LoadedSource:
    from transformers import PreTrainedModel

    module = module.eval()
    if isinstance(module, PreTrainedModel):
        name, given = type(module).__name__, _named(module, example_inputs)
        facts = None if whole else generation_facts(module)
        fixed = whole and replace(whole, examples=given)
        return _hugging_face(name, "module", module, frozenset(), default_pooling(module), None, facts, fixed, given)
    if not example_inputs:
        raise CompileError(
            type(module).__name__,
            "a torch module needs example inputs to be captured",
            "pass example_inputs=(tensor, ...), each [1, tokens, ...]",
        )
    inputs = given_inputs(_named(module, example_inputs), whole=whole is not None)
    identity = _identity(type(module).__name__, "module", module, {})
    return LoadedSource(identity, module, inputs, False, 0, frozenset(), None, None, None, whole=whole is not None)


def _named(module: nn.Module, examples: Examples) -> Mapping[str, Tensor]:
    """Example inputs by the names of the module's arguments."""
    if examples is None:
        return {}
    if isinstance(examples, Mapping):
        return examples
    return dict(zip(inspect.signature(module.forward).parameters, examples, strict=False))


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
