"""Weights on disk: read without running code in the files and without loading them whole, and mixed."""

from ...utils.safe_load import (
    CheckpointError,
    UntrustedCheckpointError,
    guarded_mmengine,
    load_checkpoint,
    plain,
    restored,
    safe_load,
)
from .mix_files import check_out, mix_files
from .stored_weights import StoredWeights, read_checkpoint, read_state_dict, state_dict_of

__all__ = [
    'CheckpointError',
    'StoredWeights',
    'UntrustedCheckpointError',
    'check_out',
    'guarded_mmengine',
    'load_checkpoint',
    'mix_files',
    'plain',
    'read_checkpoint',
    'read_state_dict',
    'restored',
    'safe_load',
    'state_dict_of',
]
