"""Expected calibration error of generated answers (Guo et al. 2017, https://arxiv.org/abs/1706.04599)."""

import torch
from mmengine.registry import METRICS

from .answers import get_field, is_right
from .calibration_error import CalibrationError


@METRICS.register_module()
class AnswerCalibrationError(CalibrationError):
    """Does the confidence in a generated answer mean what it says?

    :class:`CalibrationError` with other samples: the confidence is ``pred_confidence``, the model's probability of
    its whole answer, in [0, 1]; an answer is right if it equals the accepted one, or one of several, after
    :func:`~.answers.normalise_answer`. Arguments and values are the same. For yes/no and short answers: the
    probability of a long text says how long it is.

    Raises:
        KeyError: If a sample has no ``pred_confidence``, ``pred_answer`` or ``gt_answer``.
        ValueError: If ``bins`` is below 1, or a confidence is no probability.

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
