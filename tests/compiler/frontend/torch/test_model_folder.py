"""What a model folder from anybody must not do: run code, ask, fetch kernels, or read weights from elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from twoheads.compiler.compile_model import compile_model, plan_model
from twoheads.compiler.frontend.torch.load_source import load_source
from twoheads.graphs.errors import CompileError

CONFIGURATION = """
from pathlib import Path
from transformers import LlamaConfig
Path(__file__).parent.joinpath("ran").touch()
Path({marker!r}).touch()

class OwnConfig(LlamaConfig):
    model_type = "own"
"""

MODEL = """
from transformers import LlamaForCausalLM
from .configuration_own import OwnConfig

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""

TOKENIZER = """
from pathlib import Path
Path({marker!r}).touch()

class OwnTokenizer:
    @classmethod
    def from_pretrained(cls, *_, **__):
        return cls()
"""


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "copy"))


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that exists once the folder's code has run."""
    return tmp_path / "code-has-run"


@pytest.fixture
def own(folder: Path, marker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose model is code of its own."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    (folder / "configuration_own.py").write_text(CONFIGURATION.format(marker=str(marker)))
    (folder / "modeling_own.py").write_text(MODEL)
    names = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    change(folder, model_type="own", architectures=["OwnForCausalLM"], auto_map=names)
    return folder


def change(folder: Path, *, file: str = "config.json", **entries: Any) -> None:
    path = folder / file
    config = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**config, **entries}))


def test_code_of_the_folder_is_refused_by_name(own: Path, marker: Path) -> None:
    for attempt in (compile_model, plan_model, load_source):
        with pytest.raises(CompileError, match=r"OwnForCausalLM.*\n.*--trust-remote-code"):
            attempt(own)
    assert not marker.exists()


def test_code_of_the_folder_runs_where_it_is_trusted(own: Path, marker: Path) -> None:
    program = plan_model(own, block_size=16, trust_remote_code=True)
    assert marker.exists()
    assert program.body


def test_nothing_is_asked(own: Path, marker: Path, tmp_path: Path) -> None:
    """Both commands in a process whose standard input says yes to everything."""
    marker.unlink(missing_ok=True)
    commands = [["compile", str(own), "-o", str(tmp_path / "b")], ["plan", str(own), "-n", "100"]]
    code = f"from twoheads.export.cli import main\nprint('ended:', [main(words) for words in {commands}])"
    done = subprocess.run([sys.executable, "-c", code], input=b"y\n" * 99, capture_output=True, check=True)
    assert b"ended: [1, 1]" in done.stdout, done.stderr
    assert b"[y/N]" not in done.stdout + done.stderr
    assert done.stderr.count(b"--trust-remote-code") == len(commands), done.stderr
    assert not marker.exists()


def test_a_known_model_is_the_librarys_whatever_the_folder_brings(own: Path, marker: Path) -> None:
    change(own, model_type="llama", architectures=["LlamaForCausalLM"])
    assert plan_model(own, block_size=16).body
    assert not marker.exists()


def test_code_of_a_part_of_the_model_is_refused(folder: Path) -> None:
    change(folder, text_config={"model_type": "own", "auto_map": {"AutoConfig": "configuration_own.OwnConfig"}})
    with pytest.raises(CompileError, match=r"text_config\.auto_map"):
        load_source(folder, weights=False)


def test_code_of_a_tokenizer_never_runs(folder: Path, marker: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenization_own.py").write_text(TOKENIZER.format(marker=str(marker)))
    names = {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}
    change(folder, file="tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=names)
    with pytest.raises(CompileError, match=r"tokenizer_config\.json: is a tokenizer that can't be read"):
        load_source(folder)
    assert not marker.exists()


@pytest.mark.parametrize(
    "entries",
    [
        {"attn_implementation": "someone/kernel"},
        {"_attn_implementation": "flash_attention_2"},
        {"attn_implementation": {"": "someone/kernel:function"}},
        {"text_config": {"_attn_implementation": "someone/kernel"}},
        {"experts_implementation": "someone/experts"},
    ],
)
def test_a_kernel_by_name_is_refused(folder: Path, entries: dict[str, Any]) -> None:
    change(folder, **entries)
    with pytest.raises(CompileError, match="asks for the kernel"):
        load_source(folder, weights=False)


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "/etc/passwd", "a/../../b", "a\0b", "..\\b"])
def test_weights_outside_of_the_folder_are_refused(folder: Path, name: str) -> None:
    shutil.copy(folder / "model.safetensors", folder.parent / "elsewhere.safetensors")
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": name}}))
        with pytest.raises(CompileError, match="no plain path below the folder"):
            compile_model(folder, block_size=16)
        (folder / index).unlink()


@pytest.mark.parametrize(
    ("content", "problem"), [("[]", "does not say in which file"), ('{"weight_map": {}}', "names no weight at all")]
)
def test_an_index_without_names_is_refused(folder: Path, content: str, problem: str) -> None:
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CompileError, match=problem):
        load_source(folder)


def test_an_adapter_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "/elsewhere"}')
    with pytest.raises(CompileError, match="an adapter"):
        load_source(folder)


def test_trust_is_for_folders(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(CompileError, match="nothing else brings code"):
        compile_model(tmp_path / "model.gguf", trust_remote_code=True)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[]", "is no JSON object"),
        ("[" * 100_000, "nested"),
        ('{"a": ' * 500 + "1" + "}" * 500, "nested"),
        ('{"architectures": [5]}', "architectures is"),
        ('{"architectures": "LlamaForCausalLM"}', "architectures is"),
        ('{"architectures": [["x"]]}', "architectures is"),
        ('{"model_type": 5}', "model_type is"),
        ('{"model_type": "llama", "architectures": ["LlamaConfig"]}', "LlamaConfig is not known"),
        ('{"model_type": "llama", "architectures": ["LlamaTokenizer"]}', "LlamaTokenizer is not known"),
        ('{"model_type": "llama", "architectures": ["__doc__"]}', "__doc__ is not known"),
        ('{"model_type": "llama", "hidden_size": "wide"}', "can't read it"),
        ('{"model_type": "llama", "num_hidden_layers": []}', "can't read it"),
        ('{"model_type": "llama", "max_position_embeddings": -5}', "max_position_embeddings"),
        ('{"model_type": "llama", "vocab_size": 1' + "0" * 5000 + "}", "is not JSON"),
    ],
)
def test_a_configuration_from_anybody(folder: Path, text: str, problem: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(CompileError, match=problem):
        plan_model(folder, block_size=16)


@pytest.mark.parametrize("text", [b"", b"{}", b"\xff\xfe", b'{"model": 5}', b'{"version": "1.0", "model": {}}'])
def test_a_tokenizer_that_is_none_is_refused(folder: Path, text: bytes) -> None:
    (folder / "tokenizer.json").write_bytes(text)
    with pytest.raises(CompileError, match="is no tokenizer"):
        load_source(folder)


@pytest.mark.parametrize(
    ("listing", "pooling"),
    [
        (b"[{}]", b"{}"),
        (b"garbage", b"{}"),
        (b"\xff", b"{}"),
        (b"5", b"{}"),
        (b'[{"type": 5, "path": "p"}]', b"{}"),
        (b'[{"type": "a.Pooling", "path": "../p"}]', b"{}"),
        (b'[{"type": "a.Pooling", "path": "p"}]', b"[]"),
        (b'[{"type": "a.Pooling", "path": "absent"}]', b"{}"),
    ],
)
def test_sentence_embedding_stages_from_anybody(tmp_path: Path, listing: bytes, pooling: bytes) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    BertModel(config).save_pretrained(tmp_path)
    (tmp_path / "modules.json").write_bytes(listing)
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "config.json").write_bytes(pooling)
    with pytest.raises(CompileError) as caught:
        load_source(tmp_path, weights=False)
    assert str(tmp_path) in caught.value.where
    assert "transformers can't read it" not in caught.value.problem


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with names")
def test_a_pipe_in_a_folder_is_refused_before_anybody_waits_at_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    os.mkfifo(tmp_path / "tokenizer_config.json")
    with pytest.raises(CompileError, match=r"tokenizer_config\.json: is neither a file nor a folder"):
        load_source(tmp_path, weights=False)


def test_a_folder_that_holds_a_file_of_a_model_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="give a Hugging Face model folder"):
        plan_model(tmp_path)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(CompileError, match=r"it has no config\.json(?s:.)*name .*model\.gguf"):
        plan_model(tmp_path)
