"""PaliGemma."""

from ._parts import VOCAB_SIZE, text_config, token_ids, tower_config

SPECIAL_TOKENS = ('<pad>', '<bos>', '<eos>', '<unk>', '<image>')
TOKENIZER = 'GemmaTokenizerFast'
WRITES_BOS = True
WRITTEN = '<image><bos>Q\n[A<eos>]R\n[B<eos>]'
LOCATION_TOKENS = 1024 + 128  # <loc> and <seg> tokens, which the processor appends.


def config():
    # Gemma scales embeddings and ties them to its head.
    text = text_config(SPECIAL_TOKENS, model_type='gemma', head_dim=4, tie_word_embeddings=True)
    return dict(
        vision_config=tower_config(model_type='siglip_vision_model', vision_use_head=False),
        text_config=text | dict(vocab_size=VOCAB_SIZE + LOCATION_TOKENS),
        image_token_index=token_ids(SPECIAL_TOKENS)['<image>'],
        projection_dim=16,
        hidden_size=16,
        pad_token_id=text['pad_token_id'],
        bos_token_id=text['bos_token_id'],
        eos_token_id=text['eos_token_id'],
    )


def processor(tokenizer):
    from transformers import PaliGemmaProcessor, SiglipImageProcessor

    images = SiglipImageProcessor(size=dict(height=28, width=28))
    images.image_seq_length = 16
    return PaliGemmaProcessor(images, tokenizer)
