"""The sweep: configurations are made small without losing a kind of layer, and the page says what came out."""

from __future__ import annotations

from typing import Any

import transformers as hf

from tools.breadth.page import render
from tools.breadth.shrink import ORDINARY, VOCABULARY, shrunk
from tools.breadth.tables import TABLES, types_of


def test_every_kind_of_layer_is_kept_and_lists_by_layer_with_it() -> None:
    config: dict[str, Any] = {
        "num_hidden_layers": 6, "hidden_size": 4096, "layer_types": ["a", "a", "b", "a", "c", "b"], "vocab_size": 99999,
        "no_rope_layers": [1, 2, 3, 4, 5, 6], "eos_token_id": [5, 7], "image_token_id": 88888, "sliding_window": None,
        "text_config": {"num_attention_heads": 40},
        "per_layer_config": {"2": {"head_dim": 512}, "3": {"head_dim": 512}},
    }  # fmt: skip
    made = shrunk(config)
    assert made["layer_types"] == ["a", "b", "c"]
    assert (made["num_hidden_layers"], made["no_rope_layers"]) == (3, [1, 3, 5])
    assert made["per_layer_config"] == {"1": {"head_dim": 16}}
    assert ORDINARY <= made["eos_token_id"] < made["image_token_id"] < VOCABULARY == made["vocab_size"]
    assert made["sliding_window"] is None, "a window that the model does not have"
    assert made["text_config"] == {"num_attention_heads": 4}


def test_a_small_llama_is_one() -> None:
    config = hf.LlamaConfig.from_dict(shrunk(hf.LlamaConfig().to_dict()))
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (64, 2, 4)


def test_the_tables_are_the_librarys() -> None:
    assert {"llama": "LlamaForCausalLM"}.items() <= {
        kind.name: kind.architecture for kind in types_of("causal")
    }.items()
    assert all(types_of(table) for table in TABLES)


def test_the_page_counts_and_names() -> None:
    exact = {"outcome": "exact", "compile_seconds": 2.0, "peak_mib": 500, "verified": True}
    found: dict[str, Any] = {
        "causal/one": exact,
        "causal/two": exact | {"verified": False},
        "causal/three": {"outcome": "refused", "message": "is a recurrence\n  fix: x"},
        "causal/four": {"outcome": "off", "output": "hidden", "at": 53, "error": 0.5, "magnitude": 2.0},
        "causal/five": {"outcome": "unmade", "message": "m"},
        "causal/six": exact | {"whole": "has windows on a grid\n  fix: y"},
        "masked/seven": exact,
    }
    page = render(found)
    assert f"| Causal language models | {len(types_of('causal'))} | 6 | 2 | 1 | 1 | 1 | 0 | 1 | 60% |" in page
    assert f"| All | {len(types_of('causal')) + len(types_of('masked'))} | 7 | 3 | 1 | 1 | 1 | 0 | 1 | 67% |" in page
    assert "`verify` agrees on all but two." in page
    assert "at its largest 500 MiB; of each its own): one (2.0 s, 500 MiB), two (2.0 s, 500 MiB)." in page
    assert "| six (2.0 s, 500 MiB) | has windows on a grid |" in page
    assert "| three | refused | is a recurrence |" in page
    assert "hidden at 53 tokens: 5.0e-01 of 2.0e+00" in page
    assert f"Not measured yet ({len(types_of('causal'))}): " in page
    assert "Images" not in page
