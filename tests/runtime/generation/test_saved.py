"""A context that was saved goes on as if it had stayed open; files that are damaged or another bundle's are refused."""

from __future__ import annotations

import json
import os
from hashlib import sha256

import numpy as np
import pytest

from tests.runtime.generation.decoders import BEYOND, BLOCK, bundle, tokens
from tests.tiers import with_long
from twoheads.graphs.errors import InputError
from twoheads.graphs.variants.steps import SOURCE_CAPACITIES
from twoheads.runtime.generation.saved import DIGEST, MAGIC
from twoheads.runtime.runs.source_run import EncoderRun

WIDEST = SOURCE_CAPACITIES[-1] * BLOCK
LENGTHS = [1, BLOCK - 2, BLOCK, 5 * BLOCK + 3, BEYOND * BLOCK + 5, (2 * BEYOND + 4) * BLOCK + 2]


@pytest.mark.parametrize(
    "name",
    with_long(("llama", "gemma", "mamba", "qwen"), ("llama", "gemma", "mamba")),
)
@pytest.mark.parametrize("length", LENGTHS)
def test_it_goes_on_as_if_it_had_stayed_open(name, length, tmp_path):
    sequence = tokens(length + 40)
    context = bundle(name).open_context()
    context.append(sequence[:length])
    for token in sequence[length : length + 3]:
        context.step(token)
    bundle(name).save_context(context, tmp_path / "c")
    loaded = bundle(name).load_context(tmp_path / "c")
    assert loaded.tokens == context.tokens
    assert np.array_equal(loaded.step(5), context.step(5))
    fork = loaded.fork()
    assert np.array_equal(fork.append(sequence[length:]), context.fork().append(sequence[length:]))
    for back in (length + 1, length // 2, 0):
        loaded.rollback(back)
        context.rollback(back)
        assert np.array_equal(loaded.append(sequence[:BLOCK]), context.append(sequence[:BLOCK]))


@pytest.mark.parametrize(
    ("name", "source"), [("t5", 1), ("t5", 20), ("t5", WIDEST + 20), ("bart", 40), ("whisper", 50)]
)
def test_what_was_read_of_an_encoder_is_saved_as_well(name, source, tmp_path, monkeypatch):
    given = np.array([tokens(source)])
    if name == "whisper":
        given = np.random.default_rng(0).standard_normal((1, 8, 100)).astype(np.float32)
    context, sequence = bundle(name).open_context(given), tokens(70)
    context.append(sequence[:33])
    context.step(sequence[33])
    bundle(name).save_context(context, tmp_path / "c")
    monkeypatch.setattr(EncoderRun, "run", None)  # the encoder does not run again
    loaded = bundle(name).load_context(tmp_path / "c")
    assert loaded.source.tokens == context.source.tokens == source
    assert loaded.tokens == context.tokens
    assert np.array_equal(loaded.step(5), context.step(5))
    assert np.array_equal(loaded.fork().append(sequence), context.fork().append(sequence))
    loaded.rollback(3)
    context.rollback(3)
    assert np.array_equal(loaded.append(sequence[:BLOCK]), context.append(sequence[:BLOCK]))


@pytest.mark.parametrize("length", [BLOCK - 2, 2 * BLOCK + 3])
def test_steps_read_8_bits_as_before(length, tmp_path):
    context, plain = bundle("llama").open_context(pages="int8-steps"), bundle("llama").open_context()
    for one in (context, plain):
        one.append(tokens(length))
        for token in tokens(BLOCK // 2, 1):
            one.step(token)
    bundle("llama").save_context(context, tmp_path / "c")
    loaded = bundle("llama").load_context(tmp_path / "c")
    assert loaded.kept.pages == "int8-steps"
    for token in tokens(BLOCK, 2):
        found = loaded.step(token)
        assert np.array_equal(found, context.step(token))
        assert not np.array_equal(found, plain.step(token))
    assert np.array_equal(loaded.append([7]), context.append([7]))


def test_an_encoder_without_rows_is_damaged(tmp_path):
    path, context = tmp_path / "c", bundle("t5").open_context(np.array([tokens(9)]))
    context.append([0])
    bundle("t5").save_context(context, path)
    written, start = path.read_bytes(), len(MAGIC) + DIGEST
    size = int.from_bytes(written[start : start + 8], "little")
    header = json.loads(written[start + 8 : start + 8 + size])
    assert header["source"] == 9
    for wrong in (0, -1, 1 << 40, "none", None):
        text = json.dumps({**header, "source": wrong}).encode()
        rest = len(text).to_bytes(8, "little") + text + written[start + 8 + size :]
        path.write_bytes(MAGIC + sha256(rest).digest() + rest)
        with pytest.raises(InputError, match="is damaged"):
            bundle("t5").load_context(path)


def test_an_empty_context_can_be_saved(tmp_path):
    bundle("llama").save_context(bundle("llama").open_context(), tmp_path / "c")
    loaded = bundle("llama").load_context(tmp_path / "c")
    assert np.array_equal(loaded.append([5, 6]), bundle("llama").open_context().append([5, 6]))


def test_it_is_written_as_every_output_is(tmp_path):
    """No pipe is replaced, and what a killed process left of the same file goes."""
    context, left = bundle("llama").open_context(), tmp_path / ".c.999999999.partial"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is a pipe"):
        bundle("llama").save_context(context, tmp_path / "pipe")
    left.write_bytes(b"half")
    bundle("llama").save_context(context, tmp_path / "c")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "pipe"]


def test_what_is_not_what_was_written_is_refused(tmp_path):
    path, context = tmp_path / "c", bundle("llama").open_context()
    context.append(tokens(20))
    bundle("llama").save_context(context, path)
    written = path.read_bytes()

    def refused(data: bytes) -> str:
        path.write_bytes(data)
        with pytest.raises(InputError) as caught:
            bundle("llama").load_context(path)
        return str(caught.value)

    start = len(MAGIC) + DIGEST
    assert "damaged" in refused(written[:-1])
    assert "damaged" in refused(written[:-9] + b"x" + written[-8:])
    assert "is no saved context" in refused(b"PK" + written)
    size = int.from_bytes(written[start : start + 8], "little")
    header = json.loads(written[start + 8 : start + 8 + size])

    def signed(**changes: object) -> bytes:
        text = json.dumps({**header, **changes}).encode()
        rest = len(text).to_bytes(8, "little") + text + written[start + 8 + size :]
        return MAGIC + sha256(rest).digest() + rest

    assert "another backend" in refused(signed(engines="else"))
    assert "damaged" in refused(signed(tokens=1 << 20))
    assert "damaged" in refused(signed(tokens=1 << 50))
    assert "damaged" in refused(signed(tokens=-1))
    assert "damaged" in refused(signed(tokens="many"))
    assert "damaged" in refused(signed(pages="int8"))
    assert "damaged" in refused(signed(pages=[1]))
    path.write_bytes(signed())
    with pytest.raises(InputError, match="another bundle"):
        bundle("gemma").load_context(path)
    with pytest.raises(InputError, match="another bundle"):
        bundle("gemma").save_context(context, path)
    with pytest.raises(InputError, match="can't be written"):
        bundle("llama").save_context(context, tmp_path / "none" / "c")
    with pytest.raises(InputError, match="can't be read"):
        bundle("llama").load_context(tmp_path / "none")


def test_a_state_is_before_a_place_that_there_is(tmp_path):
    path, context = tmp_path / "c", bundle("mamba").open_context()
    context.append(tokens(2 * BLOCK + 3))
    bundle("mamba").save_context(context, path)
    written, start = path.read_bytes(), len(MAGIC) + DIGEST
    size = int.from_bytes(written[start : start + 8], "little")
    header = json.loads(written[start + 8 : start + 8 + size])
    assert header["earlier"] == BLOCK
    for wrong in (-1, 3 * BLOCK, "none"):
        text = json.dumps({**header, "earlier": wrong}).encode()
        rest = len(text).to_bytes(8, "little") + text + written[start + 8 + size :]
        path.write_bytes(MAGIC + sha256(rest).digest() + rest)
        with pytest.raises(InputError, match="is damaged"):
            bundle("mamba").load_context(path)
