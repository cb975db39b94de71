"""Tiny causal language models of transformers for tests: the options by which their configs differ from Llama's."""

import tiny_sphinx
import torch

EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8)
OPTIONS = dict(
    llama={},
    qwen2={},
    qwen3=dict(head_dim=4),
    mistral=dict(head_dim=4),
    gemma=dict(head_dim=4),
    gemma2=dict(head_dim=4, query_pre_attn_scalar=4, sliding_window=8, final_logit_softcapping=3.0),
    gemma3_text=dict(head_dim=4, query_pre_attn_scalar=4, sliding_window=8),
    phi3={},
    gpt2=dict(n_embd=16, n_layer=2, n_head=2),
    gpt_neox=dict(num_attention_heads=2),
    opt=dict(hidden_size=32, word_embed_proj_dim=16, ffn_dim=32, init_std=0.2),
    olmo2={},
    cohere2=dict(head_dim=4, logit_scale=0.25, sliding_window=8),
    llama4_text=dict(head_dim=4, num_local_experts=2, intermediate_size_mlp=32, attention_chunk_size=64),
    glm4=dict(head_dim=4),
    granite=dict(logits_scaling=4.0, embedding_multiplier=2.0),
    qwen3_moe=dict(head_dim=4, **EXPERTS),
    falcon={},
    qwen3_5_text=dict(head_dim=8, layer_types=['full_attention', 'linear_attention']),
)


def known_types():
    """The types of models that the installed transformers has."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return [name for name in OPTIONS if name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]


def language_config(model_type):
    """A fresh config of two layers, for ``SphinxModel(language_model=dict(config=...))``."""
    # Of the types whose released checkpoints tie them.
    tied = model_type in ('gemma', 'gemma2', 'gemma3_text', 'gpt2', 'opt', 'cohere2', 'falcon')
    dropouts = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, dropout=0.0, hidden_dropout=0.0)
    options = dropouts | OPTIONS[model_type]
    return tiny_sphinx.language_config(tie_word_embeddings=tied) | dict(options, model_type=model_type)


def language_model(model_type):
    """The library's model with random weights, the same at every call."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(**language_config(model_type))).eval()


def whole_config(model_type):
    """The config of a model with a vision tower whose language model is one of the above: gemma3 or llama4."""
    vision = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    sizes = (
        dict(vision_output_dim=16, projector_input_dim=16, projector_output_dim=16) if model_type == 'llama4' else {}
    )
    return dict(
        model_type=model_type,
        text_config=language_config(f'{model_type}_text'),
        vision_config=dict(vision, image_size=28, patch_size=14, **sizes),
    )
