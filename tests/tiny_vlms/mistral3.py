"""Mistral 3."""

from . import pixtral
from ._parts import text_config, token_ids, tower_config
from .pixtral import IMAGE_TOKEN, ONE_RUN, SCORED_SIZE, WRITES_BOS, WRITTEN

__all__ = ['IMAGE_TOKEN', 'LARGEST_IMAGE', 'ONE_RUN', 'SCORED_SIZE', 'SPECIAL_TOKENS', 'WRITES_BOS', 'WRITTEN']
SPECIAL_TOKENS = (*pixtral.SPECIAL_TOKENS, '[SYSTEM_PROMPT]', '[/SYSTEM_PROMPT]')
LARGEST_IMAGE = (500, 500), dict(size=dict(longest_edge=56))


def config():
    return dict(
        vision_config=tower_config(model_type='pixtral', image_size=56),
        text_config=text_config(SPECIAL_TOKENS, model_type='mistral', head_dim=8, sliding_window=None),
        image_token_index=token_ids(SPECIAL_TOKENS)[IMAGE_TOKEN],
        spatial_merge_size=2,
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )


def processor(tokenizer):
    from transformers import PixtralImageProcessorFast, PixtralProcessor

    images = PixtralImageProcessorFast(size=dict(longest_edge=56), patch_size=dict(height=14, width=14))
    return PixtralProcessor(images, tokenizer, patch_size=7, spatial_merge_size=2)
