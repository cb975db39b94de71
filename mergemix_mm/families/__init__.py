"""One adapter per family of transformers' vision-language models."""

from .base import Family, check_canvases
from .build import FAMILIES, find_family

__all__ = ['FAMILIES', 'Family', 'check_canvases', 'find_family']
