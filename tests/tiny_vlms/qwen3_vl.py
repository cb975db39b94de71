"""Qwen3-VL."""

from ._parts import text_config, token_ids
from .qwen2_5_vl import FRAME, IMAGE_TEXT, IMAGE_TOKEN, SCORED_SIZE, SPECIAL_TOKENS, TOKENIZER

__all__ = ['FRAME', 'IMAGE_TEXT', 'IMAGE_TOKEN', 'SCORED_SIZE', 'SPECIAL_TOKENS', 'TOKENIZER', 'WRITTEN']
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
SHARED = dict(qwen3_vl_moe=dict(text_config=EXPERTS))
LARGEST_IMAGE = (500, 500), dict(max_pixels=128 * 128)
WRITTEN = (
    f'<|im_start|>user\n{IMAGE_TEXT}Q<|im_end|>\n<|im_start|>assistant\n[A<|im_end|>]\n'
    '<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\n[B<|im_end|>]\n'
)


def config():
    ids = token_ids(SPECIAL_TOKENS)
    # Eight frequencies: 0, 3, 6 and 7 turn with the frame, 1 and 4 with the row, 2 and 5 with the column.
    rope = dict(rope_type='default', mrope_section=[4, 2, 2], mrope_interleaved=True)
    return dict(
        vision_config=dict(
            depth=2,
            hidden_size=16,
            intermediate_size=32,
            num_heads=2,
            out_hidden_size=16,
            patch_size=16,
            spatial_merge_size=2,
            temporal_patch_size=2,
            num_position_embeddings=16,
            deepstack_visual_indexes=[0, 1],
            initializer_range=0.2,
        ),
        # One layer more than DeepStack feeds: what is added after the last one reaches no answer.
        text_config=text_config(SPECIAL_TOKENS, num_hidden_layers=3, head_dim=16, rope_scaling=rope),
        image_token_id=ids[IMAGE_TOKEN],
        video_token_id=ids['<|video_pad|>'],
        vision_start_token_id=ids[FRAME[0]],
        vision_end_token_id=ids[FRAME[1]],
        tie_word_embeddings=False,
    )


def processor(tokenizer):
    from transformers import Qwen2VLImageProcessorFast, Qwen3VLProcessor, Qwen3VLVideoProcessor

    images = Qwen2VLImageProcessorFast(min_pixels=32 * 32, max_pixels=128 * 128, patch_size=16)
    return Qwen3VLProcessor(images, tokenizer, Qwen3VLVideoProcessor())
