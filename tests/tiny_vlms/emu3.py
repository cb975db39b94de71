"""Emu3: images are text, so there is no tower."""

from ._parts import text_config

HAS_TOWER = False
SPECIAL_TOKENS = (
    '<|endoftext|>',
    '<|extra_203|>',
    '<|extra_204|>',
    None,
    '<image>',
    '<|image start|>',
    '<|image token|>',
    '<|image end|>',
    '<|extra_200|>',
    '<|extra_201|>',
    *(f'<|visual token {code:06d}|>' for code in range(32)),
)
NAMED_TOKENS = dict(
    image_token='<image>',
    boi_token='<|image start|>',
    eoi_token='<|image end|>',
    image_wrapper_token='<|image token|>',
    eof_token='<|extra_201|>',
)
TOKENIZER = 'GPT2TokenizerFast'
LARGEST_IMAGE = (500, 500), dict(max_pixels=8 * 8)
WRITTEN = '<|extra_203|>USER: <image>Q ASSISTANT:[ A<|extra_204|>]USER: R ASSISTANT:[ B<|extra_204|>]'


def config():
    from . import tiny_tokenizer

    return dict(
        text_config=text_config(SPECIAL_TOKENS, attention_dropout=0.0),
        vq_config=dict(
            codebook_size=32,
            embed_dim=4,
            latent_channels=4,
            temporal_downsample_factor=1,
            base_channels=32,
            channel_multiplier=[1, 1],
            num_res_blocks=1,
            hidden_size=32,
            attn_resolutions=[],
        ),
        vocabulary_map=tiny_tokenizer('emu3').get_vocab(),
    )


def processor(tokenizer):
    from transformers import Emu3ImageProcessor, Emu3Processor

    images = Emu3ImageProcessor(
        image_mean=[0.5] * 3, image_std=[0.5] * 3, spatial_factor=2, min_pixels=4 * 4, max_pixels=8 * 8
    )
    found = Emu3Processor(images, tokenizer)
    found.downsample_ratio = 2  # The class only knows the 8 of the released model.
    return found
