"""What families have beside a backbone: task heads, a second sequence, images and audio; and what is refused."""

from __future__ import annotations

import transformers as hf

from tools.zoo.sizes import (
    BART,
    BOTH,
    DISTILBERT,
    GPT2,
    GROUPED,
    IMAGE,
    LEARNED,
    MODERNBERT,
    SPECTROGRAM,
    T5,
    WHISPER,
    family,
)

__all__ = ["REFUSED", "TASKS"]

_HEADS = (
    family("BERT, masked language model", hf.BertForMaskedLM, hf.BertConfig, LEARNED),
    family("BERT, sequence classification", hf.BertForSequenceClassification, hf.BertConfig, LEARNED, num_labels=3),
    family("BERT, token classification", hf.BertForTokenClassification, hf.BertConfig, LEARNED, num_labels=5),
    family("BERT, question answering", hf.BertForQuestionAnswering, hf.BertConfig, LEARNED),
    family(
        "DistilBERT, sequence classification",
        hf.DistilBertForSequenceClassification,
        hf.DistilBertConfig,
        DISTILBERT,
    ),
    family("RoBERTa, sequence classification", hf.RobertaForSequenceClassification, hf.RobertaConfig, LEARNED),
    family("XLM-RoBERTa, masked language model", hf.XLMRobertaForMaskedLM, hf.XLMRobertaConfig, LEARNED),
    family(
        "ModernBERT, sequence classification",
        hf.ModernBertForSequenceClassification,
        hf.ModernBertConfig,
        MODERNBERT,
    ),
    family(
        "Longformer, masked language model",
        hf.LongformerForMaskedLM,
        hf.LongformerConfig,
        LEARNED,
        attention_window=[8, 8],
    ),
    family(
        "Llama, classification by the last real token",
        hf.LlamaForSequenceClassification,
        hf.LlamaConfig,
        GROUPED,
        num_labels=3,
        pad_token_id=0,
    ),
    family(
        "Llama, classification by the last token",
        hf.LlamaForSequenceClassification,
        hf.LlamaConfig,
        GROUPED,
        num_labels=3,
    ),
    family(
        "GPT-2, sequence classification",
        hf.GPT2ForSequenceClassification,
        hf.GPT2Config,
        {**GPT2, "pad_token_id": 0},
        num_labels=3,
    ),
    family("CLIP, texts", hf.CLIPTextModel, hf.CLIPTextConfig, LEARNED, eos_token_id=2),
)

_TWO_SEQUENCES = (
    family("T5", hf.T5ForConditionalGeneration, hf.T5Config, T5, decoder_start_token_id=0, lengths=BOTH),
    family("T5 without a head", hf.T5Model, hf.T5Config, T5, lengths=BOTH),
    family("BART", hf.BartForConditionalGeneration, hf.BartConfig, BART, lengths=BOTH),
    family("Whisper", hf.WhisperForConditionalGeneration, hf.WhisperConfig, WHISPER, lengths=SPECTROGRAM),
)

_BY_DISTANCE = (
    family(
        "DeBERTa v2",
        hf.DebertaV2Model,
        hf.DebertaV2Config,
        LEARNED,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
    ),
    family(
        "XLNet",
        hf.XLNetModel,
        hf.XLNetConfig,
        {},
        vocab_size=67,
        d_model=32,
        n_layer=2,
        n_head=4,
        d_inner=48,
    ),
)

_ONE_SIZE = (
    family("Whisper, audio classification", hf.WhisperForAudioClassification, hf.WhisperConfig, WHISPER, lengths=(50,)),
    family("ViT", hf.ViTModel, hf.ViTConfig, IMAGE, lengths=(50,)),
    family("ViT, image classification", hf.ViTForImageClassification, hf.ViTConfig, IMAGE, lengths=(50,)),
    family("DINOv2", hf.Dinov2Model, hf.Dinov2Config, IMAGE, mlp_ratio=2, lengths=(50,)),
    family("CLIP, images", hf.CLIPVisionModel, hf.CLIPVisionConfig, IMAGE, lengths=(50,)),
)

_RECURRENT = (
    family("RWKV", hf.RwkvForCausalLM, hf.RwkvConfig, {}, vocab_size=67, hidden_size=32, num_hidden_layers=2),
    family(
        "xLSTM",
        hf.xLSTMForCausalLM,
        hf.xLSTMConfig,
        {},
        vocab_size=67,
        hidden_size=64,
        num_hidden_layers=2,
        num_heads=2,
        ffn_round_up_to_multiple_of=32,
    ),
)

TASKS = (*_HEADS, *_TWO_SEQUENCES, *_BY_DISTANCE, *_ONE_SIZE, *_RECURRENT)
"""Models with a head, with a decoder beside an encoder, with scores of distance, of images and audio, or of states."""

REFUSED = (
    family(
        "FNet",
        hf.FNetModel,
        hf.FNetConfig,
        {},
        vocab_size=67,
        hidden_size=32,
        num_hidden_layers=2,
        intermediate_size=48,
        refusal="Fourier transform",
    ),
    family(
        "ProphetNet",
        hf.ProphetNetModel,
        hf.ProphetNetConfig,
        {},
        vocab_size=67,
        hidden_size=32,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        num_encoder_layers=2,
        num_decoder_layers=2,
        num_encoder_attention_heads=4,
        num_decoder_attention_heads=4,
        refusal="a bias that depends on content",
    ),
)
"""What can't be exact, and is not compiled."""
