"""What the tools that look at models without weights share: flags, the config, and errors of one line."""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mmengine.config import Config
from mmengine.logging import MMLogger

from ...utils.text import one_line
from .. import launch
from .batches import UnknownBatchError
from .plan import PlanError
from .weightless import HubConfigError, read_hub_configs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--hub-config`` and ``--cfg-options``."""
    parser.add_argument(
        '--hub-config',
        nargs='+',
        default=(),
        metavar='[NAME=]SOURCE',
        help='where to read the config.json of a model that the config names by a hub name or folder: a config.json, a '
        'folder with one, a hub name, or a JSON file {name: config}; without NAME, it is for the `pretrained` of the '
        'vision-language model',
    )
    launch.add_config_options(parser)


def read_model_config(path: str, options: dict[str, Any] | None) -> Config:
    """Read a config whose model will be built.

    Raises:
        LaunchError: If the config does not exist or has no model.
    """
    cfg = launch.read_config(path, options)
    # The builder of the optimizer logs a line for every parameter.
    MMLogger.get_instance('mmengine').setLevel('ERROR')
    if not cfg.get('model'):
        raise launch.LaunchError(f'CONFIG: {path} has no model')
    return cfg


@contextmanager
def explained() -> Iterator[None]:
    """End the program with one line if a model or its batches cannot be made.

    Raises:
        LaunchError: Instead of whatever the model's code raises for its config.
    """
    try:
        yield
    except HubConfigError as error:
        raise launch.LaunchError(f'--hub-config: {error}') from None
    except (PlanError, UnknownBatchError) as error:
        raise launch.LaunchError(str(error)) from None
    except Exception as error:
        raise launch.LaunchError(f'CONFIG: the model cannot be built or run: {one_line(error)}') from error


def hub_configs(arguments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The content of ``--hub-config`` by the names of the models."""
    with explained():
        return read_hub_configs(arguments)
