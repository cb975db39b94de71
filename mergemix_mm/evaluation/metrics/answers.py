"""What the metrics of generated answers share: the fields of a sample, comparing texts, and means per group."""

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

from ...utils.text import quoted

# A number with its sign and decimals, or a word with its apostrophes.
_WORD = re.compile(r"(?<!\w)-?\d+(?:\.\d+)*|\w+(?:'\w+)*")
_ARTICLES = {'a', 'an', 'the'}
# What a model thinks before it answers.
_THOUGHT = r'(?:think(?:ing)?|thoughts?|reason(?:ing)?)'
_THOUGHTS_END = re.compile(rf'[<\u25c1]/{_THOUGHT}[>\u25b7]', re.IGNORECASE)
_OPEN_THOUGHTS = re.compile(rf'\s*[<\u25c1]{_THOUGHT}[>\u25b7]', re.IGNORECASE)
# The fields that name the group of a sample; the first that is there does.
_GROUP_KEYS = ('split', 'category', 'question_type')


def get_field(sample: dict, key: str, metric: str) -> Any:
    """The field of a data sample.

    Raises:
        KeyError: If the sample has no such field; the message names the metric, and where the field comes from.
        ValueError: If ``pred_answer`` is no text.
    """
    if key not in sample:
        came_from = "the model's predict()" if key.startswith('pred_') else 'the dataset: every key of its records is'
        raise KeyError(f'{metric}: a data sample has no {key!r} (found: {sorted(sample)}). It is set by {came_from}.')
    if key == 'pred_answer' and not isinstance(sample[key], str):
        raise ValueError(f'{metric}: pred_answer={quoted(sample[key])} must be a text, one answer per sample.')
    return sample[key]


def normalise_answer(text: str) -> str:
    """Make answers that differ in writing only the same.

    Lower case, without punctuation, articles and surplus space, after SQuAD (Rajpurkar et al. 2016,
    https://arxiv.org/abs/1606.05250). Unlike there, numbers keep their sign and their decimals: -3.5 is not 35. Number
    words stay words; where *two* should equal *2*, ``VQAv2Accuracy`` serves.

    Args:
        text (str): An answer. One of nothing but punctuation or articles keeps them.

    Returns:
        str: Words, separated by single spaces.
    """
    text = unicodedata.normalize('NFKC', text).casefold().replace('\u2019', "'").replace('\u2212', '-').strip()
    words = _WORD.findall(re.sub(r'(?<=\d),(?=\d{3}(?!\d))', '', text))
    return ' '.join([word for word in words if word not in _ARTICLES] or words) or text


def without_thoughts(text: str) -> str:
    """What an answer says after its thoughts (``<think>...</think>``); '' if they were cut off."""
    text = _THOUGHTS_END.split(text)[-1]
    return '' if _OPEN_THOUGHTS.match(text) else text


def is_right(answer: str, accepted: str | Sequence[str]) -> bool:
    """Whether an answer equals the accepted one, or one of several, up to writing."""
    accepted = [accepted] if isinstance(accepted, str) else accepted
    return normalise_answer(answer) in {normalise_answer(text) for text in accepted}


def group_of(sample: dict) -> str | None:
    """The group that a sample is also scored in: its ``split``, ``category`` or ``question_type``, or None."""
    return next((sample[key] for key in _GROUP_KEYS if sample.get(key) is not None), None)


def percent(flags: Sequence[bool]) -> float:
    """Share of the true ones, 0 to 100; 0 of nothing."""
    return 100 * sum(flags) / max(len(flags), 1)


def per_group(
    rows: Sequence[dict], key: str, compute: Callable[[Sequence[dict]], dict[str, float]]
) -> dict[str, float]:
    """Compute values over all rows, and over the rows of each group.

    Args:
        rows (Sequence[dict]): What was kept of the samples.
        key (str): The entry of a row that names its group; None where it has none.
        compute (Callable): From rows to values by name.

    Returns:
        dict[str, float]: ``name`` over all rows, and ``group/name`` in the order of the groups' names.
    """
    values = compute(rows)
    for group in sorted({str(row[key]) for row in rows if row[key] is not None}):
        found = compute([row for row in rows if str(row[key]) == group])
        values.update({f'{group}/{name}': value for name, value in found.items()})
    return values
