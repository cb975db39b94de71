"""From a command line to a Runner: what the tools share."""

from .arguments import (
    DTYPES,
    add_common_arguments,
    add_config_options,
    add_model_arguments,
    add_trust_argument,
    device_and_dtype,
)
from .config import (
    check_data_roots,
    check_resume,
    dataset_configs,
    figure_path,
    load_config,
    merge_common_args,
    merge_options,
    read_config,
    read_in_this_process,
    set_loader_defaults,
    use_amp,
    use_own_hooks,
    use_own_weights,
)
from .errors import LaunchError, UnreadableImageError, explain_corrupt_images, explain_stops, safe_checkpoints
from .resuming import choose_checkpoint
from .runner import build_runner

__all__ = [
    'DTYPES',
    'LaunchError',
    'UnreadableImageError',
    'add_common_arguments',
    'add_config_options',
    'add_model_arguments',
    'add_trust_argument',
    'build_runner',
    'check_data_roots',
    'check_resume',
    'choose_checkpoint',
    'dataset_configs',
    'device_and_dtype',
    'explain_corrupt_images',
    'explain_stops',
    'figure_path',
    'load_config',
    'merge_common_args',
    'merge_options',
    'read_config',
    'read_in_this_process',
    'safe_checkpoints',
    'set_loader_defaults',
    'use_amp',
    'use_own_hooks',
    'use_own_weights',
]
