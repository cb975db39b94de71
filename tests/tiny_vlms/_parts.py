"""Parts that the tiny models of several families share."""

VOCAB_SIZE = 300  # 256 bytes and every family's special tokens.
LLAMA_TOKENS = ('<pad>', '<s>', '</s>', '<unk>', '<image>')
MAX_LENGTH = 4096


def token_ids(special_tokens):
    """The ids of a family's special tokens, which come first in the vocabulary."""
    return {token: number for number, token in enumerate(token for token in special_tokens if token is not None)}


def text_config(special_tokens, **config):
    """A language model of two layers and 16 channels."""
    ids = token_ids(special_tokens)
    pad, bos, eos = (ids.get(token) for token in special_tokens[:3])
    return dict(
        vocab_size=VOCAB_SIZE,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_LENGTH,
        pad_token_id=pad,
        bos_token_id=bos,
        eos_token_id=eos,
        initializer_range=0.2,
        tie_word_embeddings=False,
    ) | dict(config)


def tower_config(**config):
    """A vision tower of two layers for images of 28 pixels, in patches of 7."""
    return dict(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=7,
        initializer_range=0.2,
    ) | dict(config)


def llava_config(special_tokens=LLAMA_TOKENS, patch_size=7):
    """A LLaVA: CLIP, two linear layers, Llama."""
    return dict(
        vision_config=tower_config(model_type='clip_vision_model', patch_size=patch_size),
        text_config=text_config(special_tokens, model_type='llama'),
        image_token_index=token_ids(special_tokens)['<image>'],
        image_seq_length=(28 // patch_size) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy='default',
    )
