"""Generated answers against accepted ones: exact match, ANLS for text that is read, relaxed accuracy for charts."""

import re
from abc import abstractmethod
from collections.abc import Sequence

from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from ...utils.numbers import check_number
from .answers import get_field, group_of, is_right, per_group, percent

# 12, -3.5, 1,250 or .5, perhaps with a percent sign, and with the full stop of a sentence.
_NUMBER = re.compile(r'([-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?)\s*(%?)\.?')


class _TextMatch(BaseMetric):
    """Mean score of answers, in percent, over all and over each group."""

    default_prefix = 'answer'
    value: str

    @abstractmethod
    def score(self, answer: str, accepted: str) -> float:
        """How right an answer is, in [0, 1], given one accepted answer."""

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        """Score the answers of a batch, each against the accepted answer that it is closest to.

        Args:
            data_batch: Unused.
            data_samples (Sequence[dict]): Data samples as dictionaries, with ``pred_answer`` (str), ``gt_answer`` (str
                or list of str) and perhaps a group.
        """
        for sample in data_samples:
            answer, accepted = (get_field(sample, key, type(self).__name__) for key in ('pred_answer', 'gt_answer'))
            accepted = [accepted] if isinstance(accepted, str) else accepted
            score = max(self.score(answer, one) for one in accepted)
            self.results.append(dict(score=score, group=group_of(sample)))

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Compute the means over the samples of all processes.

        Args:
            results (list[dict]): ``score`` and ``group`` of every sample.

        Returns:
            dict[str, float]: The mean over all samples and per group, in percent.
        """
        if not results:
            name = type(self).__name__
            raise ValueError(f'{name}: there is no answer to evaluate; is the dataset of the loader empty?')
        return per_group(
            results, 'group', lambda rows: {self.value: 100 * sum(row['score'] for row in rows) / len(rows)}
        )


@METRICS.register_module()
class ANLSMetric(_TextMatch):
    """Average normalised Levenshtein similarity (Biten et al. 2019, https://arxiv.org/abs/1905.13648). In percent.

    For TextVQA-like questions of which the answer stands in the image (ST-VQA, DocVQA, InfographicVQA): an answer
    with a misread letter or two is worth nearly as much as the right one. With d the edit distance over the length of
    the longer text, an answer is worth 1 - d if d < ``threshold`` (equation 2 of the paper), else nothing. Case and
    surplus space make no difference.

    - ``answer/anls``: over all questions;
    - ``answer/<group>/anls``: over those of each ``split``, ``category`` or ``question_type`` (the first of these that
      a sample has).

    At a distance of exactly the threshold, the script of the DocVQA leaderboard gives 1 - d, and the paper nothing.
    MMPretrain's ``ANLS`` takes a single ``gt_answer`` for a list of letters, and divides by the length of the answer
    with its surplus space.

    Args:
        threshold (float): In (0, 1]. Defaults to 0.5.
        collect_device (str): ``'cpu'`` or ``'gpu'``, how several processes gather. Defaults to ``'cpu'``.
        prefix (str, optional): Prefix of the names. Defaults to None, which means ``answer``.

    Raises:
        KeyError: If a sample has no ``pred_answer`` or ``gt_answer``.
        ValueError: If ``threshold`` is outside its range, or there is no sample at all.
    """

    value = 'anls'

    def __init__(self, threshold: float = 0.5, collect_device: str = 'cpu', prefix: str | None = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        check_number('ANLSMetric: threshold', threshold, 'in (0, 1]; 0.5 is usual.', above=0, most=1)
        self.threshold = threshold

    def score(self, answer: str, accepted: str) -> float:
        answer, accepted = (' '.join(text.lower().split()) for text in (answer, accepted))
        distance = edit_distance(answer, accepted) / max(len(answer), len(accepted), 1)
        return 1 - distance if distance < self.threshold else 0.0


@METRICS.register_module()
class RelaxedAccuracy(_TextMatch):
    """Share of right answers, where numbers may be off by a few percent (Methani et al. 2020, for charts; ChartQA).

    https://arxiv.org/abs/1909.00997, https://arxiv.org/abs/2203.10244. If both texts are numbers, they may differ by
    ``tolerance`` times the accepted one; anything else has to be equal, after :func:`~.answers.normalise_answer`.
    *5%* is 0.05, as in ChartQA's scoring. In percent.

    - ``answer/relaxed_accuracy``: over all questions;
    - ``answer/<group>/relaxed_accuracy``: over those of each ``split``, ``category`` or ``question_type`` (the first of
      these that a sample has).

    Args:
        tolerance (float): In [0, 1). Defaults to 0.05.
        rule (str): How texts are compared. ``'strict'``: as above; *1,250* is a number, and 0 may be written *0.0*.
            ``'official'``: as the script does that published numbers of ChartQA come from (pix2struct's, which
            lmms-eval has as well): only what Python reads as a number is one, perhaps with a percent sign; anything
            else, and an accepted 0, has to be equal but for case. Defaults to ``'strict'``.
        collect_device (str): ``'cpu'`` or ``'gpu'``, how several processes gather. Defaults to ``'cpu'``.
        prefix (str, optional): Prefix of the names. Defaults to None, which means ``answer``.

    Raises:
        KeyError: If a sample has no ``pred_answer`` or ``gt_answer``.
        ValueError: If ``tolerance`` is outside its range, ``rule`` is unknown, or there is no sample at all.
    """

    value = 'relaxed_accuracy'

    def __init__(
        self,
        tolerance: float = 0.05,
        collect_device: str = 'cpu',
        prefix: str | None = None,
        rule: str = 'strict',
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        check_number('RelaxedAccuracy: tolerance', tolerance, 'in [0, 1); 0.05 is usual.', least=0, below=1)
        if rule not in ('strict', 'official'):
            raise ValueError(f"RelaxedAccuracy: rule={rule!r} must be 'strict' or 'official'.")
        self.tolerance, self.rule = tolerance, rule

    def score(self, answer: str, accepted: str) -> float:
        if self.rule == 'official':
            number, right = read_number_officially(answer), read_number_officially(accepted)
            if number is None or not right:
                return float(answer.lower() == accepted.lower())
            return float(abs(number - right) / abs(right) <= self.tolerance)
        number, right = read_number(answer), read_number(accepted)
        if number is None or right is None:
            return float(is_right(answer, accepted))
        return float(abs(number - right) <= self.tolerance * abs(right))


def read_number(text: str) -> float | None:
    """The number that a text is, or None if it is something else: *1,250* is 1250, *-5 %* is -0.05."""
    found = _NUMBER.fullmatch(text.strip())
    if not found or not found[1].strip('+-'):
        return None
    return float(found[1].replace(',', '')) / (100 if found[2] else 1)


def read_number_officially(text: str) -> float | None:
    """The number that Python reads in a text, a hundredth of it before percent signs at the end, or None."""
    try:
        return float(text.rstrip('%')) / 100 if text.endswith('%') else float(text)
    except ValueError:
        return None


def edit_distance(one: str, other: str) -> int:
    """Levenshtein's distance: the fewest insertions, deletions and substitutions that turn one text into the other."""
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        above, row = row, [i]
        for j, wanted in enumerate(other, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (letter != wanted)))
    return row[-1]


@METRICS.register_module()
class AnswerAccuracy(BaseMetric):
    """Share of the answers that equal an accepted one, after :func:`~.answers.normalise_answer`. In percent.

    - ``answer/accuracy``: over all questions;
    - ``answer/<question_type>/accuracy``: over the questions of each type, where samples have a ``question_type``.

    Any of several accepted answers is as good as another. For VQAv2, where ten people answered and an answer counts
    in full if four of them gave it, use ``VQAv2Accuracy`` with all ten in ``gt_answer``.

    Args:
        collect_device (str): ``'cpu'`` or ``'gpu'``, how several processes gather. Defaults to ``'cpu'``.
        prefix (str, optional): Prefix of the names. Defaults to None, which means ``answer``.

    Raises:
        KeyError: If a sample has no ``pred_answer`` or ``gt_answer``.
        ValueError: If there is no sample at all.
    """

    default_prefix = 'answer'

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        """Compare the answers of a batch.

        Args:
            data_batch: Unused.
            data_samples (Sequence[dict]): Data samples as dictionaries, with ``pred_answer`` (str), ``gt_answer`` (str
                or list of str) and perhaps ``question_type`` (str).
        """
        for sample in data_samples:
            answer, accepted = (get_field(sample, key, 'AnswerAccuracy') for key in ('pred_answer', 'gt_answer'))
            self.results.append(dict(right=is_right(answer, accepted), group=sample.get('question_type')))

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Compute the shares over the samples of all processes.

        Args:
            results (list[dict]): ``right`` and ``group`` of every sample.

        Returns:
            dict[str, float]: ``accuracy`` and ``<question_type>/accuracy``, in percent.
        """
        if not results:
            raise ValueError('AnswerAccuracy: there is no answer to evaluate; is the dataset of the loader empty?')
        return per_group(results, 'group', lambda rows: {'accuracy': percent([row['right'] for row in rows])})
