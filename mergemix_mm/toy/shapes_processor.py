"""A LLaVA processor whose tokenizer knows the words of the drawn conversations and nothing else."""

import re
from typing import TYPE_CHECKING

from mmengine.registry import TRANSFORMS

from ..datasets.conversations.chat_template import read_template
from .shapes_scene import ANSWERS, COLORS, SHAPES, TEMPLATES

if TYPE_CHECKING:
    from transformers import LlavaProcessor

# Their ids are their places: `pad_token_id=0, eos_token_id=2, image_token_index=4` in a model's config.
SPECIAL_TOKENS = ('<pad>', '<s>', '</s>', '<unk>', '<image>')
ROLES = ('USER', 'ASSISTANT', ':')


def shapes_words() -> tuple[str, ...]:
    """Every token of the tokenizer in the order of its ids: special tokens, roles, words of questions and answers."""
    text = ' '.join(sum(TEMPLATES.values(), ())).replace('{color}', '').replace('{shape}', '')
    words = [*ROLES, *re.findall(r'\w+|[^\w\s]', text), *COLORS, *SHAPES]
    words += [answer for answers in ANSWERS.values() for answer in answers]
    return tuple(dict.fromkeys((*SPECIAL_TOKENS, *words)))


@TRANSFORMS.register_module('ShapesProcessor')
def shapes_processor(image_size: int = 48, patch_size: int = 8) -> 'LlavaProcessor':
    r"""Build the processor of a tiny LLaVA for `ShapesConversationDataset`.

    One word or punctuation mark is one token, with exact character offsets. An image becomes
    (image_size // patch_size)**2 tokens `<image>`, as for `vision_feature_select_strategy='default'`. The chat
    template is the repository's `llava`: "USER: <image>\nquestion ASSISTANT: answer</s>", with no `<s>` before it.
    `save_pretrained` writes transformers' own files.

    Args:
        image_size (int): Height and width that images are resized to. Defaults to 48.
        patch_size (int): Of the vision tower. Defaults to 8.

    Returns:
        LlavaProcessor: with a `PreTrainedTokenizerFast` and a `CLIPImageProcessor`.

    Raises:
        ValueError: if image_size is not a multiple of patch_size.
    """
    if image_size % patch_size:
        raise ValueError(f'ShapesProcessor: image_size={image_size} must be a multiple of patch_size={patch_size}')
    from transformers import CLIPImageProcessor, LlavaProcessor

    image_processor = CLIPImageProcessor(
        size=dict(height=image_size, width=image_size),
        do_center_crop=False,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=_build_tokenizer(),
        patch_size=patch_size,
        vision_feature_select_strategy='default',
        num_additional_image_tokens=1,  # The class token, which 'default' takes off again.
        chat_template=read_template('llava'),
    )


def _build_tokenizer():
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(shapes_words())}, unk_token='<unk>'))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token='<pad>',
        bos_token='<s>',
        eos_token='</s>',
        unk_token='<unk>',
        extra_special_tokens=dict(image_token='<image>'),
        clean_up_tokenization_spaces=False,
        model_input_names=['input_ids', 'attention_mask'],
        model_max_length=1024,
    )
