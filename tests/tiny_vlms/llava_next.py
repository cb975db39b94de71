"""LLaVA-NeXT."""

from ._parts import LLAMA_TOKENS, llava_config

SPECIAL_TOKENS = LLAMA_TOKENS
WRITES_BOS = True
ONE_RUN = False
LARGEST_IMAGE = (56, 56), dict()
WRITTEN = '[INST] <image>\nQ [/INST][ A</s>][INST] R [/INST][ B</s>]'
PINPOINTS = [[28, 56], [56, 28], [56, 56]]


def config():
    return llava_config(patch_size=14) | dict(image_grid_pinpoints=PINPOINTS)


def processor(tokenizer):
    from transformers import LlavaNextImageProcessor, LlavaNextProcessor

    images = LlavaNextImageProcessor(
        size=dict(shortest_edge=28), crop_size=dict(height=28, width=28), image_grid_pinpoints=PINPOINTS
    )
    return LlavaNextProcessor(
        images, tokenizer, patch_size=14, vision_feature_select_strategy='default', num_additional_image_tokens=1
    )
