"""The tool that times many prompts at once."""

from __future__ import annotations

import json

from tests.runtime.generation.decoders import bundle_folder
from tools.batching import main


def test_it_compares_tokens_and_tells_rates(capsys):
    words = [str(bundle_folder("llama")), "--requests", "3", "--alone", "2", "--prompt", "20", "--new", "5"]
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["requests"], told["compared_alone"], told["same_tokens"]) == (3, 2, 2)
    assert told["ratio"] > 0
