"""Weights on disk: read without loading them whole, and mixed."""

from .mix_files import check_out, mix_files
from .stored_weights import StoredWeights
from .torch_file import load_checkpoint

__all__ = ['StoredWeights', 'check_out', 'load_checkpoint', 'mix_files']
