"""Plans a config on many GPUs: batches, memory, bytes sent in a step, steps, and hours under stated assumptions.

A step of the same code is simulated at full size on tensors without content. This needs no GPU and no download.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mergemix_mm.engine.planning import GIB, Cluster, ScalePlan, plan_scale
from mergemix_mm.engine.planning.command import add_arguments, explained, hub_configs, read_model_config
from mergemix_mm.engine.planning.scale import GIGA, MICRO, TERA
from mergemix_mm.utils.tables import markdown_table


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    assumed = Cluster()
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='memory: of the way that fits, DDP first, with the longest texts. sent: by a GPU in a step, in rings; '
        'calls: of the network. hours: if communication takes place during computation - if in turns. Reading data, '
        'validation and checkpoints are left out.',
    )
    parser.add_argument('config', metavar='CONFIG', help='a config that trains')
    parser.add_argument('--gpus', type=int, nargs='+', default=[8, 64, 512], help='(default: 8 64 512)')
    parser.add_argument(
        '--text-tokens', type=int, help='tokens of a text on average, without those of its image (default: the longest)'
    )
    parser.add_argument('--records', type=int, help='samples of an epoch, for a config that trains in epochs')
    for name, value, meaning in (
        ('gpu-memory', assumed.gpu_memory / GIB, 'of each GPU, in GiB'),
        ('peak', assumed.peak / TERA, 'of a GPU in the precision of computation, in TFLOP/s'),
        ('utilisation', assumed.utilisation, 'share of the peak that a step reaches'),
        ('link', assumed.link / GIGA, 'GB/s that a GPU sends within its machine'),
        ('network', assumed.network / GIGA, 'GB/s that a machine of 8 GPUs sends to others'),
        ('latency', assumed.latency / MICRO, 'microseconds from a GPU to the next one of its machine'),
        ('network-latency', assumed.network_latency / MICRO, 'microseconds from a machine to the next one'),
    ):
        parser.add_argument(f'--{name}', type=float, default=value, help=f'{meaning} (default: {value:g})')
    add_arguments(parser)
    args = parser.parse_args(argv)
    for number in args.gpus:
        if number < 2:
            parser.error(f'--gpus {number} must be at least 2; plan_memory.py plans one GPU')
    for name in ('gpu_memory', 'peak', 'utilisation', 'link', 'network', 'latency', 'network_latency'):
        value = getattr(args, name)
        if not 0 < value < float('inf') or (name == 'utilisation' and value > 1):
            allowed = 'in (0, 1]' if name == 'utilisation' else 'above 0'
            parser.error(f'--{name.replace("_", "-")} {value:g} must be {allowed}')
    for name, least in (('text_tokens', 2), ('records', 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            parser.error(f'--{name.replace("_", "-")} {value} must be at least {least}')
    return args


def describe(plans: Sequence[ScalePlan]) -> str:
    """The plans as a table."""
    rows = []
    for plan in plans:
        memory = f'{plan.memory.total / GIB:.1f}' if plan.fits else f'~~{plan.memory.total / GIB:.1f}~~'
        rows.append(
            (
                plan.gpus,
                f'{plan.batch_size} x {plan.accumulation}',
                f'{plan.global_batch:,}',
                f'{plan.steps:,}',
                plan.memory.name,
                memory,
                f'{plan.sent / GIGA:.1f}',
                f'{plan.collectives:,}',
                f'{_rounded(plan.compute)} + {_rounded(plan.communication)}',
                ' - '.join(map(_rounded, plan.hours)),
            )
        )
    header = ('GPUs', 'samples', 'batch', 'steps', 'way', 'memory (GiB)', 'sent (GB)', 'calls', 'step (s)', 'hours')
    return markdown_table(header, rows)


def _rounded(value: float) -> str:
    """With two digits, or without any after the point."""
    return f'{value:.2g}' if value < 10 else f'{value:,.0f}'


def main(argv: Sequence[str] | None = None) -> None:
    """Print the plans.

    Args:
        argv (Sequence[str], optional): The command line. Defaults to that of the process.
    """
    args = parse_args(argv)
    hub = hub_configs(args.hub_config)
    cfg = read_model_config(args.config, args.cfg_options)
    cluster = Cluster(
        args.peak * TERA,
        args.utilisation,
        args.link * GIGA,
        args.network * GIGA,
        args.latency * MICRO,
        args.network_latency * MICRO,
        gpu_memory=int(args.gpu_memory * GIB),
    )
    with explained():
        plans = plan_scale(cfg, args.gpus, cluster, hub, args.text_tokens, args.records)
    print(f'{Path(args.config).stem}: {_rounded(plans[0].flops / GIGA)} GFLOP for each sample\n\n{describe(plans)}')


if __name__ == '__main__':
    main()
