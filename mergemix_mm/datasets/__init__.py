"""Datasets of `mergemix_mm`, registered in MMEngine's root DATASETS."""

from .digits import DigitsDataset

__all__ = ['DigitsDataset']
