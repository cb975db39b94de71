"""Expected calibration error of classifiers and of generated answers (Guo et al. 2017, https://arxiv.org/abs/1706.04599)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import MessageHub
from mmengine.registry import METRICS
from mmengine.visualization import Visualizer

from ...visualization import draw_reliability_diagram, save_image
from .answers import get_field, is_right


@dataclass
class CalibrationBins:
    """Predictions grouped by their confidence, in M bins of equal width.

    Bin m (from 1) holds the confidences in ((m - 1) / M, m / M], as in the paper; a confidence of 0 is in the first.

    Attributes:
        count (torch.Tensor): Predictions per bin, [M] int64.
        confidence (torch.Tensor): Mean confidence per bin, [M] float64 in [0, 1]; 0 where a bin is empty.
        accuracy (torch.Tensor): Share of right predictions per bin, [M] float64 in [0, 1]; 0 where a bin is empty.
    """

    count: torch.Tensor
    confidence: torch.Tensor
    accuracy: torch.Tensor

    @classmethod
    def from_predictions(cls, confidence: torch.Tensor, correct: torch.Tensor, num_bins: int = 15) -> 'CalibrationBins':
        """Group predictions.

        Args:
            confidence (torch.Tensor): The highest class probability of each prediction, [N] in [0, 1].
            correct (torch.Tensor): Whether each prediction is right, [N] bool.
            num_bins (int): M. Defaults to 15.
        """
        # The edges take the precision of the scores: 0.2 in float32 is above 0.2 in float64, but lies on the edge.
        edges = (torch.arange(1, num_bins, dtype=torch.float64) / num_bins).to(confidence.dtype)
        index = torch.bucketize(confidence, edges)
        count = torch.bincount(index, minlength=num_bins)
        filled = count.clamp(min=1)
        return cls(
            count=count,
            confidence=torch.bincount(index, confidence.double(), num_bins) / filled,
            accuracy=torch.bincount(index, correct.double(), num_bins) / filled,
        )

    @property
    def gap(self) -> torch.Tensor:
        """Confidence minus accuracy per bin, [M] in [-1, 1]; positive where the classifier is overconfident."""
        return self.confidence - self.accuracy

    def expected_error(self) -> float:
        """ECE = sum_m |B_m| / N * |acc(B_m) - conf(B_m)| (equation 3 of the paper), in [0, 1]."""
        return float((self.count * self.gap.abs()).sum() / self.count.sum())

    def maximum_error(self) -> float:
        """MCE = max_m |acc(B_m) - conf(B_m)| over the bins that hold something (equation 5), in [0, 1]."""
        return float(self.gap.abs().max())

    def overconfidence(self) -> float:
        """Mean confidence minus accuracy over all predictions, in [-1, 1]; negative for an underconfident one."""
        return float((self.count * self.gap).sum() / self.count.sum())


@METRICS.register_module()
class CalibrationError(BaseMetric):
    """Calibration of a classifier: does its confidence equal its accuracy?

    The confidence of the predicted class is compared with the accuracy, bin by bin (Naeini et al. 2015; Guo et al.
    2017, https://arxiv.org/abs/1706.04599). All values are in percent, as in MMPretrain's ``Accuracy``:

    - ``calibration/ece``: expected calibration error, 0 (calibrated) to 100;
    - ``calibration/mce``: maximum calibration error over the bins, 0 to 100;
    - ``calibration/overconfidence``: mean confidence minus accuracy, -100 to 100. Mixing augmentations tend to push it
      below zero; the other two hide that, as they are absolute values.

    Args:
        bins (int): Number of bins of equal width. Defaults to 15.
        figure (str, optional): Where the reliability diagram goes: a path that ends in ``.png`` (the file appears only
            when it is complete), or the name of an image of the current Visualizer. Defaults to None: no diagram.
        collect_device (str): ``'cpu'`` or ``'gpu'``, how several processes gather. Defaults to ``'cpu'``.
        prefix (str, optional): Prefix of the names. Defaults to None, which means ``calibration``.

    Raises:
        ValueError: If ``bins`` is below 1, a sample has several labels, or scores are not probabilities.
        KeyError: If a sample has no ``pred_score``.

    Examples:
        >>> val_evaluator = [dict(type='Accuracy'), dict(type='CalibrationError', figure='reliability')]
    """

    default_prefix = 'calibration'

    def __init__(
        self, bins: int = 15, figure: str | None = None, collect_device: str = 'cpu', prefix: str | None = None
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        if not isinstance(bins, int) or isinstance(bins, bool) or bins < 1:
            raise ValueError(f'{type(self).__name__}: bins={bins!r} must be an integer of at least 1; 15 is usual.')
        self.bins = bins
        self.figure = figure

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        """Keep the confidence and the correctness of each prediction of a batch.

        Args:
            data_batch: Unused.
            data_samples (Sequence[dict]): MMPretrain's data samples as dictionaries, with ``pred_score`` [C] and
                ``gt_label`` [1].
        """
        for sample in data_samples:
            self.results.append(self._judge(sample))

    def _judge(self, sample: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """The confidence of a prediction, float32 in [0, 1], and whether it is right, bool."""
        if 'pred_score' not in sample:
            raise KeyError(
                f"CalibrationError: a data sample has no 'pred_score' (found: {sorted(sample)}). Calibration needs "
                'the probability of every class: use a head whose predict() sets pred_score, as ClsHead does.'
            )
        score = sample['pred_score'].detach().float().cpu()
        label = torch.as_tensor(sample['gt_label']).flatten().cpu()
        if label.numel() != 1:
            raise ValueError(
                f'CalibrationError: gt_label={label.tolist()} must hold exactly one class; '
                'this metric is for single-label classification.'
            )
        # The comparison is negated so that NaN is refused as well.
        if not (score.min() >= -1e-4 and score.max() <= 1 + 1e-4):
            raise ValueError(
                f'CalibrationError: pred_score ranges from {score.min():.4g} to {score.max():.4g}, but must hold '
                'probabilities in [0, 1]: apply softmax or sigmoid before.'
            )
        confidence, predicted = score.clamp(0, 1).max(dim=0)
        return confidence, predicted == label[0]

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Compute the errors over the samples of all processes, and draw the diagram.

        Args:
            results (list): (confidence, correct) of every sample.

        Returns:
            dict[str, float]: ``ece``, ``mce`` and ``overconfidence``, in percent.
        """
        if not results:
            raise ValueError(
                f'{type(self).__name__}: there is no prediction to evaluate; is the dataset of the loader empty?'
            )
        confidence, correct = (torch.stack(values) for values in zip(*results))
        bins = CalibrationBins.from_predictions(confidence, correct, self.bins)
        if self.figure is not None:
            self._draw(bins, self.figure)
        return {
            'ece': 100 * bins.expected_error(),
            'mce': 100 * bins.maximum_error(),
            'overconfidence': 100 * bins.overconfidence(),
        }

    def _draw(self, bins: CalibrationBins, figure: str) -> None:
        image = draw_reliability_diagram(bins.count.numpy(), bins.confidence.numpy(), bins.accuracy.numpy())
        if figure.endswith('.png'):
            save_image(image, figure)
        else:
            step = MessageHub.get_current_instance().get_info('iter', 0)
            Visualizer.get_current_instance().add_image(figure, image, step=step)


@METRICS.register_module()
class AnswerCalibrationError(CalibrationError):
    """Calibration of generated answers: does the confidence in them equal their accuracy?

    Arguments and values are those of :class:`CalibrationError`. The confidence is ``pred_confidence``, the model's
    probability of its whole answer, in [0, 1]. An answer is right if it equals the accepted one, or one of several,
    after :func:`~.answers.normalise_answer`. Use it for yes/no and short answers: the probability of a long text
    mostly depends on its length.

    Raises:
        KeyError: If a sample has no ``pred_confidence``, ``pred_answer`` or ``gt_answer``.
        ValueError: If ``bins`` is below 1, or a confidence is not a probability.

    Examples:
        >>> val_evaluator = [dict(type='AnswerAccuracy'), dict(type='AnswerCalibrationError', figure='reliability')]
    """

    def _judge(self, sample: dict) -> tuple[torch.Tensor, torch.Tensor]:
        keys = ('pred_confidence', 'pred_answer', 'gt_answer')
        confidence, answer, accepted = (get_field(sample, key, 'AnswerCalibrationError') for key in keys)
        confidence = torch.as_tensor(confidence).detach().float().cpu().flatten()
        # The comparison is negated so that NaN is refused as well.
        if confidence.numel() != 1 or not -1e-4 <= confidence <= 1 + 1e-4:
            raise ValueError(
                f'AnswerCalibrationError: pred_confidence={confidence.tolist()} must be one probability in [0, 1], '
                'that of the whole answer: the exponential of the sum of log-probabilities of its tokens.'
            )
        return confidence[0].clamp(0, 1), torch.tensor(is_right(answer, accepted))
