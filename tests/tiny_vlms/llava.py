"""LLaVA 1.5."""

from ._parts import LLAMA_TOKENS, llava_config

SPECIAL_TOKENS = LLAMA_TOKENS
WRITES_BOS = True
WRITTEN = 'USER: <image>\nQ ASSISTANT:[ A</s>]USER: R ASSISTANT:[ B</s>]'


def config():
    return llava_config()


def processor(tokenizer):
    from transformers import CLIPImageProcessor, LlavaProcessor

    images = CLIPImageProcessor(size=dict(shortest_edge=28), crop_size=dict(height=28, width=28))
    return LlavaProcessor(
        images, tokenizer, patch_size=7, vision_feature_select_strategy='default', num_additional_image_tokens=1
    )
