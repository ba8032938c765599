"""The tool that streams tokens through a windowed model."""

from __future__ import annotations

import json

from tests.runtime.generation.decoders import bundle_folder
from tools.endless import main


def test_a_windowed_model_streams_in_constant_memory(capsys):
    assert main(["--tokens", "4000", "--threads", "1"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["constant"]
    assert [part["tokens"] for part in told["parts"]] == list(range(400, 4001, 400))


def test_full_attention_grows_and_is_told(capsys):
    assert main([str(bundle_folder("llama")), "--tokens", "800", "--threads", "1"]) == 1
    assert not json.loads(capsys.readouterr().out)["constant"]
