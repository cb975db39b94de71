"""Pixtral: a LLaVA whose tower packs images of several sizes."""

from ._parts import text_config, token_ids, tower_config

IMAGE_TOKEN = '[IMG]'
SPECIAL_TOKENS = ('<pad>', '<s>', '</s>', '<unk>', '[INST]', '[/INST]', IMAGE_TOKEN, '[IMG_BREAK]', '[IMG_END]')
WRITES_BOS = True
ONE_RUN = False
SCORED_SIZE = None
LATE_SYSTEM = True
LARGEST_IMAGE = (500, 500), dict(size=dict(longest_edge=42))
WRITTEN = '<s>[INST][IMG]Q[/INST][A</s>][INST]R[/INST][B</s>]'


def config():
    return dict(
        model_type='llava',
        # Two frequencies for rows and two for columns. No norm follows the tower: with small weights, the text model
        # would hardly tell one image from another.
        vision_config=tower_config(model_type='pixtral', image_size=42, initializer_range=0.4),
        # Heads are wider than the hidden states divide into, as in releases.
        text_config=text_config(SPECIAL_TOKENS, model_type='mistral', head_dim=8, sliding_window=None),
        image_token_index=token_ids(SPECIAL_TOKENS)[IMAGE_TOKEN],
        vision_feature_layer=-1,
        vision_feature_select_strategy='full',
    )


def processor(tokenizer):
    from transformers import PixtralImageProcessorFast, PixtralProcessor

    images = PixtralImageProcessorFast(size=dict(longest_edge=42), patch_size=dict(height=7, width=7))
    return PixtralProcessor(images, tokenizer, patch_size=7)
