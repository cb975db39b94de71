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
]
