"""Vision-language models of Hugging Face transformers: loading, saving, and fewer image tokens."""

from .hf_vision_language_model import HFVisionLanguageModel

__all__ = ['HFVisionLanguageModel']
