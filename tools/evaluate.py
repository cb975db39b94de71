"""Evaluates a checkpoint of a vision-language model or a classifier on several benchmarks, and prints one table."""

import argparse
import math
from collections.abc import Sequence
from numbers import Real
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import is_main_process

from mergemix_mm import config_path
from mergemix_mm.engine import launch
from mergemix_mm.utils.files import write_json

NOTES = """
CONFIG gives the model and, in its variable `encode`, the transform that makes the inputs of the model (see
configs/_base_/models). The data of CONFIG are not used. A benchmark is a config with `test_dataloader` and
`test_evaluator`. `encode` becomes the last transform of its pipeline, with max_length=None and generate=True, and
replaces a transform of the same type. A benchmark can set other options in its variable `encode_options`; for example,
`encode_options = dict(generate=False)` scores the given answers instead of generating new ones. A classifier has no
`encode`: the pipeline of its benchmark (cifar100-c) is whole.

Keys of --cfg-options are those of CONFIG. The data of a benchmark are at test_dataloader.NAME, for example
  --cfg-options test_dataloader.pope.dataset.data_root=/data/coco
For several processes, start it with torchrun and --launcher pytorch, as tools/dist_test.sh starts tools/test.py.
"""
HEADER = ('benchmark', 'metric', 'value', 'samples')


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=NOTES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file of the model')
    parser.add_argument('checkpoint', help="checkpoint file, or 'none' for the weights that model.vlm comes with")
    parser.add_argument(
        'benchmarks',
        nargs='+',
        metavar='benchmark',
        help="name of a file in configs/_base_/datasets, such as 'pope', or path of a config (.py)",
    )
    launch.add_common_arguments(parser)
    parser.add_argument('--output', type=Path, help='JSON file for the results')
    return parser.parse_args(arguments)


def merge_args(cfg: Config, args: argparse.Namespace) -> Config:
    """Replace the tests of the config by the benchmarks, then apply the flags, and ``--cfg-options`` last."""
    launch.merge_common_args(cfg, args)
    # Every process has the whole model: sharded layers would be gathered again for every token.
    for key in ('strategy', 'runner_type'):
        cfg.pop(key, None)
    cfg.load_from = args.checkpoint
    benchmarks = [read_benchmark(name, cfg.get('encode')) for name in args.benchmarks]
    names = [name for name, _ in benchmarks]
    unencoded = [name for name, benchmark in benchmarks if cfg.get('encode') is None and not packs_inputs(benchmark)]
    if unencoded:
        raise launch.LaunchError(
            f'CONFIG: {args.config} has no `encode`, the transform that makes the inputs of its model, which '
            f"{', '.join(unencoded)} needs; set it, e.g. encode=dict(type='EncodeConversation', processor=...), as "
            'configs/_base_/models do'
        )
    if len(set(names)) < len(names):
        raise launch.LaunchError(f'BENCHMARK: {", ".join(names)}: each name may be there once; rename a file')
    cfg.test_dataloader = {name: benchmark.test_dataloader for name, benchmark in benchmarks}
    cfg.test_evaluator = {name: benchmark.test_evaluator for name, benchmark in benchmarks}
    cfg.test_cfg = dict(type='BenchmarkLoop', fp16=args.amp)
    launch.set_loader_defaults(cfg, 'test', pin_memory=not args.no_pin_memory, persistent_workers=False)
    launch.merge_options(cfg, args.cfg_options)
    if cfg.load_from == 'none':
        launch.use_own_weights(cfg)
    return cfg


def read_benchmark(name: str, encode: dict | None) -> tuple[str, Config]:
    """Read the config of a benchmark, and append the transform of the model to its pipeline, if it has one.

    Args:
        name (str): The name of a file in ``configs/_base_/datasets``, or a path that ends in ``.py``.
        encode (dict, optional): The transform that makes the inputs of the model.

    Returns:
        tuple[str, Config]: The name, with underscores instead of dots because dots separate keys, and the config.

    Raises:
        LaunchError: If there is no such file, or it is not a benchmark.
    """
    path = Path(name)
    if path.suffix != '.py':
        try:
            path = Path(config_path(f'_base_/datasets/{name}.py'))
        except FileNotFoundError as error:
            raise launch.LaunchError(f'BENCHMARK: {error}') from error
    benchmark = launch.load_config(path, 'BENCHMARK')
    missing = [key for key in ('test_dataloader', 'test_evaluator') if benchmark.get(key) is None]
    if missing:
        raise launch.LaunchError(f'BENCHMARK: {path} has no {" and no ".join(missing)}; it only trains')
    if encode is None:
        return path.stem.replace('.', '_'), benchmark
    options = {'max_length': None, 'generate': True, **benchmark.get('encode_options', {})}
    dataset = benchmark.test_dataloader.dataset
    task = [transform for transform in dataset.get('pipeline', []) if transform['type'] != encode['type']]
    dataset.pipeline = [*task, {**encode, **options}]
    return path.stem.replace('.', '_'), benchmark


def packs_inputs(benchmark: Config) -> bool:
    """Whether the pipeline of a benchmark makes the inputs of the model itself, as those for classifiers do."""
    pipeline = benchmark.test_dataloader.dataset.get('pipeline')
    return bool(pipeline) and pipeline[-1]['type'] == 'PackInputs'


def table(results: dict[str, dict]) -> str:
    """The table with a line for each value of each benchmark.

    Args:
        results (dict[str, dict]): ``samples`` and ``metrics`` of each benchmark.
    """
    rows = [
        (name, metric, f'{value:.3f}' if isinstance(value, Real) else str(value), str(found['samples']))
        for name, found in results.items()
        for metric, value in found['metrics'].items()
    ]
    widths = [max(map(len, column)) for column in zip(HEADER, *rows)]

    def line(cells: Sequence[str]) -> str:
        return '  '.join(
            cell.ljust(width) if i < 2 else cell.rjust(width) for i, (cell, width) in enumerate(zip(cells, widths))
        )

    return '\n'.join([line(HEADER), line(['-' * width for width in widths]), *map(line, rows)])


def plain(value: object) -> float | str:
    """A value as JSON can hold it: infinity, NaN and values that are not numbers become text."""
    return float(value) if isinstance(value, Real) and math.isfinite(value) else str(value)


def main() -> None:
    """Evaluate, print the table, and write the file that ``--output`` names."""
    args = parse_args()
    cfg = merge_args(launch.load_config(args.config), args)
    launch.check_data_roots(cfg, 'test')
    with launch.safe_checkpoints(args.trust_checkpoint), launch.explain_corrupt_images('test'):
        runner = launch.build_runner(cfg)
        results = runner.test()
    if not is_main_process():
        return
    print(table(results))
    if args.output is not None:
        for found in results.values():
            found['metrics'] = {metric: plain(value) for metric, value in found['metrics'].items()}
        write_json(args.output, dict(config=args.config, checkpoint=args.checkpoint, benchmarks=results))


if __name__ == '__main__':
    main()
