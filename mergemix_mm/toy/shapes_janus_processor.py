"""A Janus processor whose tokenizer knows the words of the drawn conversations and prompts, and nothing else."""

import re
from typing import TYPE_CHECKING

from mmengine.registry import TRANSFORMS

from ..datasets.conversations.chat_template import read_template
from .shapes_processor import SPECIAL_TOKENS, shapes_words
from .shapes_scene import GENERATION_TEMPLATES

if TYPE_CHECKING:
    from transformers import JanusProcessor

# In a model's config: `pad_token_id=0, bos_token_id=1, eos_token_id=2, image_token_id=3`.
JANUS_TOKENS = (
    '<｜▁pad▁｜>',
    '<｜begin▁of▁sentence｜>',
    '<｜end▁of▁sentence｜>',
    '<image_placeholder>',
    '<begin_of_image>',
    '<end_of_image>',
    '<|User|>',
    '<|Assistant|>',
    '<unk>',
)


def shapes_janus_words() -> tuple[str, ...]:
    """Every token of the tokenizer in the order of its ids: special tokens, words of conversations and of prompts."""
    words = [word for word in shapes_words() if word not in SPECIAL_TOKENS]
    text = ' '.join(GENERATION_TEMPLATES.values()).replace('{color}', '').replace('{shape}', '')
    return tuple(dict.fromkeys((*JANUS_TOKENS, *words, *re.findall(r'\w+', text))))


@TRANSFORMS.register_module('ShapesJanusProcessor')
def shapes_janus_processor(image_size: int = 64, patch_size: int = 8) -> 'JanusProcessor':
    r"""Build the processor of a tiny Janus for `ShapesConversationDataset` and `ShapesGenerationDataset`.

    One word or punctuation mark is one token, with exact character offsets. An image to be understood becomes
    (image_size // patch_size)**2 tokens between begin and end of image. There is no system prompt.

    Args:
        image_size (int): Height and width that images are resized to, and that are generated. Defaults to 64.
        patch_size (int): Of the vision tower. Defaults to 8.

    Returns:
        JanusProcessor: with a fast tokenizer and a `JanusImageProcessor`. Saved and loaded again by transformers 4, the
        class forgets how many tokens an image has: set its ``num_image_tokens``.

    Raises:
        ValueError: if image_size is not a multiple of patch_size.
    """
    if image_size % patch_size:
        raise ValueError(f'ShapesJanusProcessor: image_size={image_size} must be a multiple of patch_size={patch_size}')
    from transformers import JanusImageProcessor, JanusProcessor

    images = JanusImageProcessor(
        size=dict(height=image_size, width=image_size), min_size=1, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    processor = JanusProcessor(images, _build_tokenizer(), chat_template=read_template('janus'))
    processor.num_image_tokens = (image_size // patch_size) ** 2
    return processor


def _build_tokenizer():
    import transformers
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(shapes_janus_words())}, unk_token='<unk>'))
    tokenizer.pre_tokenizer = Whitespace()
    # The roles are no extra tokens of the tokenizer by name, whose lists transformers 5 merged.
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in JANUS_TOKENS])
    pad, bos, eos, image, begin, end, _, _, unk = JANUS_TOKENS
    # Version 5 of transformers takes any class, and on loading rebuilds those of a model as that model has them.
    name = getattr(transformers.JanusProcessor, 'tokenizer_class', 'PreTrainedTokenizerFast')
    return getattr(transformers, name)(
        tokenizer_object=tokenizer,
        add_bos_token=True,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        unk_token=unk,
        extra_special_tokens=dict(image_token=image, boi_token=begin, eoi_token=end),
        clean_up_tokenization_spaces=False,
        model_input_names=['input_ids', 'attention_mask'],
        model_max_length=1024,
        legacy=False,
    )
