"""Evaluation of `mergemix_mm`."""

from .metrics import (
    ANLSMetric,
    AnswerAccuracy,
    AnswerCalibrationError,
    AnswerLoss,
    CalibrationError,
    MMEMetric,
    MultipleChoiceMetric,
    POPEMetric,
    ReferringBoxMetric,
    RelaxedAccuracy,
    ShapesGenerationMetric,
    TextDetectionMetric,
    VQAv2Accuracy,
)

__all__ = [
    'ANLSMetric',
    'AnswerAccuracy',
    'AnswerCalibrationError',
    'AnswerLoss',
    'CalibrationError',
    'MMEMetric',
    'MultipleChoiceMetric',
    'POPEMetric',
    'ReferringBoxMetric',
    'RelaxedAccuracy',
    'ShapesGenerationMetric',
    'TextDetectionMetric',
    'VQAv2Accuracy',
]
