"""Evaluation of `mergemix_mm`."""

from ..moved import moved_names
from .metrics import (
    ANLSMetric,
    AnswerAccuracy,
    AnswerCalibrationError,
    AnswerLoss,
    CalibrationError,
    CorruptionError,
    MMEMetric,
    MultipleChoiceMetric,
    POPEMetric,
    ReferringBoxMetric,
    RelaxedAccuracy,
    TextDetectionMetric,
    VQAv2Accuracy,
)

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
