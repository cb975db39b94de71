"""From a command line to a Runner: what the tools share."""

from .config import (
    add_common_arguments,
    add_trust_argument,
    check_data_roots,
    check_resume,
    dataset_configs,
    load_config,
    merge_common_args,
    merge_options,
    set_loader_defaults,
    use_amp,
    use_own_hooks,
    use_own_weights,
)
from .errors import LaunchError, UnreadableImageError, explain_corrupt_images, explain_stops, safe_checkpoints
from .resuming import choose_checkpoint
from .runner import build_runner

__all__ = [
    'LaunchError',
    'UnreadableImageError',
    'add_common_arguments',
    'add_trust_argument',
    'build_runner',
    'check_data_roots',
    'check_resume',
    'choose_checkpoint',
    'dataset_configs',
    'explain_corrupt_images',
    'explain_stops',
    'load_config',
    'merge_common_args',
    'merge_options',
    'safe_checkpoints',
    'set_loader_defaults',
    'use_amp',
    'use_own_hooks',
    'use_own_weights',
]
