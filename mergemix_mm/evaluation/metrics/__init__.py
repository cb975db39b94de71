"""Metrics of `mergemix_mm`, registered in MMEngine's root METRICS."""

from .calibration_error import CalibrationError

__all__ = ['CalibrationError']
