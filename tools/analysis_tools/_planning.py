"""What the tools that look at models without weights share: options, the config, tables."""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mmengine.config import Config, DictAction
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope

from mergemix_mm.engine import launch
from mergemix_mm.engine.planning import HubConfigError, read_hub_configs
from mergemix_mm.utils.text import one_line


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --hub-config and --cfg-options."""
    parser.add_argument(
        '--hub-config',
        nargs='+',
        default=(),
        metavar='[NAME=]SOURCE',
        help='where the config.json of a model is that the config names by a hub name or folder, if not there: a '
        'config.json, a folder with one, a hub name, or a JSON file {name: config}; without NAME, it is for the '
        '`pretrained` of the vision-language model',
    )
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='config keys to override, key=value')


def load_config(path: str, options: dict | None) -> Config:
    """Read a config and get ready to build its model."""
    cfg = launch.load_config(path)
    launch.merge_options(cfg, options)
    MMLogger.get_instance('mmengine').setLevel('ERROR')  # The optimizer's builder has a line for every parameter.
    scope = cfg.get('default_scope') or 'mmpretrain'
    init_default_scope(scope)
    if not cfg.get('model'):
        raise launch.LaunchError(f'CONFIG: {path} has no model')
    return cfg


@contextmanager
def explained() -> Iterator[None]:
    """End the program with one line where a model or its batches cannot be made."""
    try:
        yield
    except HubConfigError as error:
        raise launch.LaunchError(f'--hub-config: {error}') from None
    except Exception as error:  # Whatever the code of a model raises of a config that it does not like.
        raise launch.LaunchError(f'CONFIG: the model cannot be built or run: {one_line(error)}') from error


def hub_configs(arguments: Sequence[str]) -> dict[str, dict]:
    """The content of --hub-config."""
    with explained():
        return read_hub_configs(arguments)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """A table in Markdown: the first columns to the left, the others, numbers, to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
    widths = [max(width, 3) for width in widths]

    def line(row: Sequence[str]) -> str:
        left = (cell.ljust(width) for cell, width in list(zip(row, widths, strict=True))[:text_columns])
        right = (cell.rjust(width) for cell, width in list(zip(row, widths, strict=True))[text_columns:])
        return f'| {" | ".join([*left, *right])} |'

    rule = ['-' * w if i < text_columns else '-' * (w - 1) + ':' for i, w in enumerate(widths)]
    return '\n'.join([line(header), line(rule), *(line(row) for row in rows)])
