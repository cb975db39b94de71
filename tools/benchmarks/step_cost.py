"""Cost of a training step by way of mixing, and of scoring with and without merging; memory of scoring by size."""

import argparse
import statistics
from collections.abc import Callable, Sequence
from functools import partial

import torch
from lib.measure import (
    add_common_arguments,
    add_device_arguments,
    autocast,
    interleaved_times,
    kernels,
    median_ratio,
    peak_memory,
    prepare,
    ratio_range,
    write_json,
)
from lib.release_scheme import ReleaseScheme
from mmengine.registry import MODELS
from mmpretrain.models.utils.batch_augments import RandomBatchAugment
from mmpretrain.registry import BATCH_AUGMENTS
from mmpretrain.structures import DataSample

from mergemix_mm.models import MergeMix, MixupClassifier
from mergemix_mm.utils.tables import markdown_table

REFERENCE = 'CutMix'
MERGED = 'VisionTransformer, half of the patches merged'
PARTS = ('steps', 'scoring', 'memory')
NUM_CLASSES = 100
TINY_ARCH = dict(embed_dims=32, num_layers=4, num_heads=2, feedforward_channels=64)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='The arms take turns, and each step is compared with the CutMix step of the same round. A step is '
        'mixing, forward, backward and AdamW update. Memory is that of torch tensors, above weights, gradients and '
        'optimizer state.',
    )
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=PARTS, help='what to measure (default: all)')
    parser.add_argument('--arch', default='deit-s', help='arch of the VisionTransformer (default: %(default)s)')
    parser.add_argument('--batch-size', type=int, default=16, help='(default: %(default)s)')
    parser.add_argument('--image-size', type=int, default=224, help='in pixels (default: %(default)s)')
    parser.add_argument('--patch-size', type=int, default=16, help='in pixels (default: %(default)s)')
    parser.add_argument('--num-merge', type=int, help='patches that are merged in scoring (default: half of them)')
    parser.add_argument('--layers', type=int, nargs='+', default=[6, 9, 12], help='scored layers (default: 6 9 12)')
    parser.add_argument('--rounds', type=int, default=7, help='steps per arm (default: %(default)s)')
    parser.add_argument(
        '--memory-sizes',
        type=int,
        nargs='*',
        default=[224, 448, 896],
        help='image sizes of the scoring pass whose memory is measured, batch 1 (default: 224 448 896)',
    )
    add_common_arguments(parser)
    add_device_arguments(parser)
    args = parser.parse_args(argv)
    if args.quick:
        args.arch, args.batch_size, args.image_size, args.patch_size = TINY_ARCH, 4, 32, 4
        args.layers, args.rounds, args.memory_sizes = [2, 3], 2, [32, 64, 128]
    if args.batch_size < 2:
        parser.error(f'--batch-size {args.batch_size} must be at least 2: an image is mixed with another one')
    return args


def build_backbone(
    args: argparse.Namespace, image_size: int, name: str = 'VisionTransformer', arch: str | dict | None = None
) -> torch.nn.Module:
    """A vision transformer with random weights."""
    return MODELS.build(
        dict(
            type=name,
            arch=arch or args.arch,
            img_size=image_size,
            patch_size=args.patch_size,
            _scope_='mmpretrain',
        )
    ).to(args.device)


def build_model(args: argparse.Namespace) -> MixupClassifier:
    """A classifier with random weights, without an augment."""
    backbone = build_backbone(args, args.image_size)
    preprocessor = dict(type='ClsDataPreprocessor', num_classes=NUM_CLASSES, _scope_='mmpretrain')
    loss = dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')
    head = dict(type='VisionTransformerClsHead', num_classes=NUM_CLASSES, in_channels=backbone.embed_dims, loss=loss)
    head['_scope_'] = 'mmpretrain'
    model = MixupClassifier(backbone=backbone, head=head, data_preprocessor=preprocessor)
    return model.to(args.device).train()


def build_arms(args: argparse.Namespace) -> dict[str, Callable | None]:
    """The augment of each arm by name; None does not mix."""
    arms = {'no mixing': None}
    for name, alpha in (('Mixup', 0.8), (REFERENCE, 1.0), ('ResizeMix', 1.0)):
        arms[name] = BATCH_AUGMENTS.build(dict(type=name, alpha=alpha))
    for layer in args.layers:
        arms[f'MergeMix, layer {layer}'] = MergeMix(num_merge=args.num_merge, layer=layer)
    default = args.layers[len(args.layers) // 2]
    arms[f"release's scheme, layer {default}"] = ReleaseScheme(num_merge=args.num_merge, layer=default)
    return arms


def measure_steps(args: argparse.Namespace) -> list[dict]:
    """Time and peak memory of a step of each arm, with the same model and images."""
    model = build_model(args)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    images = torch.randn(args.batch_size, 3, args.image_size, args.image_size, device=args.device)
    samples = [DataSample().set_gt_label(i % NUM_CLASSES).to(args.device) for i in range(args.batch_size)]
    arms = build_arms(args)

    def step(augment: Callable | None) -> None:
        model.augments = RandomBatchAugment([augment]) if augment is not None else None
        with autocast(args):
            losses = model(images, samples, mode='loss')
        losses['loss'].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)  # Gradients stay allocated, so that no arm has to allocate them.
        model.mix_result = None

    def score(augment: MergeMix) -> None:
        with autocast(args):
            augment.score(images, model.backbone)

    steps = {name: partial(step, augment) for name, augment in arms.items()}
    times = interleaved_times(steps, args.rounds, device=args.device)
    scorers = {name: partial(score, augment) for name, augment in arms.items() if isinstance(augment, MergeMix)}
    scoring = interleaved_times(scorers, args.rounds, device=args.device)
    rows = []
    for name, one_step in steps.items():
        print(f'memory of: {name}', flush=True)
        low, high = ratio_range(times[name], times[REFERENCE])
        ran, scored = (function and kernels(function, args.device) for function in (one_step, scorers.get(name)))
        rows.append(
            dict(
                arm=name,
                seconds=statistics.median(times[name]),
                ratio=median_ratio(times[name], times[REFERENCE]),
                ratio_low=low,
                ratio_high=high,
                scoring_seconds=statistics.median(scoring[name]) if name in scoring else None,
                peak_mb=peak_memory(one_step, args.device),
                kernels=ran and ran[0],
                kernel_seconds=ran and ran[1],
                scoring_kernel_seconds=scored and scored[1],
                all_seconds=times[name],
            )
        )
    return rows


def measure_scoring(args: argparse.Namespace) -> list[dict]:
    """Time of a scoring pass with and without merging, and with rotary positions, at the same width and depth."""
    plain = build_backbone(args, args.image_size)
    # As EVA-02 does: its gated MLP has a third matrix, and 2 / 3 of the channels.
    arch = {key: getattr(plain, key) for key in ('embed_dims', 'num_layers')} | {
        'num_heads': plain.arch_settings['num_heads'],
        'feedforward_channels': plain.arch_settings['feedforward_channels'] * 2 // 3,
    }
    rotary = build_backbone(args, args.image_size, 'ViTEVA02', arch)
    images = torch.randn(args.batch_size, 3, args.image_size, args.image_size, device=args.device)
    layer = args.layers[len(args.layers) // 2]
    merging, whole = MergeMix(layer=layer), MergeMix(layer=layer, num_merge=0)

    def score(mixer: MergeMix, backbone: torch.nn.Module) -> None:
        with autocast(args):
            mixer.score(images, backbone)

    arms = {
        MERGED: partial(score, merging, plain),
        'VisionTransformer, no merging': partial(score, whole, plain),
        'ViTEVA02 (rotary positions), no merging': partial(score, whole, rotary),
    }
    times = interleaved_times(arms, args.rounds, device=args.device)
    rows = []
    for name, seconds in times.items():
        low, high = ratio_range(seconds, times[MERGED])
        ratio = median_ratio(seconds, times[MERGED])
        median = statistics.median(seconds)
        rows.append(dict(arm=name, layer=layer, seconds=median, ratio=ratio, ratio_low=low, ratio_high=high))
    return rows


def measure_scoring_memory(args: argparse.Namespace) -> list[dict]:
    """Peak memory of scoring one image at each size, by MergeMix and by the scheme of the release."""
    layer = args.layers[len(args.layers) // 2]
    return [_scoring_memory(args, image_size, layer) for image_size in args.memory_sizes]


def _scoring_memory(args: argparse.Namespace, image_size: int, layer: int) -> dict:
    backbone = build_backbone(args, image_size)
    images = torch.randn(1, 3, image_size, image_size, device=args.device)
    row = dict(image_size=image_size, patches=(image_size // args.patch_size) ** 2, layer=layer)
    for key, augment in (('mergemix', MergeMix(layer=layer)), ('release', ReleaseScheme(layer=layer))):
        print(f'memory of scoring {image_size} px: {key}', flush=True)
        with autocast(args):
            row[f'{key}_mb'] = peak_memory(partial(augment.score, images, backbone), args.device)
    return row


def main(argv: Sequence[str] | None = None) -> dict:
    """Measure, print the tables, and write the numbers if asked to.

    Args:
        argv (Sequence[str], optional): The command line. Defaults to that of the process.

    Returns:
        dict: ``steps``, ``scoring`` and ``scoring_memory``, a dictionary for each row of the tables.
    """
    args = parse_args(argv)
    prepare(args)
    measures = dict(steps=measure_steps, scoring=measure_scoring, memory=measure_scoring_memory)
    results = dict(benchmark='step_cost', options=vars(args), steps=[], scoring=[], scoring_memory=[])
    for part in args.parts:
        results['scoring_memory' if part == 'memory' else part] = measures[part](args)
        if args.output:
            write_json(args.output, results)
    _print_tables(args, results)
    if args.output:
        print(f'\nNumbers written to {args.output}')
    return results


def _print_tables(args: argparse.Namespace, results: dict) -> None:
    size = f'{args.arch}, {args.image_size} px, batch {args.batch_size}'
    if results['steps']:
        print(f'\nOne training step: {size}\n')
        header = ('arm', 'step (s)', f'/ {REFERENCE}', 'lowest - highest', 'scoring alone (s)', 'peak memory (MB)')
        print(markdown_table(header, [_step_row(row) for row in results['steps']]))
    if results['steps'] and args.device.type == 'cuda':
        print('\nThe same steps by the time of their kernels, without the cost of launching them\n')
        header = ('arm', 'kernels', 'of a step (s)', f'/ {REFERENCE}', 'of scoring (s)')
        reference = next(row['kernel_seconds'] for row in results['steps'] if row['arm'] == REFERENCE)
        print(markdown_table(header, [_kernel_row(row, reference) for row in results['steps']]))
    if results['scoring']:
        print(f'\nOne scoring pass up to layer {results["scoring"][0]["layer"]}: {size}\n')
        header = ('encoder', 'scoring (s)', '/ merged', 'lowest - highest')
        print(markdown_table(header, [_scoring_row(row) for row in results['scoring']]))
    if results['scoring_memory']:
        print('\nMemory of one scoring pass, one image, half of the patches merged\n')
        sides = ('patches L', 'MergeMix (MB)', 'MB per 1,000 patches', "release's scheme (MB)", 'MB per 1,000 patches')
        print(markdown_table(sides, [_memory_row(row) for row in results['scoring_memory']]))


def _step_row(row: dict) -> list:
    scoring = row['scoring_seconds']
    return [
        row['arm'],
        f'{row["seconds"]:.4g}',
        f'{row["ratio"]:.3f}',
        f'{row["ratio_low"]:.3f} - {row["ratio_high"]:.3f}',
        None if scoring is None else f'{scoring:.4g}',
        f'{row["peak_mb"]:,.0f}',
    ]


def _scoring_row(row: dict) -> list:
    spread = f'{row["ratio_low"]:.3f} - {row["ratio_high"]:.3f}'
    return [row['arm'], f'{row["seconds"]:.4g}', f'{row["ratio"]:.3f}', spread]


def _kernel_row(row: dict, reference: float) -> list:
    scoring, seconds = row['scoring_kernel_seconds'], row['kernel_seconds']
    ratio = seconds / reference
    return [row['arm'], row['kernels'], f'{seconds:.4g}', f'{ratio:.3f}', scoring and f'{scoring:.4g}']


def _memory_row(row: dict) -> list:
    per_thousand = [row[f'{key}_mb'] / row['patches'] * 1000 for key in ('mergemix', 'release')]
    return [
        f'{row["patches"]:,}',
        f'{row["mergemix_mb"]:,.1f}',
        f'{per_thousand[0]:,.1f}',
        f'{row["release_mb"]:,.1f}',
        f'{per_thousand[1]:,.1f}',
    ]


if __name__ == '__main__':
    main()
