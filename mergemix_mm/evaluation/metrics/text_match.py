"""Generated answers against accepted ones: exact match, ANLS for text that is read, relaxed accuracy for charts."""

import re
from abc import abstractmethod
from collections.abc import Sequence

from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from ...utils.numbers import check_number
from .answers import get_field, group_of, is_right, per_group, percent

# 12, -3.5, 1,250 or .5, optionally with a percent sign and the full stop of a sentence.
_NUMBER = re.compile(r'([-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?)\s*(%?)\.?')


class _TextMatch(BaseMetric):
    """Mean score of answers, in percent, over all and over each group."""

    default_prefix = 'answer'
    value: str

    @abstractmethod
    def score(self, answer: str, accepted: str) -> float:
        """How right an answer is, in [0, 1], given one accepted answer."""

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        """Score the answers of a batch, each against the closest of the accepted answers.

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

    For questions whose answer is written in the image (ST-VQA, DocVQA, InfographicVQA): an answer with one or two
    misread letters scores nearly as much as the right one. Let d be the edit distance divided by the length of the
    longer text. An answer scores 1 - d if d < ``threshold`` (equation 2 of the paper), otherwise 0. Case and surplus
    space are ignored.

    - ``answer/anls``: over all questions;
    - ``answer/<group>/anls``: over those of each ``split``, ``category`` or ``question_type`` (the first of these that
      a sample has).

    At a distance of exactly the threshold, the script of the DocVQA leaderboard gives 1 - d, and the paper 0.
    MMPretrain's ``ANLS`` takes a single ``gt_answer`` for a list of letters, and divides by the length of the answer
    with its surplus space.

    Args:
        threshold (float): In (0, 1]. Defaults to 0.5.
        collect_device (str): ``'cpu'`` or ``'gpu'``, how several processes gather. Defaults to ``'cpu'``.
        prefix (str, optional): Prefix of the names. Defaults to None, which means ``answer``.

    Raises:
        KeyError: If a sample has no ``pred_answer`` or ``gt_answer``.
        ValueError: If ``threshold`` is outside its range, or there is no sample.
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
    """Share of right answers, where numbers may differ by a few percent (Methani et al. 2020, for charts; ChartQA).

    https://arxiv.org/abs/1909.00997, https://arxiv.org/abs/2203.10244. If both texts are numbers, they may differ by
    ``tolerance`` times the accepted one; anything else has to be equal, after :func:`~.answers.normalise_answer`.
    *5%* is 0.05, as in ChartQA's scoring. In percent.

    - ``answer/relaxed_accuracy``: over all questions;
    - ``answer/<group>/relaxed_accuracy``: over those of each ``split``, ``category`` or ``question_type`` (the first of
      these that a sample has).

    Args:
        tolerance (float): In [0, 1). Defaults to 0.05.
        rule (str): How texts are compared. ``'strict'``: as above; *1,250* is a number, and 0 may be written *0.0*.
            ``'official'``: like the script behind the published numbers of ChartQA (pix2struct's, also in lmms-eval).
            There, only what Python reads as a number is one, optionally with a percent sign; anything else, and an
            accepted 0, has to be equal up to case. Defaults to ``'strict'``.
        collect_device (str): ``'cpu'`` or ``'gpu'``, how several processes gather. Defaults to ``'cpu'``.
        prefix (str, optional): Prefix of the names. Defaults to None, which means ``answer``.

    Raises:
        KeyError: If a sample has no ``pred_answer`` or ``gt_answer``.
        ValueError: If ``tolerance`` is outside its range, ``rule`` is unknown, or there is no sample.
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
    """The number that a text consists of, or None: *1,250* is 1250, *-5 %* is -0.05."""
    found = _NUMBER.fullmatch(text.strip())
    if not found or not found[1].strip('+-'):
        return None
    return float(found[1].replace(',', '')) / (100 if found[2] else 1)


def read_number_officially(text: str) -> float | None:
    """The number that Python reads in a text, divided by 100 if a percent sign ends the text, or None."""
    try:
        return float(text.rstrip('%')) / 100 if text.endswith('%') else float(text)
    except ValueError:
        return None


def edit_distance(one: str, other: str) -> int:
    """Levenshtein's distance: the fewest insertions, deletions and substitutions that turn one text into the other."""
    # Only one row of the table of distances is kept.
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

    Several accepted answers count equally. For VQAv2, where an answer is fully right if four of ten people gave it,
    use ``VQAv2Accuracy`` with all ten answers in ``gt_answer``.

    Args:
        collect_device (str): ``'cpu'`` or ``'gpu'``, how several processes gather. Defaults to ``'cpu'``.
        prefix (str, optional): Prefix of the names. Defaults to None, which means ``answer``.

    Raises:
        KeyError: If a sample has no ``pred_answer`` or ``gt_answer``.
        ValueError: If there is no sample.
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
