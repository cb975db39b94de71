"""Processors and a tokenizer that know the words of the drawn records and nothing else."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmengine.registry import TRANSFORMS

from ..datasets.conversations.chat_template import read_template
from ..datasets.transforms.tasks import (
    CaptionTask,
    ClassificationTask,
    DetectionTask,
    GroundedCaptionTask,
    GroundingTask,
    MultipleChoiceTask,
    RegionCaptionTask,
    ShortAnswerTask,
)
from .scenes import AFTER, ANSWERS, BEFORE, COLORS, GENERATION_TEMPLATES, PRICE, SHAPES, SUM, TEMPLATES

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import JanusProcessor, LlavaProcessor, PreTrainedTokenizerFast

# The id of a token is its place: a model's config has `pad_token_id=0, eos_token_id=2, image_token_index=4`.
SPECIAL_TOKENS = ('<pad>', '<s>', '</s>', '<unk>', '<image>')
ROLES = ('USER', 'ASSISTANT', ':')
LLAMA_TOKENS = dict(pad_token='<pad>', bos_token='<s>', eos_token='</s>', unk_token='<unk>')
# Of all three tokenizers.
TOKENIZER_OPTIONS = dict(
    clean_up_tokenization_spaces=False, model_input_names=['input_ids', 'attention_mask'], model_max_length=1024
)


def shapes_words() -> tuple[str, ...]:
    """All tokens of the tokenizer in the order of their ids: special tokens, roles, words of questions and answers."""
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
        ValueError: If image_size is not a multiple of patch_size.
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
        tokenizer=_build_llava_tokenizer(),
        patch_size=patch_size,
        vision_feature_select_strategy='default',
        num_additional_image_tokens=1,  # The class token, which 'default' removes again.
        chat_template=read_template('llava'),
    )


def _build_llava_tokenizer():
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    tokenizer = _word_level(shapes_words())
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        extra_special_tokens=dict(image_token='<image>'),
        **LLAMA_TOKENS,
        **TOKENIZER_OPTIONS,
    )


def _word_level(words: Sequence[str]) -> 'Tokenizer':
    """A tokenizer with one token per word, in this order."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    return Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token='<unk>'))


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
    """All tokens of the tokenizer in the order of their ids: special tokens, words of conversations and of prompts."""
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
        JanusProcessor: With a fast tokenizer and a `JanusImageProcessor`. When transformers 4 saves and loads it, the
        number of tokens of an image is lost: set ``num_image_tokens`` again.

    Raises:
        ValueError: If image_size is not a multiple of patch_size.
    """
    if image_size % patch_size:
        raise ValueError(f'ShapesJanusProcessor: image_size={image_size} must be a multiple of patch_size={patch_size}')
    from transformers import JanusImageProcessor, JanusProcessor

    images = JanusImageProcessor(
        size=dict(height=image_size, width=image_size), min_size=1, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    processor = JanusProcessor(images, _build_janus_tokenizer(), chat_template=read_template('janus'))
    processor.num_image_tokens = (image_size // patch_size) ** 2
    return processor


def _build_janus_tokenizer():
    import transformers
    from tokenizers import AddedToken
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = _word_level(shapes_janus_words())
    tokenizer.pre_tokenizer = Whitespace()
    # The roles are special tokens, but not among the named ones below: transformers 5 merged those lists.
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in JANUS_TOKENS])
    pad, bos, eos, image, begin, end, _, _, unk = JANUS_TOKENS
    # JanusProcessor of transformers 4 names its class of tokenizer. Version 5 accepts any class, but it would rebuild a
    # tokenizer of a model's own class like that of the model.
    name = getattr(transformers.JanusProcessor, 'tokenizer_class', 'PreTrainedTokenizerFast')
    return getattr(transformers, name)(
        tokenizer_object=tokenizer,
        add_bos_token=True,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        unk_token=unk,
        extra_special_tokens=dict(image_token=image, boi_token=begin, eoi_token=end),
        legacy=False,
        **TOKENIZER_OPTIONS,
    )


INSTRUCTED = (
    ShortAnswerTask,
    MultipleChoiceTask,
    GroundingTask,
    RegionCaptionTask,
    DetectionTask,
    CaptionTask,
    GroundedCaptionTask,
    ClassificationTask,
)
ANSWER_WORDS = 'A B C D a the and This is'
MARKS = tuple('\n0123456789[],;.') + ('<p>', '</p>')
COORDINATES = tuple(f'{hundredth / 100:.2f}' for hundredth in range(101))
# In this order: a mark of phrases; a line break; a word such as "option's" or "one-sentence"; a coordinate with two
# decimals; a single digit or any other mark.
TOKEN = r"</?p>|\n|[A-Za-z]+(?:['-][a-z]+)*|(?<!\d)(?:0\.\d\d|1\.00)(?!\d)|[^A-Za-z\s]"
# Decoding puts a space between tokens, and then removes those that no task writes: before closing marks, after opening
# marks, and inside numbers and boxes.
NO_SPACE = r' (?=[\],;.?:\n]|</p>|</s>)|(?<=[\[\n]|<p>) |(?<=</p>) (?=\[)|(?<=[\d.,;]) (?=\d)'


def shapes_task_words() -> tuple[str, ...]:
    """All tokens of the tokenizer in the order of their ids: special tokens, marks, and the words of the tasks."""
    texts = [task.INSTRUCTION for task in INSTRUCTED] + [text for texts in TEMPLATES.values() for text in texts]
    text = re.sub(r'\{\w*\}', ' ', ' '.join([*texts, SUM, AFTER, BEFORE, PRICE, ANSWER_WORDS]))
    answers = [answer for answers in ANSWERS.values() for answer in answers]
    special = [token for token in SPECIAL_TOKENS if token != '<image>']  # `SphinxProcessor` adds its own.
    words = (*special, *ROLES, *MARKS, *COORDINATES, *re.findall(TOKEN, text), *COLORS, *SHAPES, *answers)
    return tuple(dict.fromkeys(words))


@TRANSFORMS.register_module('ShapesTaskTokenizer')
def shapes_task_tokenizer() -> 'PreTrainedTokenizerFast':
    """Build the tokenizer of a tiny SPHINX for `ShapesTaskDataset`; `SphinxProcessor` takes it.

    A word, a coordinate with two decimals ('0.12'), any other digit, a line break or a mark is one token, with exact
    character offsets. Decoding restores every text that the tasks write, including its spaces: '[0.12,0.34,0.56,0.78]'
    has none, 'a red ring' has two.

    Returns:
        PreTrainedTokenizerFast: `pad_token_id=0, bos_token_id=1, eos_token_id=2`; it adds none of them to a text.
    """
    from tokenizers import Regex, decoders
    from tokenizers.pre_tokenizers import Split
    from transformers import PreTrainedTokenizerFast

    tokenizer = _word_level(shapes_task_words())
    # All characters that do not match are spaces; they are removed.
    tokenizer.pre_tokenizer = Split(Regex(TOKEN), behavior='removed', invert=True)
    # This decoder puts a space before every token without its prefix; no token has the prefix.
    spaced = decoders.WordPiece(prefix='\0', cleanup=False)
    tokenizer.decoder = decoders.Sequence([spaced, decoders.Fuse(), decoders.Replace(Regex(NO_SPACE), '')])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **LLAMA_TOKENS, **TOKENIZER_OPTIONS)
