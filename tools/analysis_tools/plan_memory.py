"""Estimates what a training of a config holds on each GPU, by DDP and by FSDP2, and says which of them fits.

A step is simulated at full size on tensors without content: the same code, any size, no GPU and no download.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # Also where a test or a notebook loads this file.

from _planning import add_model_arguments, explained, hub_configs, load_config, markdown_table

from mergemix_mm.engine import launch
from mergemix_mm.engine.planning import GIB, PlanError, TrainingPlan, UnknownBatchError, plan_memory


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='weights: parameters and buffers. gradients: with the buckets of DDP, which are as large again. '
        'optimizer: its states. step: what a step holds beside them at its peak; of FSDP2 also the layers that are '
        'gathered. total: with 2 GiB for CUDA, NCCL and what the allocator cannot use. host: in the memory of the '
        'machine, per GPU.',
    )
    parser.add_argument('config', metavar='CONFIG', help='a config that trains')
    parser.add_argument('--gpus', type=int, default=1, help='number of GPUs (default: %(default)s)')
    parser.add_argument('--gpu-memory', type=float, default=80, help='of each, in GiB (default: %(default)s)')
    parser.add_argument(
        '--text-tokens',
        type=int,
        help='tokens of a text, beside those of its image (default: what the max_length of the pipeline leaves room '
        'for, which is the longest that can come)',
    )
    add_model_arguments(parser)
    args = parser.parse_args(argv)
    for name, value, least in (('gpus', args.gpus, 1), ('text-tokens', args.text_tokens, 2)):
        if value is not None and value < least:
            parser.error(f'--{name} {value} must be at least {least}')
    if not 0 < args.gpu_memory < float('inf'):
        parser.error(f'--gpu-memory {args.gpu_memory} must be above 0, in GiB')
    return args


def describe(plan: TrainingPlan, gpus: int, gpu_memory: float) -> str:
    """The plan as text: what was simulated, and a table."""
    lines = []
    for task, shape in plan.batches.items():
        if len(shape) == 2:
            lines.append(f'{task}: {shape[0]} samples of {shape[1]:,} tokens on each GPU')
        else:
            lines.append(f'{task}: {shape[0]} images of {shape[2]} x {shape[3]} pixels on each GPU')
    precision = 'that of the weights' if plan.precision is None else str(plan.precision).removeprefix('torch.')
    lines += [f'precision: {precision}; {gpus} GPU{"s" * (gpus > 1)} of {gpu_memory:g} GiB', '']
    rows = []
    for way in plan.ways:
        parts = way.weights, way.gradients, way.optimizer, way.step, way.total
        fits = 'yes' if way.fits(int(gpu_memory * GIB)) else 'no'
        host = f'{way.host / GIB:.1f}' if way.host else '-'
        rows.append((way.name, *(f'{part / GIB:.1f}' for part in parts), host, fits))
    header = ('GiB on each GPU', 'weights', 'gradients', 'optimizer', 'step', 'total', 'host', 'fits')
    return '\n'.join([*lines, markdown_table(header, rows)])


def main(argv: Sequence[str] | None = None) -> None:
    """Print the plan."""
    args = parse_args(argv)
    hub = hub_configs(args.hub_config)
    cfg = load_config(args.config, args.cfg_options)
    with explained():
        try:
            plan = plan_memory(cfg, args.gpus, hub, args.text_tokens)
        except (PlanError, UnknownBatchError) as error:
            raise launch.LaunchError(str(error)) from None
    print(describe(plan, args.gpus, args.gpu_memory))


if __name__ == '__main__':
    main()
