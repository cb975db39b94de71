"""Janus."""

from ._parts import text_config, token_ids, tower_config

FRAME = ('<begin_of_image>', '<end_of_image>')
IMAGE_TOKEN = '<image_placeholder>'
SPECIAL_TOKENS = (
    '<｜▁pad▁｜>',
    '<｜begin▁of▁sentence｜>',
    '<｜end▁of▁sentence｜>',
    None,
    IMAGE_TOKEN,
    *FRAME,
    '<|User|>',
    '<|Assistant|>',
)
NAMED_TOKENS = dict(image_token=IMAGE_TOKEN, boi_token=FRAME[0], eoi_token=FRAME[1])
WRITES_BOS = True
WRITTEN = (
    '<|User|>: <image_placeholder>\nQ\n\n<|Assistant|>:[ A<｜end▁of▁sentence｜>]'
    '<|User|>: R\n\n<|Assistant|>:[ B<｜end▁of▁sentence｜>]'
)


def config():
    return dict(
        text_config=text_config(SPECIAL_TOKENS, model_type='llama'),
        vision_config=tower_config(
            model_type='janus_vision_model', projection_dim=16, num_image_tokens=16, depth=1, mlp_ratio=2
        ),
        vq_config=dict(
            embed_dim=8,
            num_embeddings=32,
            latent_channels=32,
            base_channels=32,
            channel_multiplier=[1, 1],
            num_res_blocks=1,
            projection_dim=16,
            image_token_embed_dim=16,
            num_hidden_layers=1,
        ),
        image_token_id=token_ids(SPECIAL_TOKENS)[IMAGE_TOKEN],
    )


def processor(tokenizer):
    from transformers import JanusImageProcessor, JanusProcessor

    found = JanusProcessor(JanusImageProcessor(size=dict(height=28, width=28), min_size=7), tokenizer)
    found.num_image_tokens = 16  # The class only knows the 576 of the released model.
    return found
