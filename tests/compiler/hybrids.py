"""Small random models whose layers are recurrent, one of each kind of scan and of each way to write it."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from tools.breadth.shrink import shrunk

__all__ = ["HYBRIDS", "hybrid"]

HYBRIDS = {
    "lfm2": "Lfm2ForCausalLM",
    "qwen3_next": "Qwen3NextForCausalLM",
    "kimi_linear": "KimiLinearForCausalLM",
    "olmo_hybrid": "OlmoHybridForCausalLM",
    "mamba2": "Mamba2ForCausalLM",
    "nemotron_h": "NemotronHForCausalLM",
    "falcon_h1": "FalconH1ForCausalLM",
    "granitemoehybrid": "GraniteMoeHybridForCausalLM",
    "minimax": "MiniMaxForCausalLM",
    "mamba": "MambaForCausalLM",
    "jamba": "JambaForCausalLM",
    "recurrent_gemma": "RecurrentGemmaForCausalLM",
    "rwkv": "RwkvForCausalLM",
    "xlstm": "xLSTMForCausalLM",
}
"""The class that is made of each type."""


def hybrid(kind: str) -> Any:
    """A model of two layers or a few more, of 64 numbers a token and weights that make every token matter."""
    config_class = transformers.CONFIG_MAPPING[kind]
    entries = shrunk(config_class().to_dict())
    config = config_class.from_dict({name: value for name, value in entries.items() if name != "transformers_version"})
    torch.manual_seed(0)
    model = getattr(transformers, HYBRIDS[kind])(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.12)
    for name, parameter in model.named_parameters():
        if name.endswith("igate_preact.bias"):  # xLSTM writes next to nothing into its memory before it is trained
            torch.nn.init.normal_(parameter)
    return model
