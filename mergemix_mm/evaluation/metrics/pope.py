"""POPE: does a model see objects that are not in the image? (Li et al. 2023, https://arxiv.org/abs/2305.10355)."""

import re
from collections.abc import Sequence

from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from .answers import get_field, per_group, percent


def read_yes_no(text: str) -> str | None:
    """The first *yes* or *no* among the words of the first sentence, in any case.

    Returns:
        str, optional: ``'yes'``, ``'no'``, or None if there is neither.
    """
    sentence = re.split(r'[.!?\n]', text.strip(), maxsplit=1)[0]
    found = re.search(r'\b(yes|no)\b', sentence.casefold())
    return found and found[1]


def read_yes_no_officially(text: str) -> str:
    """The rule of POPE's own script: *no* if the first sentence has the word *No*, *no* or *not*, otherwise *yes*.

    Returns:
        str: ``'yes'`` or ``'no'``; an empty answer is ``'yes'``.
    """
    words = text.split('.')[0].replace(',', '').split(' ')
    return 'no' if {'No', 'no', 'not'} & set(words) else 'yes'


_RULES = dict(strict=read_yes_no, official=read_yes_no_officially)


@METRICS.register_module()
class POPEMetric(BaseMetric):
    """Accuracy, precision, recall and F1 of yes/no questions, where *yes* is the positive class. In percent.

    Li et al. 2023, https://arxiv.org/abs/2305.10355.

    - ``pope/accuracy``: share of right answers. An unreadable one is wrong;
    - ``pope/precision``, ``pope/recall``, ``pope/f1``: of *yes*; 0 if there is none. An unreadable answer is not a
      *yes*: it lowers the recall if *yes* is right;
    - ``pope/yes_rate``: share of *yes* among all answers; 50 is ideal, as the questions of POPE are balanced;
    - ``pope/unreadable``: share of answers that are neither;
    - ``pope/<category>/...``: the same over the questions of each category (random, popular, adversarial), and
      ``pope/mean/...`` their means over the categories, which papers give as "POPE", if samples have a ``category``.

    Args:
        rule (str): How an answer is read. ``'strict'``: the first *yes* or *no* of its first sentence; without one it
            is unreadable. ``'official'``: the rule of POPE's own script, for comparison with published numbers: *no*
            if the first sentence has the word *No*, *no* or *not*, otherwise *yes*. The rules agree on models that
            answer Yes or No; with the official one, silence and chatter are right for half of the questions.
            Defaults to ``'strict'``.
        collect_device (str): ``'cpu'`` or ``'gpu'``, how several processes gather. Defaults to ``'cpu'``.
        prefix (str, optional): Prefix of the names. Defaults to None, which means ``pope``.

    Raises:
        KeyError: If a sample has no ``pred_answer`` or ``gt_answer``.
        ValueError: If ``rule`` is unknown, a ``gt_answer`` is neither yes nor no, or there is no sample at all.
    """

    default_prefix = 'pope'

    def __init__(self, rule: str = 'strict', collect_device: str = 'cpu', prefix: str | None = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        if rule not in _RULES:
            raise ValueError(f'POPEMetric: rule={rule!r} must be one of {sorted(_RULES)}.')
        self.read = _RULES[rule]

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        """Read the answers of a batch.

        Args:
            data_batch: Unused.
            data_samples (Sequence[dict]): Data samples as dictionaries, with ``pred_answer`` (str), ``gt_answer``
                (``'yes'`` or ``'no'``, in any case) and perhaps ``category`` (str).
        """
        for sample in data_samples:
            answer, truth = (get_field(sample, key, 'POPEMetric') for key in ('pred_answer', 'gt_answer'))
            truth = truth[0] if isinstance(truth, (list, tuple)) and len(truth) == 1 else truth
            if not isinstance(truth, str) or truth.strip().casefold() not in ('yes', 'no'):
                raise ValueError(f"POPEMetric: gt_answer={truth!r} must be 'yes' or 'no'.")
            self.results.append(
                dict(answer=self.read(answer), truth=truth.strip().casefold(), category=sample.get('category'))
            )

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Compute the values over the samples of all processes.

        Args:
            results (list[dict]): ``answer``, ``truth`` and ``category`` of every sample.

        Returns:
            dict[str, float]: The values over all samples, per category, and their means, in percent.
        """
        if not results:
            raise ValueError('POPEMetric: there is no answer to evaluate; is the dataset of the loader empty?')
        values = per_group(results, 'category', _score)
        categories = {name.split('/')[0] for name in values if '/' in name}
        if categories:
            for name in _score(results):
                values[f'mean/{name}'] = sum(values[f'{each}/{name}'] for each in categories) / len(categories)
        return values


def _score(rows: Sequence[dict]) -> dict[str, float]:
    said_yes, is_yes = ([row for row in rows if row[key] == 'yes'] for key in ('answer', 'truth'))
    precision = percent([row['truth'] == 'yes' for row in said_yes])
    recall = percent([row['answer'] == 'yes' for row in is_yes])
    return {
        'accuracy': percent([row['answer'] == row['truth'] for row in rows]),
        'precision': precision,
        'recall': recall,
        'f1': 2 * precision * recall / (precision + recall) if precision + recall else 0.0,
        'yes_rate': percent([row['answer'] == 'yes' for row in rows]),
        'unreadable': percent([row['answer'] is None for row in rows]),
    }
