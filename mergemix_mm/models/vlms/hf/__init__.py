"""Vision-language models of Hugging Face transformers: loading, saving, and merging of image tokens."""

from .hf_vision_language_model import HFVisionLanguageModel

__all__ = ['HFVisionLanguageModel']
