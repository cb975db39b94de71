"""Evaluation of `mergemix_mm`."""

from .metrics import (
    AnswerAccuracy,
    AnswerCalibrationError,
    CalibrationError,
    MultipleChoiceMetric,
    POPEMetric,
    ShapesGenerationMetric,
)

__all__ = [
    'AnswerAccuracy',
    'AnswerCalibrationError',
    'CalibrationError',
    'MultipleChoiceMetric',
    'POPEMetric',
    'ShapesGenerationMetric',
]
