"""Evaluation of `mergemix_mm`."""

from .metrics import CalibrationError

__all__ = ['CalibrationError']
