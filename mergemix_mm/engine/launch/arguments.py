"""The flags that several tools have: each has one name, one meaning and one help text."""

import argparse

import torch
from mmengine.config import DictAction
from mmengine.device import get_device

DTYPES = ('float32', 'bfloat16', 'float16')


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that training and testing share, named as in MMPretrain's tools."""
    parser.add_argument('--work-dir', help='folder for logs, checkpoints and metrics; ./work_dirs/<config> if left out')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument('--no-pin-memory', action='store_true', help='switch pin_memory off in all data loaders')
    add_config_options(parser)
    add_trust_argument(parser)
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by the launcher')


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-options``, which overrides entries of the config."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override config entries: key=value, with dots for nested keys, key="[a,b]" for lists',
    )


def add_trust_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--trust-checkpoint``, which allows files that hold more than weights."""
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='also read checkpoints and annotations that hold more than plain data; such a file can run any code',
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of tools that load a vision-language model and its chat template."""
    parser.add_argument(
        '--dtype', choices=DTYPES, help='of the weights (default: bfloat16 on an accelerator, float32 on a CPU)'
    )
    parser.add_argument('--device', help="e.g. 'cuda:1' or 'cpu' (default: the accelerator, if there is one)")
    parser.add_argument('--chat-template', help="name of a template of this repository, or a file (default: MODEL's)")
    parser.add_argument(
        '--trust-remote-code',
        action='store_true',
        help='run code that comes with the weights, or that their config names',
    )


def device_and_dtype(device: str | None = None, dtype: str | None = None) -> tuple[str, str]:
    """The device and the dtype of the weights that ``--device`` and ``--dtype`` ask for.

    Args:
        device (str, optional): Defaults to None, which is the accelerator, or the CPU if there is none.
        dtype (str, optional): Defaults to None, which is bfloat16 on an accelerator and float32 on a CPU.
    """
    device = device or get_device()
    return device, dtype or ('float32' if torch.device(device).type == 'cpu' else 'bfloat16')
