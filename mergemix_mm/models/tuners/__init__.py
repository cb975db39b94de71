"""Tuners: the MMEngine models that train a vision-language model."""

from .base_tuner import BaseTuner
from .mix_canvases import CanvasMix, mix_canvases
from .unified_tuner import UnifiedTuner
from .vlm_tuner import VLMTuner

__all__ = ['BaseTuner', 'CanvasMix', 'UnifiedTuner', 'VLMTuner', 'mix_canvases']
