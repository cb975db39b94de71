"""LLaVA-OneVision."""

from ._parts import text_config, token_ids, tower_config

SPECIAL_TOKENS = ('<|endoftext|>', None, '<|im_end|>', None, '<|im_start|>', '<image>', '<video>')
TOKENIZER = 'Qwen2TokenizerFast'
NESTS_IMAGES, SKIPS_TEXTS, ONE_RUN = True, True, False
LARGEST_IMAGE = (84, 84), dict()
WRITTEN = (
    '<|im_start|>user\n<image>\nQ<|im_end|>\n<|im_start|>assistant\n[A<|im_end|>]\n'
    '<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\n[B<|im_end|>]\n'
)
PINPOINTS = [[28 * rows, 28 * columns] for rows in (1, 2, 3) for columns in (1, 2, 3)]
# Four tiles: the features of six and more are scaled down.
ASPECT_RATIO = 'anyres_max_4'


def config():
    ids = token_ids(SPECIAL_TOKENS)
    return dict(
        vision_config=tower_config(model_type='siglip_vision_model', patch_size=14, vision_use_head=False),
        text_config=text_config(SPECIAL_TOKENS, model_type='qwen2'),
        image_token_index=ids['<image>'],
        video_token_index=ids['<video>'],
        vision_feature_layer=-1,
        vision_feature_select_strategy='full',
        vision_aspect_ratio=ASPECT_RATIO,
        image_grid_pinpoints=PINPOINTS,
        tie_word_embeddings=False,
    )


def processor(tokenizer):
    from transformers import LlavaOnevisionImageProcessor, LlavaOnevisionProcessor, LlavaOnevisionVideoProcessor

    size = dict(height=28, width=28)
    return LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=PINPOINTS),
        tokenizer,
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=4,
        vision_feature_select_strategy='full',
        vision_aspect_ratio=ASPECT_RATIO,
    )
