"""What does a detector gain from its backbone? A small Mask R-CNN on drawn shapes, started from classifiers of shapes.

The backbones are a ViT with a simple pyramid, from scratch, trained without mixing, or trained with MergeMix; and
frozen encoders, one or two with mixed embeddings. All arms see the same images in the same order and take the same
number of steps, as do the classifiers. Each seed has its own weights and order, which the arms share, so that
differences are paired. Every detector on a ViT is also tested with merged patches. At the end, the speed-up of merging
is measured in a detector of full width. Every finished run is written to --output at once. A benchmark that is started
again skips these runs.
"""

import argparse
import time
from copy import deepcopy
from pathlib import Path

import torch
from lib.detection import (
    build_classifier,
    build_detector,
    draw_crops,
    evaluate,
    load_config,
    open_dataset,
    random_batch,
    train_detector,
)
from lib.digits import predict, train
from lib.measure import interleaved_times, ratio_cells
from lib.runs import Runs, add_run_arguments, paired_table, run_missing
from mmengine.registry import MODELS, init_default_scope

from mergemix_mm.missing_ops import INSTALL, has_ops
from mergemix_mm.utils.tables import markdown_table

# The kind of each encoder, and the augment of its training.
ENCODERS = {
    'ViT, plain': ('ViT', None),
    'ViT, MergeMix': ('ViT', dict(type='MergeMix')),
    'ConvNeXt, plain': ('ConvNeXt', None),
}
# The encoders of each detector, and whether they are frozen in a MultiBackbone.
ARMS = {
    'from scratch': ([], False),
    'trained plainly': (['ViT, plain'], False),
    'trained with MergeMix': (['ViT, MergeMix'], False),
    'frozen ViT': (['ViT, MergeMix'], True),
    'frozen ConvNeXt': (['ConvNeXt, plain'], True),
    'frozen ViT and ConvNeXt': (['ViT, MergeMix', 'ConvNeXt, plain'], True),
}
MERGED = (0.3, 0.5)  # Shares of merged patches in the test. No detector trains with merging.
FULL = 'transfer/mask-rcnn-tome-deit-small_32xb2-mergemix-lsj-100e_coco.py'


def run_encoder(arm: str, seed: int, steps: int, num_train: int, folder: str) -> dict[str, float]:
    """Train one classifier and keep its encoder.

    Returns:
        dict: Top-1 accuracy in percent on new images, and the seconds of training.
    """
    torch.set_num_threads(1)
    start = time.perf_counter()
    model = build_classifier(*ENCODERS[arm], seed)
    train(model, draw_crops(num_train, seed), steps, seed, shift=4)
    seconds = time.perf_counter() - start
    test = draw_crops(min(num_train, 1000), seed=2**31 + seed)
    correct = predict(model, test.images).argmax(dim=1) == test.labels
    torch.save(model.backbone.state_dict(), _weights(folder, arm, seed))
    return dict(accuracy=100 * float(correct.float().mean()), seconds=seconds)


def run_detector(arm: str, seed: int, steps: int, num_train: int, num_val: int, folder: str) -> dict[str, float]:
    """Train one detector and test it.

    Returns:
        dict: ``bbox`` and ``segm``, mAP in percent; ``seconds``; and without a MultiBackbone ``bbox_merged_30`` and so
            on, from the same weights with 30% of the patches merged.
    """
    torch.set_num_threads(1)
    names, mixed = ARMS[arm]
    encoders = [(ENCODERS[name][0], _weights(folder, name, seed)) for name in names]
    shapes = Path(folder, f'shapes-{num_train}-{num_val}')
    train_set, val_set = (open_dataset(shapes, split, num_train, num_val) for split in ('train', 'val'))
    torch.manual_seed(seed)
    model = build_detector(encoders, mixed)
    start = time.perf_counter()
    train_detector(model, train_set, steps, seed)
    result = dict(evaluate(model, val_set, shapes), seconds=time.perf_counter() - start)
    for share in [] if mixed else MERGED:
        merged = build_detector([], False, share)
        merged.load_state_dict(model.state_dict())
        found = evaluate(merged, val_set, shapes)
        result |= {f'{key}_merged_{share:.0%}'.rstrip('%'): value for key, value in found.items()}
    return result


def _weights(folder: str, arm: str, seed: int) -> Path:
    return Path(folder, f'{arm.replace(", ", "-")}-{seed}.pth')


@torch.inference_mode()
def time_merging(size: int, rounds: int, backbone: dict) -> list[list[str]]:
    """Rows of a table: the speed-up of the backbone, and of backbone, neck and RPN, against no merging."""
    init_default_scope('mmdet')
    cfg = deepcopy(load_config(FULL).model)
    cfg.backbone.update(img_size=size, init_cfg=None, **backbone)
    cfg.neck.in_channels = backbone.get('arch', {}).get('embed_dims', cfg.neck.in_channels)
    detectors = {}
    for share in (0.0, *MERGED):
        cfg.backbone.num_merge = share
        torch.manual_seed(0)
        detectors[share] = MODELS.build(deepcopy(cfg)).eval()
    images = random_batch(size, 1)
    rows = []
    parts = {
        'backbone': lambda d: d.backbone(images),
        'backbone, neck, RPN': lambda d: d.rpn_head(d.extract_feat(images)),
    }
    for name, part in parts.items():
        arms = {share: lambda d=detector, part=part: part(d) for share, detector in detectors.items()}
        times = interleaved_times(arms, rounds)
        rows += [[name, f'{share:.0%}', *ratio_cells(times[0.0], times[share])] for share in MERGED]
    return rows


def main(argv: list[str] | None = None) -> Runs:
    """Run what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_run_arguments(parser, seeds=3, steps=150, output='shapes_detection.json')
    parser.add_argument('--rounds', type=int, default=9, help='forwards per timed model (default: %(default)s)')
    args = parser.parse_args(argv)
    if not has_ops():
        print(f'Left out: Mask R-CNN needs the compiled ops of onedl-mmcv, which are missing. {INSTALL}')
        return {}
    sizes = dict(num_train=1000, num_val=200)
    encoder_steps, size, backbone = 800, 512, {}
    if args.quick:
        args.seeds, args.steps, args.workers, args.rounds = 2, 2, 0, 1
        sizes, encoder_steps, size = dict(num_train=8, num_val=4), 2, 64
        backbone = dict(arch=dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32))
    folder = args.output.with_name(f'{args.output.stem}_weights')
    folder.mkdir(parents=True, exist_ok=True)

    encoder_args = argparse.Namespace(**vars(args) | dict(output=args.output.with_stem(f'{args.output.stem}_encoders')))
    settings = dict(steps=encoder_steps, num_train=4 * sizes['num_train'], folder=str(folder))
    encoders = run_missing(run_encoder, list(ENCODERS), encoder_args, settings)
    runs = run_missing(run_detector, list(ARMS), args, dict(steps=args.steps, folder=str(folder), **sizes))

    trained = [arm for arm, (_, mixed) in ARMS.items() if not mixed]
    frozen = [arm for arm in ARMS if arm not in trained]
    columns = dict(bbox='box mAP %', segm='mask mAP %')
    merged = {f'bbox_merged_{share:.0%}'.rstrip('%'): f'box mAP %, {share:.0%} merged' for share in MERGED}
    print(paired_table(encoders, list(ENCODERS), args.seeds, dict(accuracy='top-1 %'), 'ViT, plain'), end='\n\n')
    print(paired_table(runs, trained, args.seeds, columns, 'trained plainly'), end='\n\n')
    print(paired_table(runs, trained, args.seeds, merged, 'trained plainly'), end='\n\n')
    print(paired_table(runs, frozen, args.seeds, columns, 'frozen ViT'), end='\n\n')
    rows = time_merging(size, args.rounds, backbone)
    print(markdown_table(('DeiT-S, one image', 'merged', 'speed-up', 'lowest - highest'), rows))
    return runs


if __name__ == '__main__':
    main()
