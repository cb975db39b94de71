"""Estimates the memory that training a config takes on each GPU, with DDP and with FSDP2, and tells which fits.

A step of the same code is simulated at full size on tensors without content. This needs no GPU and no download.
"""

import argparse
from collections.abc import Sequence

from mergemix_mm.engine.planning import GIB, TrainingPlan, plan_memory
from mergemix_mm.engine.planning.command import add_arguments, explained, hub_configs, read_model_config
from mergemix_mm.utils.tables import markdown_table


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='weights: parameters and buffers. gradients: for DDP with its buckets, which are as large again. '
        'optimizer: its states. step: what a step holds in addition at its peak; for FSDP2 this includes the gathered '
        'layers. total: the sum, with 2 GiB for CUDA, NCCL and fragmentation. host: in the memory of the machine, for '
        'each GPU.',
    )
    parser.add_argument('config', metavar='CONFIG', help='a config that trains')
    parser.add_argument('--gpus', type=int, default=1, help='number of GPUs (default: %(default)s)')
    parser.add_argument('--gpu-memory', type=float, default=80, help='of each GPU, in GiB (default: %(default)s)')
    parser.add_argument(
        '--text-tokens',
        type=int,
        help='tokens of a text, without those of its image (default: the longest text that max_length of the pipeline '
        'leaves room for)',
    )
    add_arguments(parser)
    args = parser.parse_args(argv)
    for name, value, least in (('gpus', args.gpus, 1), ('text-tokens', args.text_tokens, 2)):
        if value is not None and value < least:
            parser.error(f'--{name} {value} must be at least {least}')
    if not 0 < args.gpu_memory < float('inf'):
        parser.error(f'--gpu-memory {args.gpu_memory} must be above 0, in GiB')
    return args


def describe(plan: TrainingPlan, gpus: int, gpu_memory: float) -> str:
    """The plan as text: the batches that were simulated, and a table."""
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
    """Print the plan.

    Args:
        argv (Sequence[str], optional): The command line. Defaults to that of the process.
    """
    args = parse_args(argv)
    hub = hub_configs(args.hub_config)
    cfg = read_model_config(args.config, args.cfg_options)
    with explained():
        plan = plan_memory(cfg, args.gpus, hub, args.text_tokens)
    print(describe(plan, args.gpus, args.gpu_memory))


if __name__ == '__main__':
    main()
