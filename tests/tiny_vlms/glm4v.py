"""GLM-4.1V. Its tokenizer ends texts with <|endoftext|>, and its answers with the token of the next question."""

from ._parts import text_config, token_ids

FRAME = ('<|begin_of_image|>', '<|end_of_image|>')
IMAGE_TOKEN, VIDEO_TOKEN = '<|image|>', '<|video|>'
IMAGE_TEXT = f'{FRAME[0]}{IMAGE_TOKEN}{FRAME[1]}'
SPECIAL_TOKENS = (
    '<|endoftext|>',
    None,
    '<|user|>',
    None,
    '[gMASK]',
    '<sop>',
    '<|system|>',
    '<|assistant|>',
    '<|observation|>',
    *FRAME,
    '<|begin_of_video|>',
    '<|end_of_video|>',
    IMAGE_TOKEN,
    VIDEO_TOKEN,
)
TOKENIZER = 'PreTrainedTokenizerFast'
SCORED_SIZE = None
# Two frames of 112 x 112 pixels.
SIZE = dict(shortest_edge=2 * 28 * 28, longest_edge=2 * 112 * 112)
LARGEST_IMAGE = (500, 500), dict(size=SIZE)
SMALLEST_SIDE = 28  # Version 4 refuses smaller ones, version 5 enlarges them.
# The first layer is dense.
EXPERTS = dict(
    n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, first_k_dense_replace=1, n_shared_experts=1
)
SHARED = dict(glm4v_moe=dict(text_config=EXPERTS), glm46v={})
WRITTEN = f'[gMASK]<sop><|user|>\n{IMAGE_TEXT}Q<|assistant|>\n[A<|user|>]\nR<|assistant|>\n[B<|user|>]'


def config():
    ids = token_ids(SPECIAL_TOKENS)
    # Half of a head turns: of its four frequencies, two with the frame, one with the row and one with the column.
    rope = dict(rope_type='default', mrope_section=[2, 1, 1])
    shape = dict(hidden_size=32, num_attention_heads=2, num_key_value_heads=1, partial_rotary_factor=0.5)
    return dict(
        vision_config=dict(
            depth=2,
            hidden_size=16,
            intermediate_size=32,
            num_heads=2,
            out_hidden_size=32,
            image_size=56,
            patch_size=14,
            spatial_merge_size=2,
            temporal_patch_size=2,
            initializer_range=0.2,
        ),
        text_config=text_config(SPECIAL_TOKENS, **shape, rope_scaling=rope),
        image_token_id=ids[IMAGE_TOKEN],
        video_token_id=ids[VIDEO_TOKEN],
        image_start_token_id=ids[FRAME[0]],
        image_end_token_id=ids[FRAME[1]],
        video_start_token_id=ids['<|begin_of_video|>'],
        video_end_token_id=ids['<|end_of_video|>'],
        tie_word_embeddings=False,
    )


def processor(tokenizer):
    import transformers
    from transformers import Glm4vProcessor, Glm4vVideoProcessor

    # Version 5 dropped the slow one, and with it the name of the other.
    images = getattr(transformers, 'Glm4vImageProcessorFast', None) or transformers.Glm4vImageProcessor
    return Glm4vProcessor(images(size=SIZE), tokenizer, Glm4vVideoProcessor())
