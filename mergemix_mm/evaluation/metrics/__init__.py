"""Metrics of `mergemix_mm`, registered in MMEngine's root METRICS."""

from ...moved import moved_names
from .answer_loss import AnswerLoss
from .calibration_error import AnswerCalibrationError, CalibrationError
from .corruption_error import CorruptionError
from .mme import MMEMetric
from .multiple_choice import MultipleChoiceMetric
from .pope import POPEMetric
from .referring_box import ReferringBoxMetric
from .text_detection import TextDetectionMetric
from .text_match import ANLSMetric, AnswerAccuracy, RelaxedAccuracy
from .vqav2_accuracy import VQAv2Accuracy

__all__ = [
    'ANLSMetric',
    'AnswerAccuracy',
    'AnswerCalibrationError',
    'AnswerLoss',
    'CalibrationError',
    'CorruptionError',
    'MMEMetric',
    'MultipleChoiceMetric',
    'POPEMetric',
    'ReferringBoxMetric',
    'RelaxedAccuracy',
    'TextDetectionMetric',
    'VQAv2Accuracy',
]

__getattr__ = moved_names(__name__, ['ShapesGenerationMetric'], 'toy')
