"""Accuracy of a classifier for each kind of corruption (https://arxiv.org/abs/1903.12261)."""

from collections.abc import Sequence

from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS


@METRICS.register_module()
class CorruptionError(BaseMetric):
    """Top-1 accuracy for each corruption, and the mean error over corruptions.

    Values are in percent:

    - ``corruption/mean_error``: 100 - top-1, averaged over the corruptions, each with the same weight. On CIFAR-C it
      is reported as it is; the mCE of ImageNet-C also divides by the errors of AlexNet, which this metric does not.
    - ``corruption/mean_top1``: 100 - ``mean_error``;
    - ``corruption/top1_NAME``: top-1 accuracy over all severities of a corruption.

    Args:
        collect_device (str): ``'cpu'`` or ``'gpu'``, how several processes gather. Defaults to ``'cpu'``.
        prefix (str, optional): Prefix of the names. Defaults to None, which means ``corruption``.

    Raises:
        KeyError: If a sample has no ``corruption``.

    Examples:
        >>> test_evaluator = dict(type='CorruptionError')
    """

    default_prefix = 'corruption'

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        """Keep the corruption of each sample, and whether its prediction is right.

        Args:
            data_batch: Unused.
            data_samples (Sequence[dict]): MMPretrain's data samples as dictionaries, with ``corruption``,
                ``pred_label`` [1] and ``gt_label`` [1].
        """
        for sample in data_samples:
            if 'corruption' not in sample:
                raise KeyError(
                    f"CorruptionError: a data sample has no 'corruption' (found: {sorted(sample)}); end the pipeline "
                    "of CIFAR100C with dict(type='PackInputs', meta_keys=('corruption', 'severity'))"
                )
            self.results.append((sample['corruption'], int(sample['pred_label']) == int(sample['gt_label'])))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Average over the samples of all processes.

        Args:
            results (list): (corruption, right) of every sample.

        Returns:
            dict[str, float]: In percent.
        """
        by_name: dict[str, list[bool]] = {}
        for corruption, right in results:
            by_name.setdefault(corruption, []).append(right)
        top1 = {name: 100 * sum(found) / len(found) for name, found in by_name.items()}
        mean = sum(top1.values()) / len(top1)
        return dict(mean_error=100 - mean, mean_top1=mean) | {f'top1_{name}': value for name, value in top1.items()}
