"""Helpers of the metrics of generated answers: fields of a sample, comparison of texts, means per group."""

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

from ...utils.text import quoted

# A number with its sign and decimals, or a word with its apostrophes.
_WORD = re.compile(r"(?<!\w)-?\d+(?:\.\d+)*|\w+(?:'\w+)*")
_ARTICLES = {'a', 'an', 'the'}
# The tags of what a model thinks before it answers.
_THOUGHT = r'(?:think(?:ing)?|thoughts?|reason(?:ing)?)'
_THOUGHTS_END = re.compile(rf'[<\u25c1]/{_THOUGHT}[>\u25b7]', re.IGNORECASE)
_OPEN_THOUGHTS = re.compile(rf'\s*[<\u25c1]{_THOUGHT}[>\u25b7]', re.IGNORECASE)
# The fields that can name the group of a sample; the first one that it has decides.
_GROUP_KEYS = ('split', 'category', 'question_type')


def get_field(sample: dict, key: str, metric: str) -> Any:
    """The field of a data sample.

    Raises:
        KeyError: If the sample lacks the field; the message names the metric and says what sets the field.
        ValueError: If ``pred_answer`` is not a text.
    """
    if key not in sample:
        came_from = "the model's predict()" if key.startswith('pred_') else 'the dataset: every key of its records is'
        raise KeyError(f'{metric}: a data sample has no {key!r} (found: {sorted(sample)}). It is set by {came_from}.')
    if key == 'pred_answer' and not isinstance(sample[key], str):
        raise ValueError(f'{metric}: pred_answer={quoted(sample[key])} must be a text, one answer per sample.')
    return sample[key]


def normalise_answer(text: str) -> str:
    """Make answers equal that differ only in writing.

    Lower case, without punctuation, articles and surplus space, after SQuAD (Rajpurkar et al. 2016,
    https://arxiv.org/abs/1606.05250). Unlike there, numbers keep their sign and their decimals: -3.5 is not 35. Number
    words stay words; where *two* should equal *2*, use ``VQAv2Accuracy``.

    Args:
        text (str): An answer. If it consists only of punctuation or articles, they are kept.

    Returns:
        str: Words, separated by single spaces.
    """
    # NFKC turns full-width letters and digits into plain ones, but keeps typographic apostrophes and minus signs.
    text = unicodedata.normalize('NFKC', text).casefold().replace('\u2019', "'").replace('\u2212', '-').strip()
    # 1,250 is one number; in "1,2" the comma separates two.
    words = _WORD.findall(re.sub(r'(?<=\d),(?=\d{3}(?!\d))', '', text))
    return ' '.join([word for word in words if word not in _ARTICLES] or words) or text


def without_thoughts(text: str) -> str:
    """The answer without its thoughts (``<think>...</think>``); '' if it ends within them."""
    text = _THOUGHTS_END.split(text)[-1]
    # A model that used up its tokens while thinking has not answered.
    return '' if _OPEN_THOUGHTS.match(text) else text


def is_right(answer: str, accepted: str | Sequence[str]) -> bool:
    """Whether an answer equals the accepted one, or one of several, after :func:`normalise_answer`."""
    accepted = [accepted] if isinstance(accepted, str) else accepted
    return normalise_answer(answer) in {normalise_answer(text) for text in accepted}


def group_of(sample: dict) -> str | None:
    """The group in which a sample is also scored: its ``split``, ``category`` or ``question_type``, or None."""
    return next((sample[key] for key in _GROUP_KEYS if sample.get(key) is not None), None)


def percent(flags: Sequence[bool]) -> float:
    """The share of true flags, 0 to 100; 0 if there are no flags."""
    return 100 * sum(flags) / max(len(flags), 1)


def per_group(
    rows: Sequence[dict], key: str, compute: Callable[[Sequence[dict]], dict[str, float]]
) -> dict[str, float]:
    """Compute values over all rows, and over the rows of each group.

    Args:
        rows (Sequence[dict]): What was kept of the samples.
        key (str): The entry of a row that names its group; its value is None for a row without a group.
        compute (Callable): From rows to values by name.

    Returns:
        dict[str, float]: ``name`` over all rows, and ``group/name`` in the order of the groups' names.
    """
    values = compute(rows)
    for group in sorted({str(row[key]) for row in rows if row[key] is not None}):
        found = compute([row for row in rows if str(row[key]) == group])
        values.update({f'{group}/{name}': value for name, value in found.items()})
    return values
