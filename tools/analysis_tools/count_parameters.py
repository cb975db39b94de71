"""Counts the parameters of models at full size, without their weights. Only the configs of hub models are read.

One config gives a table of its parts. Several configs give a table with one line each.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mergemix_mm.engine.planning import GIB, PartSize, build_weightless, image_input, part_sizes
from mergemix_mm.engine.planning.command import add_arguments, explained, hub_configs, read_model_config
from mergemix_mm.models.tuners import BaseTuner
from mergemix_mm.utils.tables import markdown_table


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('configs', nargs='+', metavar='CONFIG', help='configs of classifiers, detectors or tuners')
    add_arguments(parser)
    return parser.parse_args(argv)


def describe(path: str, hub: dict[str, dict], options: dict | None = None) -> tuple[list[PartSize], int | None]:
    """The parts of the model of a config, and for a VLM the number of tokens of an image."""
    cfg = read_model_config(path, options)
    with explained():
        model = build_weightless(cfg.model, hub)
        tokens = image_input(cfg, model.vlm).num_tokens if isinstance(model, BaseTuner) else None
    return part_sizes(model), tokens


def table(parts: list[PartSize]) -> str:
    """The table of the parts of one model."""
    rows = [(one.name, ', '.join(sorted(one.dtypes)), f'{one.parameters:,}', f'{one.trained:,}') for one in parts]
    total = [sum(getattr(one, key) for one in parts) for key in ('parameters', 'trained')]
    rows.append(('all', '', *(f'{value:,}' for value in total)))
    return markdown_table(('part', 'dtype', 'parameters', 'trained'), rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table.

    Args:
        argv (Sequence[str], optional): The command line. Defaults to that of the process.
    """
    args = parse_args(argv)
    hub = hub_configs(args.hub_config)
    if len(args.configs) == 1:
        parts, tokens = describe(args.configs[0], hub, args.cfg_options)
        print(table(parts))
        if tokens is not None:
            print(f'\nimage tokens: {tokens:,}')
        return
    rows = []
    for path in args.configs:
        parts, tokens = describe(path, hub, args.cfg_options)
        total, trained = (sum(getattr(one, key) for one in parts) for key in ('parameters', 'trained'))
        size = sum(one.bytes for one in parts) / GIB
        rows.append(
            (Path(path).stem, f'{total:,}', f'{trained:,}', f'{size:.1f}', '-' if tokens is None else f'{tokens:,}')
        )
    print(markdown_table(('config', 'parameters', 'trained', 'weights (GiB)', 'image tokens'), rows))


if __name__ == '__main__':
    main()
