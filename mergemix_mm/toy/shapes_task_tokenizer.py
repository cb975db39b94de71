"""A tokenizer that knows the words of the drawn tasks, coordinates, single digits and the marks of boxes."""

import re
from typing import TYPE_CHECKING

from mmengine.registry import TRANSFORMS

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
from .shapes_facts import AFTER, BEFORE, PRICE, SUM
from .shapes_processor import ROLES, SPECIAL_TOKENS
from .shapes_scene import ANSWERS, COLORS, SHAPES, TEMPLATES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

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
# A mark of phrases; a line break; a word such as "option's" or "one-sentence"; a coordinate with two decimals; a single
# digit or any other mark.
TOKEN = r"</?p>|\n|[A-Za-z]+(?:['-][a-z]+)*|(?<!\d)(?:0\.\d\d|1\.00)(?!\d)|[^A-Za-z\s]"
# Tokens are written with spaces between them, but for those that no task writes: before closing marks, behind opening
# ones, and inside of numbers and boxes.
NO_SPACE = r' (?=[\],;.?:\n]|</p>|</s>)|(?<=[\[\n]|<p>) |(?<=</p>) (?=\[)|(?<=[\d.,;]) (?=\d)'


def shapes_task_words() -> tuple[str, ...]:
    """Every token of the tokenizer in the order of its ids: special tokens, marks, and the words of the tasks."""
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
    character offsets. Whatever the tasks write comes back from its tokens to the space: '[0.12,0.34,0.56,0.78]' without
    any, 'a red ring' with them.

    Returns:
        PreTrainedTokenizerFast: `pad_token_id=0, bos_token_id=1, eos_token_id=2`; it adds none of them by itself.
    """
    from tokenizers import Regex, Tokenizer, decoders
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(shapes_task_words())}, unk_token='<unk>'))
    # What does not match is space, and removed.
    tokenizer.pre_tokenizer = Split(Regex(TOKEN), behavior='removed', invert=True)
    # This decoder puts spaces between tokens, but before those with its prefix, which no token has.
    spaced = decoders.WordPiece(prefix='\0', cleanup=False)
    tokenizer.decoder = decoders.Sequence([spaced, decoders.Fuse(), decoders.Replace(Regex(NO_SPACE), '')])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token='<pad>',
        bos_token='<s>',
        eos_token='</s>',
        unk_token='<unk>',
        clean_up_tokenization_spaces=False,
        model_input_names=['input_ids', 'attention_mask'],
        model_max_length=1024,
    )
