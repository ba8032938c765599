"""The tool that sets foretold beside measured times, on a tiny bundle."""

from __future__ import annotations

import json

from tests.runtime.generation.decoders import bundle_folder
from tools.generation_times import main
from twoheads.runtime.measurement import step_meter


def test_every_prompt_has_both_times(monkeypatch, capsys):
    monkeypatch.setattr(step_meter, "MEASURE_SECONDS", 0.0)
    assert main([str(bundle_folder("llama")), "--prompt", "3", "40", "--new", "5", "--threads", "1"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["prompt_tokens"] for row in rows] == [3, 40]
    for row in rows:
        assert all(second > 0 for name in ("first_token_seconds", "later_seconds") for second in row[name])
