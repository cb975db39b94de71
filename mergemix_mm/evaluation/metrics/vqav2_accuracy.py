"""VQAv2's official accuracy, which compares an answer with those of ten people, leaving each person out once."""

import re
from collections.abc import Sequence
from typing import Any

from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from .answers import get_field, per_group

_PEOPLE = 10
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_ARTICLES = ('a', 'an', 'the')
_NUMBER_WORDS = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine', 'ten')
_NUMBERS = {'none': '0'} | {word: str(number) for number, word in enumerate(_NUMBER_WORDS)}
# The official table maps each of these without one of its apostrophes to the full form. Its other entries have no
# effect, as their keys have capitals and the text is in small letters. One entry is the wrong way round: somebody'd.
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""
_CONTRACTIONS = {"somebody'd": 'somebodyd'} | {
    word[: found.start()] + word[found.end() :]: word
    for word in _CONTRACTED.split()
    for found in re.finditer("'", word)
}


def normalise_vqa_answer(text: str) -> str:
    """Make answers equal that differ only in writing, by the rules of VQA's evaluation script.

    The result has small letters and no punctuation or articles; *two* is *2*, *none* is *0*, *dont* is *don't*. A
    punctuation mark becomes a space. It is removed if it occurs next to a space, or if the text has a number with a
    comma (1,000).

    Args:
        text (str): An answer.

    Returns:
        str: Words, separated by single spaces; may be empty.
    """
    text = found = text.replace('\n', ' ').replace('\t', ' ').strip()
    number = re.search(r'\d,\d', text)
    for mark in _MARKS:
        found = found.replace(mark, '' if number or f'{mark} ' in text or f' {mark}' in text else ' ')
    # The script passes a flag (re.UNICODE, 32) in the place of the count, so it removes at most 32 full stops.
    found = re.sub(r'\.(?!\d)', '', found, count=32)
    words = [_NUMBERS.get(word, word) for word in found.lower().split()]
    return ' '.join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(matches: int, people: int = _PEOPLE) -> float:
    """The mean of min(m / 3, 1) over the subsets that leave one person out; m counts equal answers of the others.

    Args:
        matches (int): The number of people who gave the answer, 0 to ``people``.
        people (int): The number of people who answered, >= 2. Defaults to 10, for which 1, 2, 3
            and 4 matches score 0.3, 0.6, 0.9 and 1.

    Returns:
        float: In [0, 1].
    """
    without_a_match, without_another = min((matches - 1) / 3, 1), min(matches / 3, 1)
    return (matches * without_a_match + (people - matches) * without_another) / people


@METRICS.register_module()
class VQAv2Accuracy(BaseMetric):
    """The official accuracy of VQAv2, OK-VQA, TextVQA and VizWiz. In percent.

    Goyal et al. 2017, https://arxiv.org/abs/1612.00837; the rule is that of https://visualqa.org/evaluation.html. An
    answer scores the mean of min(m / 3, 1) over the ten subsets that leave one person out, where m of the nine others
    gave the same answer after :func:`normalise_vqa_answer`. An answer of 1, 2, 3 or 4 of ten people scores 30, 60, 90
    or 100%. MMPretrain's ``VQAAcc`` takes min(m / 3, 1) over all ten instead, which gives 33, 67, 100 and 100%.

    - ``vqa/official_accuracy``: over all questions; the name tells the rule;
    - ``vqa/<answer_type>/official_accuracy``: over the questions of each type, where samples have an ``answer_type``
      (VQAv2: ``yes_no``, ``number``, ``other``).

    As in the script, other numbers of people are scored by the same mean; with three or fewer, no answer gets 100%.

    If all ten answers are written alike, VQAv2's script does not normalise. Here answers are always normalised, as the
    published numbers come from answers that were normalised before they were submitted. TextVQA's script normalises a
    little more: it turns *cat's* into *cat 's*.

    Args:
        collect_device (str): ``'cpu'`` or ``'gpu'``, how several processes gather. Defaults to ``'cpu'``.
        prefix (str, optional): Prefix of the names. Defaults to None, which means ``vqa``.

    Raises:
        KeyError: If a sample has no ``pred_answer`` or ``gt_answer``.
        ValueError: If a sample has fewer than two accepted answers, its weights are not tenths, or there is no sample.
    """

    default_prefix = 'vqa'

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        """Score the answers of a batch.

        Args:
            data_batch: Unused.
            data_samples (Sequence[dict]): Data samples as dictionaries, with ``pred_answer`` (str), ``gt_answer`` (the
                answers of all people, list of str; or, as in MMPretrain's datasets, each different one once, with its
                share of the people in ``gt_answer_weight``) and perhaps ``answer_type`` (str).
        """
        for sample in data_samples:
            answer = normalise_vqa_answer(get_field(sample, 'pred_answer', 'VQAv2Accuracy'))
            given = [normalise_vqa_answer(text) for text in _answers_of_all(sample)]
            group = sample.get('answer_type')
            self.results.append(
                dict(
                    score=vqa_accuracy(given.count(answer), len(given)),
                    # A slash separates the parts of a metric's name.
                    group=None if group is None else str(group).replace('/', '_'),
                )
            )

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Compute the means over the samples of all processes.

        Args:
            results (list[dict]): ``score`` and ``group`` of every sample.

        Returns:
            dict[str, float]: ``official_accuracy`` and ``<answer_type>/official_accuracy``, in percent.
        """
        if not results:
            raise ValueError('VQAv2Accuracy: there is no answer to evaluate; is the dataset of the loader empty?')
        return per_group(
            results, 'group', lambda rows: {'official_accuracy': 100 * sum(row['score'] for row in rows) / len(rows)}
        )


def _answers_of_all(sample: dict[str, Any]) -> list[str]:
    """The answers of a sample, one for each person."""
    answers = get_field(sample, 'gt_answer', 'VQAv2Accuracy')
    answers = [answers] if isinstance(answers, str) else list(answers)
    weights = sample.get('gt_answer_weight')
    if weights is not None:
        counts = [round(_PEOPLE * float(weight)) for weight in weights]
        exact = all(abs(_PEOPLE * float(weight) - count) < 1e-3 for weight, count in zip(weights, counts))
        if not exact or len(counts) != len(answers) or sum(counts) != _PEOPLE:
            raise ValueError(
                f'VQAv2Accuracy: gt_answer_weight={list(weights)} must be the share of the {_PEOPLE} people that gave '
                f'each of the {len(answers)} different answers: tenths that add up to 1.'
            )
        answers = [answer for answer, count in zip(answers, counts) for _ in range(count)]
    if len(answers) < 2:
        raise ValueError(
            f'VQAv2Accuracy: gt_answer={answers} must hold the answers of all people, usually {_PEOPLE}: the rule '
            "leaves each out in turn. For one accepted answer use dict(type='AnswerAccuracy')."
        )
    return answers
