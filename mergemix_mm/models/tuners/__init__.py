"""Tuners: the MMEngine models that train a vision-language model."""

from .mix_canvases import CanvasMix, mix_canvases
from .vlm_tuner import VLMTuner

__all__ = ['CanvasMix', 'VLMTuner', 'mix_canvases']
