"""Exact match of generated answers, over all questions and per type of question."""

from collections.abc import Sequence

from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from .answers import get_field, is_right, per_group, percent


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
