"""Throughput and operations of ToMeVisionTransformer by merged tokens, against the VisionTransformer of MMPretrain.

On a GPU, the models also run as CUDA graphs, as ``torch.compile(mode='reduce-overhead')`` makes them, without the cost
of launching kernels. GFLOPs are those of one image: what MMEngine counts, and with the products of attention.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from functools import partial

import torch
from lib.measure import (
    DTYPES,
    add_common_arguments,
    add_device_arguments,
    interleaved_times,
    kernels_by_name,
    median_ratio,
    peak_memory,
    prepare,
    ratio_range,
    write_json,
)
from mmengine.registry import MODELS

import mergemix_mm  # noqa: F401  registers ToMeVisionTransformer
from mergemix_mm.engine.measuring import Flops, count_flops
from mergemix_mm.utils.tables import markdown_table

REFERENCE = 'VisionTransformer'
TINY_ARCH = dict(embed_dims=32, num_layers=4, num_heads=2, feedforward_channels=64)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog='The models have the same weights and take turns. Ratios are taken within a round.'
    )
    parser.add_argument('--arch', default='deit-s', help='(default: %(default)s)')
    parser.add_argument('--batch-size', type=int, default=16, help='(default: %(default)s)')
    parser.add_argument('--image-size', type=int, default=224, help='in pixels (default: %(default)s)')
    parser.add_argument('--patch-size', type=int, default=16, help='in pixels (default: %(default)s)')
    parser.add_argument(
        '--merged', type=int, nargs='+', default=[0, 30, 50], help='percent of merged patches (default: 0 30 50)'
    )
    parser.add_argument(
        '--inflection', type=float, default=0.0, help='inflection of the schedule (default: %(default)s)'
    )
    parser.add_argument('--rounds', type=int, default=15, help='forwards per model (default: %(default)s)')
    add_common_arguments(parser)
    add_device_arguments(parser)
    args = parser.parse_args(argv)
    if args.quick:
        args.arch, args.batch_size, args.image_size, args.patch_size, args.rounds = TINY_ARCH, 4, 32, 4, 2
    return args


def main(argv: Sequence[str] | None = None) -> dict:
    """Measure, print the table, and write the numbers if asked to.

    Args:
        argv (Sequence[str], optional): The command line. Defaults to that of the process.

    Returns:
        dict: ``models``, a dictionary for each row of the table.
    """
    args = parse_args(argv)
    prepare(args)
    common = dict(arch=args.arch, img_size=args.image_size, patch_size=args.patch_size)
    num_patches = (args.image_size // args.patch_size) ** 2
    models = {REFERENCE: MODELS.build(dict(type='VisionTransformer', _scope_='mmpretrain', **common))}
    for percent in args.merged:
        model = MODELS.build(
            dict(
                type='ToMeVisionTransformer',
                num_merge=round(percent / 100 * num_patches),
                inflection=args.inflection,
                **common,
            )
        )
        model.load_state_dict(models[REFERENCE].state_dict())
        models[f'ToMeVisionTransformer, {percent}% merged'] = model
    options = dict(device=args.device, dtype=DTYPES[args.dtype])
    for model in models.values():
        model.to(**options).eval()  # Its result is not used: eval() of MMPretrain's backbones returns None.
    images = torch.randn(args.batch_size, 3, args.image_size, args.image_size, **options)

    results = dict(benchmark='tome_throughput', options=vars(args), models=[])
    flops = {name: count_flops(model, images[:1]) for name, model in models.items()}
    with torch.inference_mode():
        arms = {name: partial(model, images) for name, model in models.items()}
        results['models'] += measure(args, models, flops, arms, 'eager')
        if args.output:
            write_json(args.output, results)
        if args.device.type == 'cuda':
            graphs = {name: captured(arm) for name, arm in arms.items()}
            results['models'] += measure(args, models, flops, graphs, 'CUDA graph')
    print(f'\nInference: {args.arch}, {args.image_size} px, batch {args.batch_size}\n')
    header = (
        *('model', 'run', 'patches merged', 'GFLOPs', 'with attention'),
        *('images / s', 'speed-up', 'lowest - highest', 'peak memory (MB)'),
    )
    print(markdown_table(header, [_row(row, num_patches) for row in results['models']]))
    if args.output:
        write_json(args.output, results)
        print(f'\nNumbers written to {args.output}')
    return results


def measure(
    args: argparse.Namespace, models: dict, flops: dict[str, Flops], arms: dict[str, Callable[[], object]], run: str
) -> list[dict]:
    """Time the forward passes of the models; a row of the table for each."""
    times = interleaved_times(arms, args.rounds, device=args.device)
    rows = []
    for name, arm in arms.items():
        low, high = ratio_range(times[REFERENCE], times[name])
        longest = list((kernels_by_name(arm, args.device) or {}).items())[:12]
        rows.append(
            dict(
                model=name,
                run=run,
                merged=getattr(models[name], 'num_merge', 0),
                gflops=flops[name].counted / 1e9,
                gflops_with_attention=(flops[name].counted + flops[name].attention) / 1e9,
                images_per_second=args.batch_size / statistics.median(times[name]),
                speed_up=median_ratio(times[REFERENCE], times[name]),
                speed_up_low=low,
                speed_up_high=high,
                peak_mb=peak_memory(arm, args.device),
                kernel_seconds={kernel[:200]: sum(seconds) for kernel, seconds in longest},
                all_seconds=times[name],
            )
        )
    return rows


def captured(function: Callable[[], object]) -> Callable[[], None]:
    """Capture a call on a GPU as one CUDA graph, which is launched as a whole."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        function()  # The first call may allocate memory of libraries, which a capture does not allow.
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def _row(row: dict, num_patches: int) -> list:
    return [
        row['model'],
        row['run'],
        f'{row["merged"]} of {num_patches}',
        f'{row["gflops"]:.3f}',
        f'{row["gflops_with_attention"]:.3f}',
        f'{row["images_per_second"]:.1f}',
        f'{row["speed_up"]:.3f}',
        f'{row["speed_up_low"]:.3f} - {row["speed_up_high"]:.3f}',
        f'{row["peak_mb"]:,.1f}',
    ]


if __name__ == '__main__':
    main()
