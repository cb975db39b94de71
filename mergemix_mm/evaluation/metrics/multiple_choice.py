"""Accuracy on multiple-choice questions, by the letter of the option in free text."""

from collections.abc import Sequence
from string import ascii_uppercase

from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from .answers import get_field, percent
from .option_letters import read_option


@METRICS.register_module()
class MultipleChoiceMetric(BaseMetric):
    """Share of multiple-choice questions whose option was chosen. In percent.

    - ``choice/accuracy``: share of right options. An unreadable answer is wrong; MMPretrain's ``ScienceQAMetric`` draws
      an option in its place;
    - ``choice/unreadable``: share of answers that choose no option, by :func:`~.option_letters.read_option`.
      docs/option_letters.md has the table of the forms that are read, and of those that are not.

    Args:
        collect_device (str): ``'cpu'`` or ``'gpu'``, how several processes gather. Defaults to ``'cpu'``.
        prefix (str, optional): Prefix of the names. Defaults to None, which means ``choice``.

    Raises:
        KeyError: If a sample has no ``pred_answer``, ``gt_answer`` or ``choices``.
        ValueError: If there are no choices or more than 26, a ``gt_answer`` is not one of them, or there is no sample.
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
            if isinstance(choices, str) or not 0 < len(choices) <= len(ascii_uppercase):
                raise ValueError(
                    f'MultipleChoiceMetric: choices={choices!r:.80} must be a list of 1 to {len(ascii_uppercase)} '
                    'texts, one for each letter from A.'
                )
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
