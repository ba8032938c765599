"""Padding, batches and documents in one sequence: what is run for them, and where its rows end up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.runtime.axes_models import WIDTH, classifier, encoder_decoder
from tests.runtime.tiny_bundle import write_tiny
from tests.runtime.tiny_model import Tiny, random_tokens, reference
from twoheads.graphs.errors import InputError
from twoheads.graphs.program.program import Limit, Pooling
from twoheads.runtime import load

CAUSAL = Tiny()
ENCODER = Tiny(masks=("full",), pooling=Pooling("mean", True))
MODELS = {
    "causal": CAUSAL,
    "encoder": ENCODER,
    "window": Tiny(masks=("causal & window(9, 0)", "causal")),
    "bias": Tiny(masks=("full",), table_reach=5),
    "alibi": Tiny(slope=True),
    "limited": Tiny(block_size=16, layers=1, max_length=Limit(40, "a table")),
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("bundles")
    return {name: load(write_tiny(root / str(at), tiny)) for at, (name, tiny) in enumerate(MODELS.items())}


def mask_of(length: int, left: int, right: int) -> Any:
    mask = np.ones(length, np.int64)
    mask[:left] = 0
    mask[length - right :] = 0
    return mask


def expected(tiny: Tiny, tokens: Any, mask: Any, output: str) -> Any:
    """The whole model on the real tokens at their places, and zeros elsewhere."""
    kept = np.flatnonzero(mask)
    want = reference(tiny, tokens[kept], kept)
    if output == "last":
        return want["logits"][-1:]
    if output == "embedding":
        return want["embedding"]
    rows = np.zeros((len(tokens), want[output].shape[-1]))
    rows[kept] = want[output]
    return rows


def close(result: Any, want: Any) -> None:
    assert result.array.shape == want.shape
    np.testing.assert_allclose(result.array, want, atol=5e-5 * np.abs(want).max())
    assert result.report.engine_calls - result.report.repeated_calls == result.report.formula_calls


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize(("left", "right"), [(0, 5), (5, 0), (3, 9), (25, 0), (0, 0), (0, 36)])
def test_padding_on_either_side(bundles: Any, name: str, left: int, right: int) -> None:
    tiny, bundle = MODELS[name], bundles[name]
    tokens, mask = random_tokens(tiny, 37), mask_of(37, left, right)
    outputs = [*bundle.program.outputs]
    for output in outputs:
        result = bundle.run(tokens, output=output, attention_mask=mask)
        close(result, expected(tiny, tokens, mask, output))
        assert result.report.length == mask.sum()
        padding = mask == 0
        if output in ("hidden", "logits"):
            assert not result.array[padding].any()


def test_a_padding_mask_is_not_ignored(bundles: Any) -> None:
    tokens, mask = random_tokens(ENCODER, 37), mask_of(37, 0, 9)
    without = bundles["encoder"].run(tokens, output="hidden").array
    masked = bundles["encoder"].run(tokens, output="hidden", attention_mask=mask).array
    assert np.abs(without - masked)[mask == 1].max() > 0.01


@pytest.mark.parametrize("pack", ["auto", "off"])
@pytest.mark.parametrize("form", ["arrays", "mapping", "lists", "floats"])
def test_a_batch_is_a_list_of_inputs(bundles: Any, form: str, pack: str) -> None:
    tokens = np.stack([random_tokens(ENCODER, 21, seed) for seed in range(4)])
    masks = np.stack([mask_of(21, *sides) for sides in ((0, 0), (0, 15), (16, 0), (3, 4))])
    bundle = bundles["encoder"]
    if form == "mapping":
        results = bundle.run({"tokens": tokens, "attention_mask": masks}, output="hidden", pack=pack)
    elif form == "lists":
        given = [{"tokens": row, "attention_mask": mask} for row, mask in zip(tokens, masks, strict=True)]
        results = bundle.run(given, output="hidden", pack=pack)
    else:
        mask: Any = masks.astype(np.float32) if form == "floats" else masks.tolist()
        results = bundle.run(tokens, output="hidden", attention_mask=mask, pack=pack)
    for row, mask, result in zip(tokens, masks, results, strict=True):
        close(result, expected(ENCODER, row, mask, "hidden"))
    assert results[1].report.requests == (4 if pack == "auto" else 1)
    assert (results[1].report is results[2].report) == (pack == "auto")


def test_a_batch_without_a_mask(bundles: Any) -> None:
    tokens = np.stack([random_tokens(ENCODER, 21, seed) for seed in range(3)])
    results = bundles["encoder"].run(tokens, output="embedding")
    for row, result in zip(tokens, results, strict=True):
        close(result, reference(ENCODER, row)["embedding"])


def test_positions_that_are_given_stay(bundles: Any) -> None:
    tokens, mask, at = random_tokens(CAUSAL, 20), mask_of(20, 6, 0), np.maximum(np.arange(20) - 6, 0)
    result = bundles["causal"].run({"tokens": tokens, "positions": at}, output="hidden", attention_mask=mask)
    np.testing.assert_allclose(result.array[6:], reference(CAUSAL, tokens[6:])["hidden"], atol=2e-4)


@pytest.mark.parametrize("name", ["causal", "encoder"])
def test_holes_where_no_layer_counts_distances(bundles: Any, name: str) -> None:
    tiny, tokens = MODELS[name], random_tokens(MODELS[name], 37)
    mask = (np.arange(37) % 3 != 1).astype(np.int64)
    close(bundles[name].run(tokens, output="hidden", attention_mask=mask), expected(tiny, tokens, mask, "hidden"))


@pytest.mark.parametrize(
    ("name", "why"), [("window", "sees causal & window(9, 0)"), ("bias", "bias by distance"), ("alibi", "bias by")]
)
def test_holes_where_a_layer_counts_distances(bundles: Any, name: str, why: str) -> None:
    tokens = random_tokens(MODELS[name], 10)
    with pytest.raises(InputError) as caught:
        bundles[name].run(tokens, attention_mask=[1, 1, 1, 0, 1, 1, 1, 1, 1, 1])
    assert "attention0 counts distances" in str(caught.value)
    assert why in str(caught.value)
    assert "at its ends only" in caught.value.fix


def test_rows_of_a_padded_input(bundles: Any) -> None:
    tokens, mask = random_tokens(CAUSAL, 37), mask_of(37, 4, 8)
    whole = expected(CAUSAL, tokens, mask, "logits")
    result = bundles["causal"].run(tokens, output="logits", positions=[28, 4, -9], attention_mask=mask)
    close(result, whole[[28, 4, 28]])
    for at in (3, 29, -1):
        with pytest.raises(InputError, match="is padding"):
            bundles["causal"].run(tokens, positions=[5, at], attention_mask=mask)


def test_the_last_position_of_a_padded_input_must_exist(bundles: Any) -> None:
    bundle, tokens = bundles["limited"], random_tokens(CAUSAL, 41)
    with pytest.raises(InputError, match="a table ends at 40"):
        bundle.run(tokens, attention_mask=mask_of(41, 10, 0))


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.ones(4), "has shape [4], the input has 5 tokens"),
        (np.ones((5, 5)), "has shape [5, 5]"),
        ([1, 1, 2, 1, 1], "more than 0 and 1"),
        ([0.5] * 5, "more than 0 and 1"),
        (["a"] * 5, "more than 0 and 1"),
        ([[1], [1, 2]], "has shape"),
        (np.zeros(5), "hides every token"),
        (None, ""),
    ],
)
def test_bad_masks(bundles: Any, mask: Any, words: str) -> None:
    if mask is None:
        assert bundles["causal"].run([1, 2, 3, 4, 5], attention_mask=None).array is not None
        return
    with pytest.raises(InputError) as caught:
        bundles["causal"].run([1, 2, 3, 4, 5], attention_mask=mask)
    assert words in str(caught.value)
    assert caught.value.fix


def test_masks_that_do_not_fit_the_call(bundles: Any) -> None:
    bundle = bundles["causal"]
    with pytest.raises(InputError, match="has 3 rows for 2 inputs"):
        bundle.run([[1, 2], [3]], attention_mask=np.ones((3, 2)))
    with pytest.raises(InputError, match="given twice"):
        bundle.run({"tokens": [1, 2], "attention_mask": [1, 1]}, attention_mask=[1, 1])
    with pytest.raises(InputError, match="rows that are not computed"):
        bundle.run([1, 2, 3], attention_mask=[1, 1, 0], sink=object())


def test_rows_before_the_tokens_know_no_padding(tmp_path: Any) -> None:
    bundle = classifier().load(tmp_path / "b")
    x = np.ones((5, WIDTH), np.float32)
    assert bundle.run(x, attention_mask=[1] * 5).array is not None
    with pytest.raises(InputError, match="makes n\\+1 rows of n tokens"):
        bundle.run(x, attention_mask=[1, 1, 1, 1, 0])


def test_padding_of_the_encoder(tmp_path: Any) -> None:
    model = encoder_decoder()
    bundle = model.load(tmp_path / "b")
    rng = np.random.default_rng(0)
    source, target = (rng.standard_normal((length, WIDTH)).astype(np.float32) for length in (20, 11))
    mask = mask_of(20, 2, 7)
    result = bundle.run({"source": source, "target": target}, output="hidden", attention_mask=mask)
    close(result, model.expected({"source": source[2:13], "target": target})["hidden"])
    some = bundle.run({"source": source, "target": target}, "hidden", positions=[3], attention_mask=mask)
    np.testing.assert_array_equal(some.array, result.array[[3]])


LENGTHS = [3, 20, 1, 7, 6]


@pytest.mark.parametrize("name", ["causal", "encoder", "window", "bias"])
@pytest.mark.parametrize("form", ["lengths", "numbers"])
def test_documents_see_themselves_only(bundles: Any, name: str, form: str) -> None:
    tiny, bundle = MODELS[name], bundles[name]
    tokens = random_tokens(tiny, sum(LENGTHS))
    documents = LENGTHS if form == "lengths" else np.repeat([0, 1, 4, 5, 9], LENGTHS)
    parts = np.split(tokens, np.cumsum(LENGTHS)[:-1])
    for output in bundle.program.outputs:
        result = bundle.run(tokens, output=output, documents=documents)
        wanted = [reference(tiny, part)["logits" if output == "last" else output] for part in parts]
        wanted = [part[-1] for part in wanted] if output == "last" else wanted
        close(result, np.concatenate(wanted) if output in ("hidden", "logits") else np.stack(wanted))
        assert result.report.length == len(tokens)
        assert result.report.requests == len(LENGTHS)
        assert sum(stage.calls for stage in result.report.stages) == result.report.engine_calls


def test_short_documents_share_blocks(bundles: Any) -> None:
    lengths = [3] * 20
    tokens = random_tokens(CAUSAL, 60)
    together = bundles["causal"].run(tokens, output="hidden", documents=lengths)
    apart = bundles["causal"].run(tokens, output="hidden", documents=lengths, pack="off")
    np.testing.assert_allclose(together.array, apart.array, atol=2e-4)
    assert together.report.blocks == 4  # 5 requests of 3 tokens in a block of 16
    assert apart.report.blocks == 20


def test_rows_of_documents(bundles: Any) -> None:
    tokens = random_tokens(CAUSAL, sum(LENGTHS))
    whole = bundles["causal"].run(tokens, output="logits", documents=LENGTHS).array
    some = bundles["causal"].run(tokens, output="logits", documents=LENGTHS, positions=[30, 2, -1, 3, 2])
    np.testing.assert_allclose(some.array, whole[[30, 2, 36, 3, 2]], atol=1e-5)
    assert some.report.requests == 4, "the document of which no row is wanted is not run"


@pytest.mark.parametrize(
    ("documents", "words"),
    [
        ([2, 2], "have 4 tokens together, the input has 5"),
        ([2, 0, 3], "hold the length 0 in an input of 5 tokens"),
        ([6, -1], "hold the length 6 in an input of 5 tokens"),
        ([-3, 8], "hold the length -3"),
        ([2**62, 2**62], "hold the length 4611686018427387904"),
        ([0, 1, 0, 1, 1], "become smaller"),
        ([1, 1, 1, 1, 1], "as many documents, or one"),
        ([2.5, 2.5], "float64"),
        ([[1], [1, 2]], "are float64"),
        ([], "float64[0]"),
    ],
)
def test_bad_documents(bundles: Any, documents: Any, words: str) -> None:
    with pytest.raises(InputError) as caught:
        bundles["causal"].run([1, 2, 3, 4, 5], documents=documents)
    assert words in str(caught.value)
    assert caught.value.fix


def test_documents_that_do_not_fit_the_call(bundles: Any, tmp_path: Any) -> None:
    with pytest.raises(InputError, match="for 2 inputs"):
        bundles["causal"].run([[1, 2], [3]], documents=[1, 2])
    with pytest.raises(InputError, match="for an attention_mask"):
        bundles["causal"].run([1, 2, 3], documents=[1, 2], attention_mask=[1, 1, 1])
    with pytest.raises(InputError, match="several documents"):
        bundles["causal"].run([1, 2, 3], documents=[1, 2], sink=object())
    bundle = encoder_decoder().load(tmp_path / "b")
    x = np.ones((4, WIDTH), np.float32)
    with pytest.raises(InputError, match="no single sequence"):
        bundle.run({"source": x, "target": x}, documents=[2, 2])
