"""The models of the page on models larger than the memory, their reference, and the page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from tools.large_models.bounds import writing_seconds
from tools.large_models.compile_child import PhaseMeter
from tools.large_models.gguf_file import make_gguf
from tools.large_models.in_place import shares
from tools.large_models.job import same_arrays
from tools.large_models.make import Shape, make_model, random_weight, weight_files
from tools.large_models.memory_group import NoGroupError, memory_group
from tools.large_models.page import render
from tools.large_models.reference import bundle_weights, folder_weights, reference_hidden
from tools.measured_process import ProcessFailedError, measure
from twoheads.compiler import compile_model
from twoheads.compiler.frontend.torch.load_source import load_source
from twoheads.export import quantise_weights, write_bundle
from twoheads.runtime import load

SHAPE = Shape(64, 96, 3, 4, 2, 50)


def test_the_reference_is_the_library_and_a_bundle_of_4_bits_agrees_with_it(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", SHAPE)
    assert len(list(folder.glob("*.safetensors"))) == 5
    tokens = np.random.default_rng(0).integers(0, 50, 40)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model.model(torch.from_numpy(tokens)[None]).last_hidden_state[0].numpy()
    np.testing.assert_allclose(reference_hidden(folder, folder_weights(folder), tokens), expected, atol=1e-5)
    bundle = write_bundle(quantise_weights(compile_model(folder, block_size=16), "int4"), tmp_path / "bundle")
    own = reference_hidden(folder, bundle_weights(bundle), tokens)
    found = np.asarray(load(bundle).run(tokens, output="hidden").array).reshape(own.shape)
    np.testing.assert_allclose(found, own, atol=1e-4 * np.abs(own).max())
    assert np.abs(own - expected).max() > 1e-2, "4 bits are not the model's own numbers"


def test_the_largest_layer_may_be_the_embedding() -> None:
    assert SHAPE.layer_bytes == 4 * (64 * (2 * 64 + 2 * 32) + 3 * 64 * 96 + 2 * 64)
    assert Shape(64, 96, 3, 4, 2, 5000).layer_bytes == 4 * 64 * 5000


def test_a_meter_tells_phases_apart() -> None:
    meter = PhaseMeter()
    meter.enter("small")
    meter.enter("large")
    numbers = np.ones(20 << 20, np.uint8)
    phases = meter.close()
    assert list(phases) == ["imports", "small", "large"]
    assert phases["large"]["peak_bytes"] >= phases["small"]["peak_bytes"] + numbers.nbytes // 2


ROW = {
    "bundle_bytes": 4e9,
    "source_bytes": 2e9,
    "layer_bytes": 1e9,
    "compile_peak_bytes": 1.5e9,
    "compile_seconds": 100.0,
    "compile_cpu_seconds": 90.0,
    "phases": {"loading the model": {"seconds": 2.0, "peak_bytes": 5e8, "own_bytes": 3e8}},
}
RAN = {
    "run_code": 0,
    "tokens": 2048,
    "limit": "3GB",
    "run_seconds": 9.0,
    "run_cpu_seconds": 17.0,
    "run_peak_bytes": 2e9,
    "distance": 3e-6,
    "reading_seconds": 4.0,
    "product_seconds": 5.0,
    "job_killed": True,
    "job_same": True,
    "job_resume_peak_bytes": 1.9e9,
    "open_seconds": 0.25,
    "verify_passed": True,
    "verify_layers": 3,
    "verify_worst_ratio": 1.5,
    "verify_seconds": 8.0,
    "verify_peak_bytes": 7e8,
}
PLAN = {"engine_calls": 3000, "flops": 2e12, "memory": {"weights": 9e9}, "spill": {"peak_bytes": 1e9}}
REAL = {
    "largest_weight_bytes": 1e8,
    "compile_peak_bytes": 8e8,
    "limit": "400MB",
    "outputs": {
        output: {
            "whole_peak_bytes": 7e8,
            "limited_peak_bytes": 3e8,
            "whole_seconds": 5.0,
            "limited_seconds": 6.0,
            "same": output == "hidden",
        }
        for output in ("hidden", "last")
    },
    "phases": ROW["phases"],
}


def told(**numbers: Any) -> dict[str, Any]:
    return numbers | {"machine": "a machine", "day": "2026-01-01", "load": 0.5}


def test_the_page() -> None:
    run = {"code": 0, "prompt_seconds": 2.0, "next_token": 7}
    slow = run | {"prompt_seconds": 4.0}
    killed = {"code": -9, "told": ["killed"]}
    beside = {
        "file_bytes": 4e8,
        "limit_bytes": 1e8,
        "tokens": 100,
        "runs": {"llama.cpp": [killed], "ours": [run, slow]},
    }
    side = {"seconds": 40.0, "cpu_seconds": 39.0, "peak_bytes": 2e9}
    after = {"seconds": 12.0, "cpu_seconds": 11.0, "peak_bytes": 8e8}
    turn = {"before": side, "after": after, "least_seconds": 2.0, "commit": "abc", "load": 1.5}
    results = {
        "turns": {"SmolLM2": told(turns=[turn, turn])},
        "models": {"7b, 4 layers, int4": told(**ROW, **RAN), "70b": told(**ROW)},
        "plans": {"70b": told(tokens=2048, limit="6GB", plan_seconds=3.0, plan=PLAN)},
        "real": {"SmolLM2": told(**REAL)},
        "llama.cpp": {"1b": told(**beside)},
    }
    page = render(results)
    assert "| 7b, 4 layers, int4 | 4,000 | 2,000 | 1,000 | 1,500 | 1,900 | 100 | 90 | 0.5 |" in page
    row = "| 2,048 | 3GB | 2,000 | 9 | 17 | 4.0 + 5.0 | 1.00 | 0.5 | 3.0e-06 | the same, to the bit | 1,900 | 0.25 |"
    assert f"| 7b, 4 layers, int4 {row}" in page
    assert "| 7b, 4 layers, int4 | 3 | 1.50 | 700 | 8 | yes |" in page
    assert "| 70b | 2,048 | 3,000 | 2 | 9.0 | 1.0 | 6GB | 3.0 |" in page
    assert "| SmolLM2 | 100 | 800 | 820 | hidden | 700 | 400MB | 300 | 5.0 | 6.0 | 0.5 | the same, to the bit |" in page
    assert "| SmolLM2 | 100 | 800 | 820 | last | 700 | 400MB | 300 | 5.0 | 6.0 | 0.5 | NOT the same |" in page
    assert "| SmolLM2 | 2 | abc | 40 | 39 | 2,000 | 12 | 11 | 800 | 16 | 1.5, 1.5 |" in page
    assert "| 1b | 400 | 100 | 100 | ours | 3.0 | 33.3 | 7 |" in page
    assert "| 1b | 400 | 100 | 100 | llama.cpp | failed | code -9 | killed |" in page
    assert "| loading the model | 500 | 500 | 500 |" in page
    assert page.count("On a machine, 2026-01-01.") == 1
    results["models"]["70b"] |= {"machine": "another"}
    both = render(results)
    assert "A: a machine, 2026-01-01; B: another, 2026-01-01." in both
    assert "| 70b (B) | 4,000 |" in both
    assert "| 70b (A) | 2,048 |" in both
    broken = render({"models": {"7b": told(**ROW, **(RAN | {"job_same": False, "verify_passed": False}))}})
    assert "| NOT the same |" in broken
    assert "| NO |" in broken


def test_layers_have_weights_of_their_own() -> None:
    names = [name for part in weight_files(SHAPE) for name in part if name.endswith("up_proj.weight")]
    firsts = {float(random_weight(name, (4, 4))[0, 0]) for name in names}
    assert len(firsts) == SHAPE.num_hidden_layers
    assert torch.equal(random_weight("a", (4, 4)), random_weight("a", (4, 4)))


def test_a_process_s_peak_is_not_that_of_who_starts_it() -> None:
    held = np.ones(300 << 20, np.uint8)
    found = measure([sys.executable, "-I", "-S", "-c", "print(1); raise SystemExit(3)"])
    assert (found.code, found.out) == (3, "1\n")
    assert found.peak_bytes < held.nbytes / 3
    with pytest.raises(ProcessFailedError, match="can't be started"):
        measure(["/nowhere/a-program"])


def test_memory_is_held_to_a_limit() -> None:
    code = "numbers = bytearray(300 << 20); numbers[::4096] = b'1' * len(numbers[::4096])"
    try:
        with memory_group(100 << 20) as within:
            done = measure([*within, sys.executable, "-I", "-S", "-c", code])
            small = measure([*within, sys.executable, "-I", "-S", "-c", "print(1)"])
    except NoGroupError:
        pytest.skip("no control groups here")
    assert done.code == -9
    assert small.out == "1\n"


def test_a_gguf_file_is_the_same_model(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "m.gguf", SHAPE)
    tensors = load_source(path).module.state_dict()
    for name in ("model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"):
        expected = random_weight(name, tuple(tensors[name].shape))
        assert torch.equal(tensors[name], expected.to(torch.float16 if expected.ndim > 1 else torch.float32).float())


def test_bytes_in_the_source_are_found(tiny_llama: Path, tmp_path: Path) -> None:
    bundle = write_bundle(compile_model(tiny_llama, block_size=16), tmp_path / "bundle", generation=False)
    found = shares(tiny_llama, bundle)
    assert found["bytes"] - found["in_source"] == 4 * 4, "all but the frequencies of the rotations"
    assert found["in_source"] > 0
    other = make_model(tmp_path / "model", SHAPE)
    assert shares(other, bundle)["in_source"] == 0


def test_writing_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"12345")
    assert writing_seconds(path) > 0
    assert [found.name for found in tmp_path.iterdir()] == ["weights"]
    assert path.read_bytes() == b"12345"


def test_arrays_are_compared_to_the_bit(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros(3, np.float32))
    np.savez(tmp_path / "b.npz", x=np.full(3, -0.0, np.float32))
    assert same_arrays(tmp_path / "a.npz", tmp_path / "a.npz")
    assert not same_arrays(tmp_path / "a.npz", tmp_path / "b.npz")
