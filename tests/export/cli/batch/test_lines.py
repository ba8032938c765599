"""``twoheads batch --lines``: one row a line, short lines in shared calls."""

from __future__ import annotations

import numpy as np

from tests.export.conftest import WORDS


def test_every_line_is_an_input_of_its_own(cli, bundle, tmp_path):
    text, out = tmp_path / "in.txt", tmp_path / "o.npz"
    lines = ["the cat sat", "a mat", "the red dog run to", WORDS, "the sea"]
    text.write_text("\n\n".join(lines), encoding="utf-8")
    ran = cli("batch", bundle, "--lines", text, "-o", out, "--output", "last", "--json")
    assert ran.code == 0, ran.err
    packed = np.load(out)["logits"]
    assert packed.shape == (5, 16)
    assert ran.json["requests"] == 5
    assert [run["requests"] for run in ran.json["runs"]] == [5], "the long line shares its last block"
    assert ran.json["engine_calls"] == ran.json["formula_calls"] == sum(r["engine_calls"] for r in ran.json["runs"])
    off = cli("batch", bundle, "--lines", text, "-o", out, "--output", "last", "--pack", "off", "--json")
    assert [run["requests"] for run in off.json["runs"]] == [1] * 5
    np.testing.assert_allclose(np.load(out)["logits"], packed, rtol=0, atol=1e-5)
    assert off.json["engine_calls"] > ran.json["engine_calls"]
    for line, row in zip(lines, packed, strict=True):
        text.write_text(line, encoding="utf-8")
        cli("run", bundle, "--text", text, "-o", out, "--output", "last")
        np.testing.assert_allclose(np.load(out)["logits"][0], row, rtol=0, atol=1e-5)
    shown = cli("batch", bundle, "--lines", text, "-o", out, "--output", "last").out
    assert "one row a line" in shown
    assert "packed" in shown


def test_refuses_lines_that_make_no_sense(cli, bundle, text, tmp_path):
    out = tmp_path / "o.npz"
    assert "--output last" in cli("batch", bundle, "--lines", text, "-o", out).refused()
    assert "two inputs are given" in cli("batch", bundle, "--lines", text, "--documents", text, "-o", out).refused()
    assert "only documents" in cli("batch", bundle, "--lines", text, "--truncate", "-o", out).refused()
    assert "no input is given" in cli("batch", bundle, "-o", out).refused()
    assert not out.exists()
