"""Metrics of `mergemix_mm`, registered in MMEngine's root METRICS."""

from .answer_accuracy import AnswerAccuracy
from .answer_calibration_error import AnswerCalibrationError
from .calibration_error import CalibrationError
from .multiple_choice import MultipleChoiceMetric
from .pope import POPEMetric
from .shapes_generation import ShapesGenerationMetric

__all__ = [
    'AnswerAccuracy',
    'AnswerCalibrationError',
    'CalibrationError',
    'MultipleChoiceMetric',
    'POPEMetric',
    'ShapesGenerationMetric',
]
