"""Accuracy on multiple-choice questions, by the option's letter in free text."""

import re
from collections.abc import Sequence
from string import ascii_uppercase

from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from .answers import get_field, normalise_answer, percent

# "A or B", "A, B" and "(A)/(B)" choose nothing.
_SEVERAL = re.compile(r'\b[A-Z]\b\W{0,2}\s*(?:or|and|[/&,])\s*\W{0,2}[A-Z]\b')
# A or I before a word is an article or a pronoun.
_LETTER = r'[*"\'`]*(?:[(\[]([A-Z])[)\]]|([A-Z])(?=\s*$|\s*[.:,;)\]*"\'`\n])|([B-HJ-Z])\b)'
_PATTERNS = [
    re.compile(rf'\b(?i:answer|option|choice)(?i:\s+is|\s*:)*\s*{_LETTER}'),
    # At the start a mark has to follow, as a word may be a single letter; a list of options chooses none.
    re.compile(r'^\W*([A-Z])(?=\s*$|[.:;,)\]*\n])(?!(?s:.*)\s\W?[A-Z][.:)]\s)'),
    re.compile(r'[(\[]([A-Z])[)\]]'),
]


def read_option(text: str, choices: Sequence[str]) -> int | None:
    """The option that a text chooses.

    In this order: a lone letter in any case (*b*, *(B)*), the text of exactly one choice, up to writing, *the answer
    is B* or *option B*, a letter with its mark at the start (*B. a cat*), or one in brackets anywhere. What names
    several options, or one that is not on offer, chooses nothing.

    Args:
        text (str): The answer.
        choices (Sequence[str]): The texts of the options A, B, ..., at most 26.

    Returns:
        int, optional: Index of the option from 0, or None.
    """
    letters = ascii_uppercase[: len(choices)]
    lone = re.fullmatch(r'\W*([a-zA-Z])\W*', text)
    if lone and lone[1].upper() in letters:
        return letters.index(lone[1].upper())
    same = [index for index, choice in enumerate(choices) if normalise_answer(choice) == normalise_answer(text)]
    if len(same) == 1:
        return same[0]
    for pattern in () if _SEVERAL.search(text) else _PATTERNS:
        found = {next(filter(None, match.groups())) for match in pattern.finditer(text)}
        if found:
            letter = found.pop()
            return letters.index(letter) if not found and letter in letters else None
    return None


@METRICS.register_module()
class MultipleChoiceMetric(BaseMetric):
    """Share of multiple-choice questions whose option was chosen. In percent.

    - ``choice/accuracy``: share of right options. An unreadable answer is wrong, never a guess, unlike in MMPretrain's
      ``ScienceQAMetric``, which draws an option in its place;
    - ``choice/unreadable``: share of answers that choose no option, by :func:`read_option`.

    Args:
        collect_device (str): ``'cpu'`` or ``'gpu'``, how several processes gather. Defaults to ``'cpu'``.
        prefix (str, optional): Prefix of the names. Defaults to None, which means ``choice``.

    Raises:
        KeyError: If a sample has no ``pred_answer``, ``gt_answer`` or ``choices``.
        ValueError: If a ``gt_answer`` is none of the choices, or there is no sample at all.
    """

    default_prefix = 'choice'

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        """Read the answers of a batch.

        Args:
            data_batch: Unused.
            data_samples (Sequence[dict]): Data samples as dictionaries, with ``pred_answer`` (str), ``choices`` (list
                of str) and ``gt_answer`` (str: the letter of the right choice, or its text).
        """
        for sample in data_samples:
            keys = ('pred_answer', 'gt_answer', 'choices')
            answer, truth, choices = (get_field(sample, key, 'MultipleChoiceMetric') for key in keys)
            right = read_option(truth, choices) if isinstance(truth, str) else None
            if right is None:
                raise ValueError(
                    f'MultipleChoiceMetric: gt_answer={truth!r} must be a letter from A to '
                    f'{ascii_uppercase[len(choices) - 1]}, or the text of exactly one of choices={list(choices)}.'
                )
            self.results.append(dict(chosen=read_option(answer, choices), right=right))

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Compute the shares over the samples of all processes.

        Args:
            results (list[dict]): ``chosen`` and ``right``, the index of an option or None, of every sample.

        Returns:
            dict[str, float]: ``accuracy`` and ``unreadable``, in percent.
        """
        if not results:
            raise ValueError(
                'MultipleChoiceMetric: there is no answer to evaluate; is the dataset of the loader empty?'
            )
        return {
            'accuracy': percent([row['chosen'] == row['right'] for row in results]),
            'unreadable': percent([row['chosen'] is None for row in results]),
        }
