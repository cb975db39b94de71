"""Cross-entropy of given answers: how well a model predicts them, token by token."""

import math
from collections.abc import Sequence

from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from .answers import get_field


@METRICS.register_module()
class AnswerLoss(BaseMetric):
    """Negative log-probability of the answers of a set, per token.

    On text without images, it says whether a language model survived learning to see. All tokens count equally, in
    short and in long answers and on all processes; end tokens count, prompts do not.

    - ``answer/loss``: nats per answer token;
    - ``answer/perplexity``: its exponential.

    The tuners score the answers of batches that have ``labels``: encode with ``generate=False``, and collate with
    ``padding_side='right'``.

    Args:
        collect_device (str): ``'cpu'`` or ``'gpu'``, how several processes gather. Defaults to ``'cpu'``.
        prefix (str, optional): Prefix of the names. Defaults to None, which means ``answer``.

    Raises:
        KeyError: If a sample has no ``answer_logp`` or ``answer_length``.
        ValueError: If there is no answer token.

    Examples:
        >>> test_evaluator = dict(type='AnswerLoss', prefix='text')
    """

    default_prefix = 'answer'

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        """Keep the scores of a batch.

        Args:
            data_batch: Unused.
            data_samples (Sequence[dict]): Data samples as dictionaries, with ``answer_logp`` (float, the sum over the
                tokens of an answer) and ``answer_length`` (int, their number).
        """
        for sample in data_samples:
            if 'pred_answer' in sample and 'answer_logp' not in sample:
                raise KeyError(
                    'AnswerLoss: the model wrote answers instead of scoring the given ones; encode the data with '
                    'generate=False (for tools/evaluate.py: encode_options = dict(generate=False)).'
                )
            self.results.append(tuple(get_field(sample, key, 'AnswerLoss') for key in ('answer_logp', 'answer_length')))

    def compute_metrics(self, results: list[tuple[float, int]]) -> dict[str, float]:
        """Compute the loss over the samples of all processes.

        Args:
            results (list[tuple[float, int]]): Log-probability and number of tokens of every answer.

        Returns:
            dict[str, float]: ``loss`` and ``perplexity``.
        """
        length = sum(length for _, length in results)
        if not length:
            raise ValueError('AnswerLoss: there is no answer token to score; is the dataset of the loader empty?')
        loss = -math.fsum(logp for logp, _ in results) / length
        return dict(loss=loss, perplexity=math.exp(loss) if loss < _LARGEST else math.inf)


_LARGEST = 709.0  # What a float can hold the exponential of.
