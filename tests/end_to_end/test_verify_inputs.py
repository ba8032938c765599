"""``verify`` on models of several inputs, of images, and with logits of the whole input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.end_to_end.agreement import bundle_of, zoo_model
from twoheads.export import verify
from twoheads.export.verification import original_run
from twoheads.graphs.errors import InputError
from twoheads.graphs.program.program import SequenceStage


def test_a_pooled_head_runs_once(tmp_path: Path) -> None:
    program = bundle_of(zoo_model("BERT, sequence classification", tmp_path), tmp_path, block_size=16).program
    taken = [stage for stage in program.body if isinstance(stage, SequenceStage)]
    assert [stage.operator for stage in taken] == ["take"]
    assert program.pooled_logits


def test_an_encoder_decoder(tmp_path: Path) -> None:
    model = zoo_model("BART", tmp_path)
    bundle = bundle_of(model, tmp_path, block_size=16)
    report = verify(bundle.path, model, length={"n": 21, "m": 50})
    assert report.passed
    assert (report.length, report.check().positions) == (21, 21)
    assert verify(bundle.path, model, length=20).check().positions == 20  # both have 20 tokens
    given = {"input_ids": np.arange(30)[None] % 67, "decoder_input_ids": np.arange(7)[None]}
    assert verify(bundle.path, model, length={"n": 7, "m": 30}, tokens=given).passed
    with pytest.raises(InputError, match="the arrays have"):
        verify(bundle.path, model, length={"n": 8, "m": 30}, tokens=given)
    with pytest.raises(InputError, match="length"):
        verify(bundle.path, model, length={"n": 8})


def test_an_image_model(tmp_path: Path) -> None:
    model = zoo_model("ViT, image classification", tmp_path)
    bundle = bundle_of(model, tmp_path, block_size=16)
    report = verify(bundle.path, model, length=50)
    assert report.passed
    assert (report.check().positions, report.check("logits").positions) == (50, 1)
    with pytest.raises(InputError, match="50 only"):
        verify(bundle.path, model, length=49)


def test_a_wrong_pooled_head_is_found(tmp_path: Path) -> None:
    model = zoo_model("BERT, sequence classification", tmp_path)
    bundle = bundle_of(model, tmp_path, block_size=16)
    assert verify(bundle.path, model, length=40).passed
    with torch.no_grad():
        model.get_parameter("classifier.weight").mul_(1.001)
    report = verify(bundle.path, model, length=40)
    assert not report.passed
    assert report.worst.output == "logits"


def test_a_few_logits_get_further_evaluations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = zoo_model("BERT, sequence classification", tmp_path)
    bundle = bundle_of(model, tmp_path, block_size=16)
    wide = verify(bundle.path, model, length=30).check("logits")
    monkeypatch.setattr(original_run, "CUTS", ())
    narrow = verify(bundle.path, model, length=30).check("logits")
    assert wide.max_abs_error == narrow.max_abs_error
    assert wide.noise_floor > narrow.noise_floor
