"""Gemma 3."""

from ._parts import text_config, token_ids, tower_config

FRAME = ('<start_of_image>', '<end_of_image>')
IMAGE_TOKEN, FEATURE_TOKEN = '<start_of_image>', '<image_soft_token>'
MARGINS = ('\n\n', '\n\n')
# Not the 9th: planned batches take that one for a word.
SPECIAL_TOKENS = (
    '<pad>',
    '<bos>',
    '<end_of_turn>',
    '<unk>',
    '<eos>',
    '<start_of_turn>',
    *FRAME,
    '<unused0>',
    FEATURE_TOKEN,
)
NAMED_TOKENS = dict(boi_token=FRAME[0], eoi_token=FRAME[1], image_token=FEATURE_TOKEN)
TOKENIZER = 'GemmaTokenizerFast'
WRITES_BOS = True
NESTS_IMAGES = True
WRITTEN = (
    '<bos><start_of_turn>user\n<start_of_image>Q<end_of_turn>\n<start_of_turn>model\n[A<end_of_turn>]\n'
    '<start_of_turn>user\nR<end_of_turn>\n<start_of_turn>model\n[B<end_of_turn>]\n'
)


def config():
    _draw_projection()
    ids = token_ids(SPECIAL_TOKENS)
    # A layer with a sliding window that most texts exceed, then one without.
    text = text_config(
        SPECIAL_TOKENS,
        model_type='gemma3_text',
        head_dim=8,
        query_pre_attn_scalar=5,
        sliding_window=32,
        layer_types=['sliding_attention', 'full_attention'],
        tie_word_embeddings=True,
    )
    return dict(
        vision_config=tower_config(model_type='siglip_vision_model', vision_use_head=False),
        text_config=text,
        mm_tokens_per_image=4,
        boi_token_index=ids[FRAME[0]],
        eoi_token_index=ids[FRAME[1]],
        image_token_index=ids[FEATURE_TOKEN],
    )


def processor(tokenizer):
    from transformers import Gemma3ImageProcessorFast, Gemma3Processor

    return Gemma3Processor(Gemma3ImageProcessorFast(size=dict(height=28, width=28)), tokenizer, image_seq_length=4)


def _draw_projection():
    """Let random weights have a projection of images: the library starts it at zero."""
    from transformers.models.gemma3.modeling_gemma3 import Gemma3PreTrainedModel

    start = Gemma3PreTrainedModel._init_weights
    if hasattr(start, 'drawn'):
        return

    def draw(self, module):
        start(self, module)
        weight = getattr(module, 'mm_input_projection_weight', None)
        if weight is not None and not getattr(weight, '_is_hf_initialized', False):  # Read from a file.
            weight.data.normal_(std=0.5)

    draw.drawn = True
    Gemma3PreTrainedModel._init_weights = draw
