"""Qwen2.5-VL."""

from ._parts import text_config, token_ids

FRAME = ('<|vision_start|>', '<|vision_end|>')
IMAGE_TOKEN, VIDEO_TOKEN = '<|image_pad|>', '<|video_pad|>'
IMAGE_TEXT = f'<|vision_start|>{IMAGE_TOKEN}<|vision_end|>'
SPECIAL_TOKENS = (
    '<|endoftext|>',
    None,
    '<|im_end|>',
    None,
    '<|im_start|>',
    *FRAME,
    '<|vision_pad|>',
    IMAGE_TOKEN,
    VIDEO_TOKEN,
)
TOKENIZER = 'Qwen2TokenizerFast'
SCORED_SIZE = None
SHARED = dict(qwen2_vl=dict(vision_config=dict(embed_dim=16, hidden_size=16, mlp_ratio=2)))
LARGEST_IMAGE = (500, 500), dict(max_pixels=112 * 112)
WRITTEN = (
    '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n'
    f'<|im_start|>user\n{IMAGE_TEXT}Q<|im_end|>\n<|im_start|>assistant\n[A<|im_end|>]\n'
    '<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\n[B<|im_end|>]\n'
)


def config():
    ids = token_ids(SPECIAL_TOKENS)
    return dict(
        vision_config=dict(
            depth=2,
            hidden_size=16,
            intermediate_size=32,
            num_heads=2,
            out_hidden_size=16,
            patch_size=14,
            spatial_merge_size=2,
            temporal_patch_size=2,
            window_size=56,
            fullatt_block_indexes=[1],
            initializer_range=0.2,
        ),
        text_config=text_config(SPECIAL_TOKENS, rope_scaling=dict(type='mrope', mrope_section=[1, 1, 0])),
        image_token_id=ids[IMAGE_TOKEN],
        video_token_id=ids[VIDEO_TOKEN],
        vision_start_token_id=ids[FRAME[0]],
        vision_end_token_id=ids[FRAME[1]],
        tie_word_embeddings=False,
    )


def processor(tokenizer):
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessorFast, Qwen2VLVideoProcessor

    pixels = dict(min_pixels=28 * 28, max_pixels=112 * 112)
    return Qwen2_5_VLProcessor(Qwen2VLImageProcessorFast(**pixels), tokenizer, Qwen2VLVideoProcessor(**pixels))
