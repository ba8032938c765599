"""Sequences extended by what was built for a target: its artifacts are ONNX files here, which ONNX Runtime opens."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import onnx
import pytest

from tests.runtime.generation.decoders import BEYOND, BLOCK, MODELS, bundle, bundle_folder, tokens
from tests.shared_folder import shared_folder
from tests.tiers import with_long
from twoheads.export.accelerators.lint import lint_bundle
from twoheads.export.accelerators.target import load_target
from twoheads.export.accelerators.target_files import made_files, write_target
from twoheads.export.engines.jobs import engine_jobs, engine_model, step_jobs
from twoheads.export.verification.generation.proof import verify_generation
from twoheads.graphs.errors import InputError
from twoheads.graphs.serialization.bundle_format import Artifact, TargetEntry
from twoheads.runtime import LoadedBundle, load
from twoheads.runtime.backends.onnxruntime_cpu import OnnxRuntimeBackend
from twoheads.runtime.backends.protocol import EngineFile, EngineHandle
from twoheads.runtime.bundle.artifacts import ArtifactFiles
from twoheads.runtime.bundle.reader import read_bundle
from twoheads.runtime.generation.generated import Generated

TARGET = "onnxruntime"


class Accelerator:
    """A backend of artifacts that are ONNX files with their weights."""

    name, target, precisions = "accelerator", TARGET, ("fp32", "fp16")
    in_place = shares_packed = False

    def __init__(self) -> None:
        self.tensor = OnnxRuntimeBackend().tensor

    def load_engine(self, file: EngineFile) -> EngineHandle:
        raise AssertionError(file.path)

    def load_artifact(self, files: ArtifactFiles, inputs: Any, outputs: Any, weights: Any) -> EngineHandle:
        assert not weights
        assert files.accelerator is not None
        return OnnxRuntimeBackend().load_engine(EngineFile(files.accelerator, inputs, outputs, {}, 1))


@cache
def _built(name: str, *, generation: bool = True, precision: str = "fp32") -> Path:
    """The bundle with what a compiler would have made of it."""
    folder = Path(mkdtemp(dir=shared_folder()))
    path = shutil.copytree(bundle_folder(name), folder / name)
    found, scratch = read_bundle(path), folder / TARGET
    scratch.mkdir()
    artifacts: dict[str, Artifact] = {}
    for job in (*engine_jobs(found), *(step_jobs(found) if generation else ())):
        onnx.save(engine_model(found, job), scratch / f"{job.name}.onnx")
        artifacts[job.name] = Artifact("0" * 64, job.stages, made_files(scratch, job.name), 0.0, (), None, None)
    write_target(found, TARGET, TargetEntry("fake", "1", precision, None, artifacts), folder)
    return path


@cache
def _loaded(name: str) -> LoadedBundle:
    return load(_built(name), backend=Accelerator(), threads=1)


def _made(loaded: LoadedBundle, prompt: list[int], **options: Any) -> Generated:
    made = loaded.generate(prompt, max_new_tokens=12, ignore_eos=True, do_sample=False, **options)
    assert isinstance(made, Generated)
    return made


@pytest.mark.parametrize(
    ("name", "length"),
    with_long(
        [("llama", 1), ("llama", 2 * BLOCK + 7), ("llama", BEYOND * BLOCK + 5), ("gemma", 3 * BLOCK)],
        [("llama", BEYOND * BLOCK + 5), ("gemma", 3 * BLOCK)],
    ),
)
def test_tokens_are_those_of_the_bundles_own_engines(name: str, length: int) -> None:
    prompt = tokens(length)
    found, expected = _made(_loaded(name), prompt), _made(bundle(name), prompt)
    assert found.tokens == expected.tokens
    np.testing.assert_allclose(found.logprobs, expected.logprobs, rtol=0, atol=1e-4)


def test_a_step_has_the_bits_of_what_is_appended_and_of_several_tokens_at_once() -> None:
    loaded, sequence = _loaded("llama"), tokens(BLOCK + 9)
    with loaded.open_context() as stepped, loaded.open_context() as appended, loaded.open_context() as guessed:
        stepped.append(sequence[:-3])
        for token in sequence[-3:]:
            stepped.step(token)
        logits = stepped.step(5)
        stepped.rollback(len(sequence))
        np.testing.assert_array_equal(stepped.step(5), logits)
        np.testing.assert_array_equal(appended.append([*sequence, 5]), logits)
        guessed.append(sequence[:-3])
        np.testing.assert_array_equal(guessed.steps([*sequence[-3:], 5])[-1], logits)


def test_it_is_proven_and_held_to_the_bound_of_its_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {"new_tokens": 5, "tokens": np.array(tokens(BLOCK - 2)), "backend": Accelerator()}
    exact = verify_generation(_built("llama"), MODELS["llama"](), **given)
    assert (exact.passed, exact.precision, exact.same_tokens) == (True, "float32", 5)
    half = _built("llama", precision="fp16")
    assert verify_generation(half, MODELS["llama"](), **given).precision == "float32, built in fp16"
    load_artifact = Accelerator.load_artifact

    def first_layer_alone(self: Accelerator, files: ArtifactFiles, *ports: Any) -> EngineHandle:
        if files.accelerator is not None and files.accelerator.name == "step_8_tokenwise_1.1.onnx":
            files = ArtifactFiles(files.accelerator.with_name("step_8_tokenwise_1.0.onnx"), None, (), None)
        return load_artifact(self, files, *ports)

    monkeypatch.setattr(Accelerator, "load_artifact", first_layer_alone)
    assert not verify_generation(half, MODELS["llama"](), **given).passed


def test_what_is_not_built_is_refused() -> None:
    without = load(_built("llama", generation=False), backend=Accelerator(), threads=1)
    with pytest.raises(InputError, match=r"(?s)nothing that extends a sequence.*--generation"):
        without.generate([5])
    for name in ("qwen", "t5"):
        with pytest.raises(InputError, match="extended on no accelerator"):
            step_jobs(read_bundle(bundle_folder(name)))
    loaded = _loaded("llama")
    with pytest.raises(InputError, match=r"open_batch.*accelerator"):
        loaded.open_batch()
    with pytest.raises(InputError, match="pages: are 'int8'"):
        loaded.open_context(pages="int8")
    limited = load(_built("llama"), backend=Accelerator(), threads=1, memory_limit=1 << 40)
    with pytest.raises(InputError, match="memory_limit"):
        limited.generate([5])


def test_they_are_held_against_a_targets_rules_if_asked() -> None:
    found, target = read_bundle(bundle_folder("llama")), load_target("ethos-u")
    plain, more = ({one.engine for one in lint_bundle(found, target, generation=asked)} for asked in (False, True))
    assert plain < more
    assert all("/step_8_" in engine for engine in more - plain)
