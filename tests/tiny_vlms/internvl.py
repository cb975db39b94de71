"""InternVL."""

from ._parts import text_config, token_ids, tower_config

FRAME = ('<img>', '</img>')
IMAGE_TOKEN = '<IMG_CONTEXT>'
SPECIAL_TOKENS = ('<|endoftext|>', None, '<|im_end|>', None, '<|im_start|>', *FRAME, IMAGE_TOKEN, '<video>')
NAMED_TOKENS = dict(
    start_image_token='<img>', end_image_token='</img>', context_image_token=IMAGE_TOKEN, video_token='<video>'
)
TOKENIZER = 'Qwen2TokenizerFast'
LARGEST_IMAGE = (84, 56), dict(max_patches=6)
WRITTEN = (
    '<|im_start|>user\n<IMG_CONTEXT>\nQ<|im_end|>\n<|im_start|>assistant\n[A<|im_end|>]\n'
    '<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\n[B<|im_end|>]\n'
)


def config():
    return dict(
        # Layer scale starts at 0.1 in releases: a tower of two layers would hardly change its patches.
        vision_config=tower_config(
            model_type='internvl_vision',
            image_size=[28, 28],
            patch_size=[7, 7],
            attention_bias=True,
            layer_scale_init_value=0.8,
        ),
        text_config=text_config(SPECIAL_TOKENS, model_type='qwen2'),
        image_token_id=token_ids(SPECIAL_TOKENS)[IMAGE_TOKEN],
        image_seq_length=4,
        downsample_ratio=0.5,
        vision_feature_layer=-1,
        vision_feature_select_strategy='default',
    )


def processor(tokenizer):
    from transformers import GotOcr2ImageProcessorFast, InternVLProcessor, InternVLVideoProcessor

    images = GotOcr2ImageProcessorFast(size=dict(height=28, width=28), crop_to_patches=True, max_patches=6)
    videos = InternVLVideoProcessor(size=dict(height=28, width=28))
    return InternVLProcessor(images, tokenizer, videos, image_seq_length=4)
