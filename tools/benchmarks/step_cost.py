"""Cost of a training step by way of mixing and by training scheme, of scoring, and memory of scoring by image size."""

import argparse
import statistics
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from lib.measure import (
    add_clock_argument,
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
from lib.release_scheme import OpenMixupStep
from mmengine.registry import MODELS
from mmpretrain.models.utils.batch_augments import RandomBatchAugment
from mmpretrain.registry import BATCH_AUGMENTS
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from mergemix_mm.models import MergeMix, MixupClassifier
from mergemix_mm.models.batch_augments import Mixer, losers
from mergemix_mm.utils.tables import markdown_table

REFERENCE = 'CutMix'
MERGED = 'VisionTransformer, half of the patches merged'
PARTS = ('steps', 'schemes', 'rivals', 'scoring', 'memory')
STEP_TITLES = dict(steps='Ways of mixing', schemes='Training schemes', rivals='Every registered mixer')
NUM_CLASSES = 100
TINY_ARCH = dict(embed_dims=32, num_layers=4, num_heads=2, feedforward_channels=64)
# Augments of MMPretrain, which are no mixers of this package, with the alphas of the papers.
LIBRARY = {'Mixup': dict(type='Mixup', alpha=0.8)} | {
    name: dict(type=name, alpha=1.0) for name in (REFERENCE, 'ResizeMix')
}


@dataclass
class Arm:
    """A way to train.

    Args:
        model (nn.Module): Trains; its backbone is watched.
        losses (Callable): ``(images, samples) -> losses`` of a batch.
        optimizer (torch.optim.Optimizer): Of the model.
        score (Callable, optional): ``images -> scores``, only the scoring pass. Defaults to None: there is none.
        mix (Callable, optional): ``images -> mixed images``, if that needs no pass. Defaults to None: it needs one.
    """

    model: nn.Module
    losses: Callable[[Tensor, list[DataSample]], dict[str, Tensor]]
    optimizer: torch.optim.Optimizer
    score: Callable[[Tensor], object] | None = None
    mix: Callable[[Tensor], object] | None = None


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='The arms take turns, and each step is compared with the CutMix step of the same round. A step is '
        'mixing, forward, backward and AdamW update. Memory is that of torch tensors, above weights, gradients and '
        'optimizer state. Mixing alone is measured for mixers that need no pass of their own. Parts: steps - ways of '
        'mixing and scored layers; schemes - the objectives of paper and release; rivals - every mixer that is '
        'registered; scoring - with and without merging; memory - of scoring.',
    )
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=PARTS, help='what to measure (default: all)')
    parser.add_argument('--arch', default='deit-s', help='arch of the VisionTransformer (default: %(default)s)')
    parser.add_argument('--batch-size', type=int, default=16, help='(default: %(default)s)')
    parser.add_argument('--image-size', type=int, default=224, help='in pixels (default: %(default)s)')
    parser.add_argument('--patch-size', type=int, default=16, help='in pixels (default: %(default)s)')
    parser.add_argument('--num-merge', type=int, help='patches that are merged in scoring (default: half of them)')
    parser.add_argument('--layers', type=int, nargs='+', default=[6, 9, 12], help='scored layers (default: 6 9 12)')
    parser.add_argument(
        '--mixers', nargs='+', choices=registered_mixers(), default=registered_mixers(), help='of rivals (default: all)'
    )
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
    add_clock_argument(parser)
    args = parser.parse_args(argv)
    if args.quick:
        args.arch, args.batch_size, args.image_size, args.patch_size = TINY_ARCH, 4, 32, 4
        args.layers, args.rounds, args.memory_sizes = [2, 3], 2, [32, 64, 128]
    if args.batch_size < 2:
        parser.error(f'--batch-size {args.batch_size} must be at least 2: an image is mixed with another one')
    return args


def build_backbone(
    args: argparse.Namespace,
    image_size: int,
    name: str = 'VisionTransformer',
    arch: str | dict | None = None,
    **options,
) -> nn.Module:
    """A vision transformer with random weights."""
    cfg = dict(type=name, arch=arch or args.arch, img_size=image_size, patch_size=args.patch_size, **options)
    return MODELS.build(cfg | dict(_scope_='mmpretrain')).to(args.device)


def build_model(args: argparse.Namespace, backbone: nn.Module | None = None, **options) -> MixupClassifier:
    """A classifier with random weights; without options it mixes nothing."""
    backbone = backbone or build_backbone(args, args.image_size)
    preprocessor = dict(type='ClsDataPreprocessor', num_classes=NUM_CLASSES, _scope_='mmpretrain')
    loss = dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')
    head = dict(type='VisionTransformerClsHead', num_classes=NUM_CLASSES, in_channels=backbone.embed_dims, loss=loss)
    head['_scope_'] = 'mmpretrain'
    model = MixupClassifier(backbone=backbone, head=head, data_preprocessor=preprocessor, **options)
    return model.to(args.device).train()


def adamw(model: nn.Module) -> torch.optim.AdamW:
    """The optimizer of all arms."""
    return torch.optim.AdamW(model.parameters(), lr=1e-5)


def augment_arms(augments: dict[str, Callable | dict | None], args: argparse.Namespace) -> dict[str, Arm]:
    """Arms that share one model, by name, given each augment or its config; None does not mix."""
    model = build_model(args)
    optimizer = adamw(model)

    def losses(augment: RandomBatchAugment | None, images: Tensor, samples: list[DataSample]) -> dict[str, Tensor]:
        model.augments = augment
        return model(images, samples, mode='loss')

    arms = {}
    for name, one in augments.items():
        augment = None if one is None else RandomBatchAugment([one])
        score = mix = None
        if augment is not None and isinstance(mixer := augment.augments[0], MergeMix):
            score = partial(mixer.score, encoder=model.backbone)
        elif augment is not None:
            mix = mixing_alone(mixer)
        arms[name] = Arm(model, partial(losses, augment), optimizer, score, mix)
    return arms


def mixing_alone(mixer: nn.Module) -> Callable[[Tensor], object] | None:
    """``images -> mixed images`` of a mixer that needs no pass of its own; None for one that does."""
    if isinstance(mixer, Mixer):
        return None if mixer.needs_encoder or mixer.needs_classifier else mixer.mix
    return lambda images: mixer.mix(images, images.new_zeros(len(images), NUM_CLASSES))


def default_layer(args: argparse.Namespace) -> int:
    """The scored layer of the arms that have only one."""
    return args.layers[len(args.layers) // 2]


def ways_to_mix(args: argparse.Namespace) -> dict[str, Arm]:
    """No mixing, the augments of MMPretrain, and MergeMix at each layer."""
    mergemix = {f'MergeMix, layer {n}': dict(type='MergeMix', num_merge=args.num_merge, layer=n) for n in args.layers}
    return augment_arms({'no mixing': None} | LIBRARY | mergemix, args)


def schemes(args: argparse.Namespace) -> dict[str, Arm]:
    """The objectives of paper, release and this package, at one layer."""
    layer = default_layer(args)
    share = 0.5 if args.num_merge is None else args.num_merge
    lean = dict(type='MergeMix', num_merge=args.num_merge, layer=layer)
    mixing = dict(train_cfg=dict(augments=dict(type='MergeMix', layer=layer)))
    arms = augment_arms({REFERENCE: LIBRARY[REFERENCE], 'lean: scoring pass, mixed loss': lean}, args)

    def merged() -> nn.Module:
        return build_backbone(args, args.image_size, 'ToMeVisionTransformer', num_merge=share, inflection=-0.5)

    models = {
        'paper: clean pass scores, tokens merge': build_model(args, merged(), clean_weight=1.0, **mixing),
        'clean loss, scoring pass, no merging in training': build_model(
            args, clean_weight=1.0, train_cfg=dict(augments=lean)
        ),
        'release, by this package, tokens merge': build_model(
            args,
            merged(),
            base_augment=LIBRARY['Mixup'],
            ratio_reduce='batch_mean',
            train_cfg=dict(augments=lean | dict(ratio='gaussian')),
        ),
    }
    for name, model in models.items():
        arms[name] = Arm(model, partial(model, mode='loss'), adamw(model))
    for suffix, merges in (('tokens merge', True), ('no merging in training', False)):
        model = build_model(args)
        step = OpenMixupStep(model, args.num_merge, layer, merges)
        arms[f'release, as OpenMixup does it, {suffix}'] = Arm(model, step, adamw(model), step.score)
    return arms


def registered_mixers() -> list[str]:
    """Names of the augments of MMPretrain, and of every mixer that is registered and not made for losers."""
    own = (name for name, kind in BATCH_AUGMENTS.module_dict.items() if issubclass(kind, Mixer))
    return [*LIBRARY, *(name for name in own if BATCH_AUGMENTS.get(name).__module__ != losers.__name__)]


def rivals(args: argparse.Namespace) -> dict[str, Arm]:
    """The chosen mixers with their defaults, beside the reference. What cannot be built is printed."""
    augments: dict[str, Callable | dict | None] = {}
    for name in dict.fromkeys((REFERENCE, *args.mixers)):
        try:
            augments[name] = BATCH_AUGMENTS.build(dict(LIBRARY.get(name, dict(type=name))))
        except (ImportError, TypeError, ValueError) as error:
            print(f'{name} is not measured: {error}', flush=True)
    return augment_arms(augments, args)


def measure_arms(args: argparse.Namespace, arms: dict[str, Arm], optional: Collection[str] = ()) -> list[dict]:
    """Time, peak memory and passes of a step of each arm, with the same images.

    Args:
        args (argparse.Namespace): The options.
        arms (dict[str, Arm]): By name; one of them is the reference.
        optional (Collection[str]): Arms that are left out, with a line that says why, if they refuse the images.
            Defaults to none.

    Returns:
        list[dict]: a row for each arm.
    """
    images = torch.randn(args.batch_size, 3, args.image_size, args.image_size, device=args.device)
    samples = [DataSample().set_gt_label(i % NUM_CLASSES).to(args.device) for i in range(args.batch_size)]

    def step(arm: Arm) -> None:
        with autocast(args):
            losses = arm.losses(images, samples)
        sum(value for key, value in losses.items() if 'loss' in key).backward()
        arm.optimizer.step()
        arm.optimizer.zero_grad(set_to_none=False)  # Gradients stay allocated, so that no arm has to allocate them.
        arm.model.mix_result = None

    def call(function: Callable[[Tensor], object]) -> None:
        with autocast(args):
            function(images)

    steps = {name: partial(step, arm) for name, arm in arms.items()}
    for name in optional:
        try:
            steps[name]()
        except ValueError as error:
            print(f'{name} is not measured: {error}', flush=True)
            del steps[name]
    options = dict(device=args.device, clock=args.clock)
    times = interleaved_times(steps, args.rounds, **options)
    scorers = {name: partial(call, score) for name in steps if (score := arms[name].score) is not None}
    mixers = {name: partial(call, mix) for name in steps if (mix := arms[name].mix) is not None}
    alone = interleaved_times(scorers | mixers, args.rounds, **options)
    rows = []
    for name, one_step in steps.items():
        print(f'memory of: {name}', flush=True)
        low, high = ratio_range(times[name], times[REFERENCE])
        ran, scored = (function and kernels(function, args.device) for function in (one_step, scorers.get(name)))
        with counted_passes(arms[name].model) as passes:
            peak = peak_memory(one_step, args.device)
        rows.append(
            dict(
                arm=name,
                passes=len(passes),
                seconds=statistics.median(times[name]),
                ratio=median_ratio(times[name], times[REFERENCE]),
                ratio_low=low,
                ratio_high=high,
                scoring_seconds=statistics.median(alone[name]) if name in scorers else None,
                mixing_seconds=statistics.median(alone[name]) if name in mixers else None,
                peak_mb=peak,
                kernels=ran and ran[0],
                kernel_seconds=ran and ran[1],
                scoring_kernel_seconds=scored and scored[1],
                all_seconds=times[name],
            )
        )
    return rows


@contextmanager
def counted_passes(model: nn.Module) -> Iterator[list]:
    """A list that gets an item for each pass of images through the backbone, whole or up to the scored layer."""
    passes: list[None] = []
    handle = model.backbone.patch_embed.register_forward_hook(lambda *_: passes.append(None))
    try:
        yield passes
    finally:
        handle.remove()


def measure_steps(args: argparse.Namespace) -> list[dict]:
    """The ways of mixing."""
    return measure_arms(args, ways_to_mix(args))


def measure_schemes(args: argparse.Namespace) -> list[dict]:
    """The objectives of paper, release and this package."""
    return measure_arms(args, schemes(args))


def measure_rivals(args: argparse.Namespace) -> list[dict]:
    """Every registered mixer."""
    arms = rivals(args)
    return measure_arms(args, arms, optional=set(arms) - {REFERENCE})


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
    layer = default_layer(args)
    merging, whole = MergeMix(layer=layer), MergeMix(layer=layer, num_merge=0)

    def score(mixer: MergeMix, backbone: torch.nn.Module) -> None:
        with autocast(args):
            mixer.score(images, backbone)

    arms = {
        MERGED: partial(score, merging, plain),
        'VisionTransformer, no merging': partial(score, whole, plain),
        'ViTEVA02 (rotary positions), no merging': partial(score, whole, rotary),
    }
    times = interleaved_times(arms, args.rounds, device=args.device, clock=args.clock)
    rows = []
    for name, seconds in times.items():
        low, high = ratio_range(seconds, times[MERGED])
        ratio = median_ratio(seconds, times[MERGED])
        median = statistics.median(seconds)
        rows.append(dict(arm=name, layer=layer, seconds=median, ratio=ratio, ratio_low=low, ratio_high=high))
    return rows


def measure_scoring_memory(args: argparse.Namespace) -> list[dict]:
    """Peak memory of scoring one image at each size, by MergeMix and as the release for classification does it."""
    return [_scoring_memory(args, image_size, default_layer(args)) for image_size in args.memory_sizes]


def _scoring_memory(args: argparse.Namespace, image_size: int, layer: int) -> dict:
    model = build_model(args, build_backbone(args, image_size))
    images = torch.randn(1, 3, image_size, image_size, device=args.device)
    row = dict(image_size=image_size, patches=(image_size // args.patch_size) ** 2, layer=layer)
    ours, release = MergeMix(layer=layer), OpenMixupStep(model, layer=layer)
    for key, score in dict(mergemix=partial(ours.score, encoder=model.backbone), release=release.score).items():
        print(f'memory of scoring {image_size} px: {key}', flush=True)
        with autocast(args):
            row[f'{key}_mb'] = peak_memory(partial(score, images), args.device)
    return row


def main(argv: Sequence[str] | None = None) -> dict:
    """Measure, print the tables, and write the numbers if asked to.

    Args:
        argv (Sequence[str], optional): The command line. Defaults to that of the process.

    Returns:
        dict: ``steps``, ``schemes``, ``rivals``, ``scoring`` and ``scoring_memory``, a dictionary for each row of the
            tables.
    """
    args = parse_args(argv)
    prepare(args)
    measures = dict(
        steps=measure_steps,
        schemes=measure_schemes,
        rivals=measure_rivals,
        scoring=measure_scoring,
        memory=measure_scoring_memory,
    )
    keys = {part: 'scoring_memory' if part == 'memory' else part for part in PARTS}
    results = dict(benchmark='step_cost', options=vars(args)) | {key: [] for key in keys.values()}
    for part in args.parts:
        results[keys[part]] = measures[part](args)
        if args.output:
            write_json(args.output, results)
    _print_tables(args, results)
    if args.output:
        print(f'\nNumbers written to {args.output}')
    return results


def _print_tables(args: argparse.Namespace, results: dict) -> None:
    size = f'{args.arch}, {args.image_size} px, batch {args.batch_size}'
    for part, title in STEP_TITLES.items():
        if not results[part]:
            continue
        print(f'\n{title}: {size}\n')
        alone = ('scoring alone (s)', 'mixing alone (s)')
        header = ('arm', 'passes', 'step (s)', f'/ {REFERENCE}', 'lowest - highest', *alone, 'peak (MB)')
        print(markdown_table(header, [_step_row(row) for row in results[part]]))
        if args.device.type != 'cuda':
            continue
        print('\nThe same steps by the time of their kernels, without the cost of launching them\n')
        header = ('arm', 'kernels', 'of a step (s)', f'/ {REFERENCE}', 'of scoring (s)')
        reference = next(row['kernel_seconds'] for row in results[part] if row['arm'] == REFERENCE)
        print(markdown_table(header, [_kernel_row(row, reference) for row in results[part]]))
    if results['scoring']:
        print(f'\nOne scoring pass up to layer {results["scoring"][0]["layer"]}: {size}\n')
        header = ('encoder', 'scoring (s)', '/ merged', 'lowest - highest')
        print(markdown_table(header, [_scoring_row(row) for row in results['scoring']]))
    if results['scoring_memory']:
        print('\nMemory of one scoring pass, one image, half of the patches merged\n')
        sides = ('patches L', 'MergeMix (MB)', 'MB per 1,000 patches', 'OpenMixup (MB)', 'MB per 1,000 patches')
        print(markdown_table(sides, [_memory_row(row) for row in results['scoring_memory']]))


def _step_row(row: dict) -> list:
    return [
        row['arm'],
        row['passes'],
        f'{row["seconds"]:.4g}',
        f'{row["ratio"]:.3f}',
        f'{row["ratio_low"]:.3f} - {row["ratio_high"]:.3f}',
        *(seconds and f'{seconds:.4g}' for seconds in (row['scoring_seconds'], row['mixing_seconds'])),
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
