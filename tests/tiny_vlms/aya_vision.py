"""Aya Vision."""

from ._parts import text_config, token_ids, tower_config

FRAME = ('<|START_OF_IMG|>', '<|END_OF_IMG|>')
IMAGE_TOKEN, FEATURE_TOKEN = '<image>', '<|IMG_PATCH|>'  # The placeholder is no token.
ONE_RUN = False
SPECIAL_TOKENS = (
    '<PAD>',
    '<BOS_TOKEN>',
    '<|END_OF_TURN_TOKEN|>',
    '<UNK>',
    '<|START_OF_TURN_TOKEN|>',
    '<|USER_TOKEN|>',
    '<|CHATBOT_TOKEN|>',
    '<|SYSTEM_TOKEN|>',
    '<|START_RESPONSE|>',
    '<|END_RESPONSE|>',
    *FRAME,
    FEATURE_TOKEN,
    'TILE_GLOBAL',
    *(f'TILE_{number}' for number in range(1, 7)),
)
CLOSING = '<|END_RESPONSE|><|END_OF_TURN_TOKEN|>'
TOKENIZER = 'CohereTokenizerFast'
WRITES_BOS = True
LARGEST_IMAGE = (84, 56), dict(max_patches=6)
WRITTEN = (
    '<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|><image>Q<|END_OF_TURN_TOKEN|>'
    f'<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>[A{CLOSING}]'
    '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>R<|END_OF_TURN_TOKEN|>'
    f'<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>[B{CLOSING}]'
)


def config():
    # A layer with a sliding window and rotary positions, then one without either.
    text = text_config(
        SPECIAL_TOKENS,
        model_type='cohere2',
        logit_scale=0.25,
        sliding_window=64,
        layer_types=['sliding_attention', 'full_attention'],
    )
    return dict(
        vision_config=tower_config(model_type='siglip_vision_model', vision_use_head=False),
        text_config=text,
        downsample_factor=2,
        image_token_index=token_ids(SPECIAL_TOKENS)[FEATURE_TOKEN],
        tie_word_embeddings=False,
    )


def processor(tokenizer):
    from transformers import AyaVisionProcessor, GotOcr2ImageProcessorFast

    images = GotOcr2ImageProcessorFast(size=dict(height=28, width=28), crop_to_patches=True, max_patches=6)
    return AyaVisionProcessor(images, tokenizer, patch_size=7, img_size=28, downsample_factor=2)
