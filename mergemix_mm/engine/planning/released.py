"""Configs of released models, so that they can be built at full size where the hub cannot be reached.

They hold what the config.json on the hub says of sizes and of the names of weights, and nothing else. As a program,
this module writes them to a JSON file for ``--hub-config`` of tools/analysis_tools:

    python -m mergemix_mm.engine.planning.released hub.json
"""

import argparse
from typing import Any

from ...utils.files import write_json


def _llama(**config: Any) -> dict[str, Any]:
    """Llama 2 7B with some changes."""
    return (
        dict(
            model_type='llama',
            vocab_size=32000,
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=32,
            max_position_embeddings=4096,
            rms_norm_eps=1e-5,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            tie_word_embeddings=False,
        )
        | config
    )


def _clip(**config: Any) -> dict[str, Any]:
    """The image half of CLIP ViT-L/14 with some changes."""
    return (
        dict(
            model_type='clip_vision_model',
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=224,
            patch_size=14,
            projection_dim=768,
        )
        | config
    )


def _janus(width: int, inner: int, layers: int, heads: int) -> dict[str, Any]:
    """Janus-Pro. The vision tower and the VQ model are the same in both sizes."""
    return dict(
        model_type='janus',
        image_token_id=100581,
        text_config=_llama(
            vocab_size=102400,
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=16384,
            rms_norm_eps=1e-6,
            pad_token_id=100002,
            bos_token_id=100000,
            eos_token_id=100001,
        ),
        vision_config=dict(
            hidden_size=1024,
            num_hidden_layers=24,
            num_attention_heads=16,
            mlp_ratio=4.0,
            image_size=384,
            patch_size=16,
            num_image_tokens=576,
            projection_dim=width,
            depth=2,
        ),
        vq_config=dict(
            embed_dim=8,
            num_embeddings=16384,
            latent_channels=256,
            base_channels=128,
            channel_multiplier=[1, 1, 2, 2, 4],
            num_res_blocks=2,
            projection_dim=width,
            image_token_embed_dim=width,
            num_hidden_layers=2,
        ),
    )


def _emu3() -> dict[str, Any]:
    # The part of the tokenizer's vocabulary that the model reads: image markers, digits and codes.
    vocabulary = {
        '<image>': 151648,
        '<|extra_200|>': 151846,
        '<|extra_201|>': 151847,
        '<|extra_203|>': 151849,
        '<|image token|>': 151851,
        '<|image start|>': 151852,
        '<|image end|>': 151853,
        '*': 9,
        **{str(digit): 15 + digit for digit in range(10)},
        **{f'<|visual token {code:06d}|>': 151854 + code for code in range(32768)},
    }
    return dict(
        model_type='emu3',
        text_config=dict(
            model_type='emu3_text_model',
            vocab_size=184622,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            max_position_embeddings=9216,
            rms_norm_eps=1e-5,
            rope_theta=1e6,
            attention_dropout=0.1,
            pad_token_id=151643,
            bos_token_id=151849,
            eos_token_id=151850,
            tie_word_embeddings=False,
        ),
        vq_config=dict(
            codebook_size=32768,
            embed_dim=4,
            latent_channels=4,
            temporal_downsample_factor=4,
            base_channels=256,
            channel_multiplier=[1, 2, 2, 4],
            num_res_blocks=2,
            attn_resolutions=[3],
            hidden_size=1024,
        ),
        vocabulary_map=vocabulary,
    )


def _qwen2_5_vl_3b() -> dict[str, Any]:
    return dict(
        model_type='qwen2_5_vl',
        text_config=dict(
            model_type='qwen2_5_vl_text',
            vocab_size=151936,
            hidden_size=2048,
            intermediate_size=11008,
            num_hidden_layers=36,
            num_attention_heads=16,
            num_key_value_heads=2,
            max_position_embeddings=128000,
            rms_norm_eps=1e-6,
            rope_theta=1e6,
            rope_scaling=dict(type='mrope', mrope_section=[16, 24, 24]),
            bos_token_id=151643,
            eos_token_id=151645,
            tie_word_embeddings=True,
        ),
        vision_config=dict(
            depth=32,
            hidden_size=1280,
            intermediate_size=3420,
            num_heads=16,
            out_hidden_size=2048,
            patch_size=14,
            spatial_merge_size=2,
            temporal_patch_size=2,
            window_size=112,
            fullatt_block_indexes=[7, 15, 23, 31],
        ),
        image_token_id=151655,
        video_token_id=151656,
        vision_start_token_id=151652,
        vision_end_token_id=151653,
        tie_word_embeddings=True,
    )


def _llava() -> dict[str, Any]:
    return dict(
        model_type='llava',
        vision_config=_clip(image_size=336),
        text_config=_llama(vocab_size=32064),
        image_token_index=32000,
        image_seq_length=576,
        vision_feature_layer=-2,
        vision_feature_select_strategy='default',
        tie_word_embeddings=False,
    )


RELEASED = {
    'llava-hf/llava-1.5-7b-hf': _llava(),
    'Qwen/Qwen2.5-VL-3B-Instruct': _qwen2_5_vl_3b(),
    'deepseek-community/Janus-Pro-1B': _janus(2048, 5632, 24, 16),
    'deepseek-community/Janus-Pro-7B': _janus(4096, 11008, 30, 32),
    'BAAI/Emu3-Gen-hf': _emu3(),
    'meta-llama/Llama-2-7b-hf': _llama(),
    'TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T': _llama(
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_key_value_heads=4,
        max_position_embeddings=2048,
    ),
    'openai/clip-vit-large-patch14': _clip(),
    'openai/clip-vit-base-patch16': _clip(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        patch_size=16,
        projection_dim=512,
    ),
    'facebook/dinov2-giant': dict(
        model_type='dinov2',
        hidden_size=1536,
        num_hidden_layers=40,
        num_attention_heads=24,
        mlp_ratio=4,
        image_size=518,
        patch_size=14,
        use_swiglu_ffn=True,
    ),
    'Salesforce/blip2-itm-vit-g': dict(
        model_type='blip-2',
        image_text_hidden_size=256,
        num_query_tokens=32,
        vision_config=dict(
            model_type='blip_2_vision_model',
            hidden_size=1408,
            intermediate_size=6144,
            num_hidden_layers=39,
            num_attention_heads=16,
            image_size=224,
            patch_size=14,
        ),
        qformer_config=dict(
            model_type='blip_2_qformer',
            vocab_size=30523,
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            encoder_hidden_size=1408,
            cross_attention_frequency=2,
            use_qformer_text_input=True,
        ),
    ),
}
# Folders that an earlier stage of training writes, and the model that they hold.
FOLDERS = {
    'work_dirs/llava-v1.5-7b-init': 'llava-hf/llava-1.5-7b-hf',
    'work_dirs/llava-v1.5-7b_8xb32-projector-coslr-1e_llava-pretrain558k/pretrained': 'llava-hf/llava-1.5-7b-hf',
    'work_dirs/sphinx-7b-mixed': 'meta-llama/Llama-2-7b-hf',
    'work_dirs/sphinx-7b_32xb8-align-coslr-20000i-fsdp_laion400m/pretrained': 'meta-llama/Llama-2-7b-hf',
    'work_dirs/sphinx-light-7b_32xb8-projector-coslr-20000i_laion400m/pretrained': 'meta-llama/Llama-2-7b-hf',
}


def main() -> None:
    """Write them all."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('file', help='JSON file to write: {name: config}')
    write_json(parser.parse_args().file, RELEASED | {folder: RELEASED[name] for folder, name in FOLDERS.items()})


if __name__ == '__main__':
    main()
