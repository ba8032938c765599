"""What is mutated, and what is then done with it: a file of a base folder, how to change it, what to call."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from tools.fuzz.mutate import mutated_bytes, mutated_json

__all__ = ["KINDS", "Kind", "make_bases"]

TOKENS = np.array([1, 2, 3, 4, 5] * 9)
WORDS = ("[UNK]", "the", "cat", "sat", "on", "a", "mat", "and", "saw", "dog", "run", "to", "red", "house", "by", "sea")
BLOCK = 16


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of input.

    Attributes:
        base: The folder of the bases that is copied.
        files: A pattern of the files in it of which one is mutated.
        mutate: How.
        call: Reads the copy, and returns what is compared with the base's.
        mend: Write the mutated file's size and hash into the manifest, so that it is read at all.
        weight: How often it is drawn.
    """

    base: str
    files: str
    mutate: Callable[[bytes, Random], bytes]
    call: Callable[[Path], bytes]
    mend: bool = False
    weight: int = 4

    def make(self, bases: Path, folder: Path, draw: Random) -> str:
        """Makes the mutant in ``folder``; returns the name of the file that is mutated."""
        shutil.copytree(bases / self.base, folder)
        file = draw.choice(sorted(path for path in folder.rglob(self.files) if path.is_file()))
        file.write_bytes(self.mutate(file.read_bytes(), draw))
        name = file.relative_to(folder).as_posix()
        if self.mend:
            manifest = json.loads((folder / "manifest.json").read_bytes())
            data = file.read_bytes()
            entry = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            manifest["files"][name] = manifest["files"][name] | entry
            (folder / "manifest.json").write_text(json.dumps(manifest))
        return name


def make_bases(folder: Path) -> None:
    """Writes the folders that mutants are copies of: a model, its bundle, an ONNX file, inputs."""
    import onnx
    import torch
    from onnx import TensorProto, helper, numpy_helper
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    from twoheads.compiler import compile_model
    from twoheads.export import write_bundle

    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    source = folder / "source"
    LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), max_position_embeddings=64, **shape)).save_pretrained(source)
    tokenizer: Any = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token=WORDS[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(source / "tokenizer.json"))
    write_bundle(compile_model(source, block_size=BLOCK), folder / "bundle")
    draw = np.random.default_rng(0)
    weights = {name: draw.standard_normal((8, 8)).astype(np.float32) for name in ("wq", "wk", "wv")}
    nodes = [
        *(helper.make_node("MatMul", ["x", f"w{name}"], [name]) for name in "qkv"),
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["shares"], axis=-1),
        helper.make_node("MatMul", ["shares", "v"], ["mixed"]),
        helper.make_node("Add", ["x", "mixed"], ["hidden"]),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", "n", 8]) for name in ("x", "hidden")]
    arrays = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], arrays)
    (folder / "onnx").mkdir()
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(folder / "onnx" / "model.onnx"))
    inputs = folder / "inputs"
    inputs.mkdir()
    np.save(inputs / "tokens.npy", TOKENS)
    np.savez_compressed(inputs / "arrays.npz", tokens=TOKENS, more=np.ones((3, 4), np.float32))
    lines = [{"id": f"d{at}", "text": "the cat sat"} for at in range(5)] + [{"input_ids": [1, 2, 3]}]
    (inputs / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)))


def _run(folder: Path) -> bytes:
    from twoheads.runtime import load

    bundle = load(folder, threads=1)
    results: list[Any] = [bundle.run(TOKENS[:length], "logits") for length in (7, len(TOKENS))]
    encoded = [] if bundle.tokenizer is None else bundle.tokenizer.encode("the cat sat on a mat")
    return b"".join(result.array.tobytes() for result in results) + repr(encoded).encode()


def _plan(folder: Path) -> bytes:
    from twoheads.compiler import plan_model

    return str(plan_model(folder, block_size=BLOCK)).encode()


def _compile(path: Path) -> bytes:
    from twoheads.compiler import compile_model

    compiled = compile_model(path, block_size=BLOCK)
    digest = hashlib.sha256(str(compiled.program).encode())
    for name in sorted(compiled.weights):
        weight: Any = compiled.weights[name]
        array = weight if isinstance(weight, np.ndarray) else weight.detach().numpy()
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.digest()


def _onnx(folder: Path) -> bytes:
    return _compile(folder / "model.onnx")


def _arrays(folder: Path) -> bytes:
    from twoheads.runtime.inputs.array_files import read_npy, read_npz

    found = {**read_npz(folder / "arrays.npz"), "single": read_npy(folder / "tokens.npy")}
    stream = io.BytesIO()
    for name in sorted(found):
        stream.write(name.encode("utf-8", "surrogateescape") + found[name].tobytes())
    return stream.getvalue()


def _lines(folder: Path) -> bytes:
    from twoheads.runtime.documents.source import inspect_documents, read_documents

    inspect_documents(folder / "lines.jsonl")
    return repr(list(read_documents(folder / "lines.jsonl"))).encode("utf-8", "surrogatepass")


def _quiet(call: Callable[[Path], bytes]) -> Callable[[Path], bytes]:
    def called(folder: Path) -> bytes:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return call(folder)

    return called


KINDS: dict[str, Kind] = {
    "manifest": Kind("bundle", "manifest.json", mutated_json, _quiet(_run)),
    "program": Kind("bundle", "program.json", mutated_json, _quiet(_run), mend=True),
    "engines": Kind("bundle", "*.onnx", mutated_bytes, _quiet(_run), mend=True),
    "weights": Kind("bundle", "weights.bin", mutated_bytes, _quiet(_run), mend=True, weight=1),
    "tokenizer": Kind("bundle", "tokenizer.json", mutated_json, _quiet(_run), mend=True, weight=2),
    "config": Kind("source", "config.json", mutated_json, _quiet(_plan), weight=2),
    "safetensors": Kind("source", "model.safetensors", mutated_bytes, _quiet(_compile), weight=1),
    "onnx": Kind("onnx", "model.onnx", mutated_bytes, _quiet(_onnx), weight=3),
    "arrays": Kind("inputs", "*.np[yz]", mutated_bytes, _quiet(_arrays)),
    "lines": Kind("inputs", "lines.jsonl", mutated_bytes, _quiet(_lines)),
}
