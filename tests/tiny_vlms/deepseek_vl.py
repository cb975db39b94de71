"""DeepSeek-VL."""

from ._parts import text_config, token_ids, tower_config

IMAGE_TOKEN = '<image_placeholder>'
SPECIAL_TOKENS = ('<｜▁pad▁｜>', '<｜begin▁of▁sentence｜>', '<｜end▁of▁sentence｜>', None, IMAGE_TOKEN)
NAMED_TOKENS = dict(image_token=IMAGE_TOKEN)
WRITES_BOS = True
SYSTEM = (
    'You are a helpful language and vision assistant. You are able to understand the visual content that the user '
    'provides, and assist the user with a variety of tasks using natural language.\n\n'
)
WRITTEN = (
    f'{SYSTEM}User: {IMAGE_TOKEN}Q\n\nAssistant:[ A<｜end▁of▁sentence｜>]User: R\n\nAssistant:[ B<｜end▁of▁sentence｜>]'
)


def config():
    return dict(
        vision_config=tower_config(model_type='siglip_vision_model'),
        text_config=text_config(SPECIAL_TOKENS, model_type='llama'),
        image_token_id=token_ids(SPECIAL_TOKENS)[IMAGE_TOKEN],
        tie_word_embeddings=False,
    )


def processor(tokenizer):
    from transformers import DeepseekVLImageProcessor, DeepseekVLProcessor

    images = DeepseekVLImageProcessor(size=dict(height=28, width=28), min_size=7)
    return DeepseekVLProcessor(images, tokenizer, num_image_tokens=16)
