"""Is there a cheaper scoring pass that is as good? Layer, merged tokens and image size against ratio fidelity and time.

Fidelity is the distance of the attention label from the visible share of the own digit, as in ratio_fidelity.py: an
encoder of cluttered digits is trained once without mixing, and every pass scores the same held-out digits, which are
mixed with the same partners and lambdas. Attention that is spread evenly makes random masks, whose labels are close to
the truth too, so the share of the attention on the digit stands beside it.

Time is that of the same pass, in quarters of the depth and shares of the patches, of a DeiT-S at 224 px with random
weights, as a share of a training step without mixing. A pass is on the frontier if no other one is at least as close
and as fast, and better in one of the two.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import NamedTuple

import torch
from lib.digit_mixes import score, to_pixels, visible_ink
from lib.digits import Digits, build_classifier, predict, train
from lib.measure import add_common_arguments, interleaved_times, median_ratio, prepare, write_json
from mmpretrain.structures import DataSample
from step_cost import adamw, build_model
from step_cost import parse_args as parse_step_args
from torch import Tensor, nn

from mergemix_mm.evaluation.localization import mass_on_object, object_share
from mergemix_mm.functional import attention_ratio, derangement, sample_lambda, topk_mask
from mergemix_mm.models.vision_encoders import build_vision_encoder
from mergemix_mm.utils.tables import markdown_table

QUARTERS = (1, 2, 3, 4)  # Of the depth, 1 to 4.
MERGED = (0.0, 0.25, 0.5, 0.75)  # Shares of the patches.
SIDES = (1.0, 0.75, 0.5)  # Shares of the image's side, rounded to whole patches.


class Pass(NamedTuple):
    """A scoring pass.

    Args:
        quarter (int): The scored layer in quarters of the depth.
        merged (float): Share of the patches that merge before it.
        side (float): Side of the scored images as a share of the side of the images.
    """

    quarter: int
    merged: float
    side: float


TODAY = Pass(3, 0.5, 1.0)
# Each layer merges at most half of its patches, and the scored layer attends before its own merge.
PASSES = [Pass(*each) for each in product(QUARTERS, MERGED, SIDES) if each[1] <= 1 - 0.5 ** (each[0] - 1)]


def saliency(backbone: nn.Module, images: Tensor, each: Pass) -> Tensor:
    """The saliency of a pass on the patches of the whole images, [N, L']."""
    rows, cols = (round(each.side * cells) for cells in build_vision_encoder(backbone).patch_grid(images))
    layer = each.quarter * len(backbone.layers) // 4
    return score(backbone, images, int(each.merged * rows * cols), layer, scale=each.side).saliency


def measure_fidelity(
    backbone: nn.Module, test: Digits, repeats: int, seed: int
) -> tuple[dict[Pass, Tensor], dict[Pass, float]]:
    """What the labels and the saliency of each pass are worth.

    Returns:
        tuple: |label - visible share|, the mean over the repeats for every image [N], NaN if no ink is visible; and the
            mean share of the saliency that lies on the digit.
    """
    side, grid = test.images.size(-1), build_vision_encoder(backbone).patch_grid(test.images)
    found = {each: saliency(backbone, test.images, each) for each in PASSES}
    generator, errors = torch.Generator().manual_seed(seed), {each: [] for each in PASSES}
    for _ in range(repeats):
        partner = derangement(len(test.images), generator)
        lam = sample_lambda(1.0, len(test.images), generator)
        for each, values in found.items():
            mask = topk_mask(values, lam)
            own, other = visible_ink(test.masks, test.masks[partner], to_pixels(mask, grid, (side, side)))
            errors[each].append((attention_ratio(values, partner, mask) - own / (own + other)).abs())
    share = object_share(test.masks, grid)
    mass = {each: float(mass_on_object(values, share).mean()) for each, values in found.items()}
    return {each: torch.stack(drawn).double().nanmean(dim=0) for each, drawn in errors.items()}, mass


def measure_times(args: argparse.Namespace) -> dict[Pass, float]:
    """The time of each pass of a DeiT-S as a share of a training step without mixing."""
    options = parse_step_args(['--quick'] if args.quick else [])
    model = build_model(options)
    optimizer = adamw(model)
    images = torch.randn(options.batch_size, 3, options.image_size, options.image_size)
    samples = [DataSample().set_gt_label(i % 10) for i in range(options.batch_size)]

    def step() -> None:
        optimizer.zero_grad()
        model.parse_losses(model.loss(images, samples))[0].backward()
        optimizer.step()

    arms: dict[object, Callable] = {'step': step}
    arms |= {each: partial(saliency, model.backbone, images, each) for each in PASSES}
    times = interleaved_times(arms, args.rounds)
    return {each: median_ratio(times[each], times['step']) for each in PASSES}


def frontier(errors: dict[Pass, float], times: dict[Pass, float]) -> set[Pass]:
    """The passes of which no other one is at least as close and as fast, and better in one of the two."""
    points = {each: (errors[each], times[each]) for each in errors}
    return {
        each
        for each, point in points.items()
        if not any(other != point and other[0] <= point[0] and other[1] <= point[1] for other in points.values())
    }


def main(argv: Sequence[str] | None = None) -> dict:
    """Train the encoder, measure, print the table, and write the numbers if asked to.

    Args:
        argv (Sequence[str], optional): The command line. Defaults to that of the process.

    Returns:
        dict: ``passes``, a dictionary for each row of the table, and the ``accuracy`` of the encoder.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--steps', type=int, default=2000, help='training steps of the encoder (default: %(default)s)')
    parser.add_argument('--repeats', type=int, default=20, help='mixes per test image (default: %(default)s)')
    parser.add_argument('--rounds', type=int, default=5, help='times that a pass is timed (default: %(default)s)')
    add_common_arguments(parser)
    args = parser.parse_args(argv)
    if args.quick:
        args.steps, args.repeats, args.rounds = 2, 2, 1
    prepare(args)
    training, test = Digits.load('train', clutter=True), Digits.load('test', clutter=True)
    if args.quick:
        test = Digits(test.images[:32], test.labels[:32], test.masks[:32])
    model = build_classifier(None, 0.0, args.seed)
    train(model, training, args.steps, args.seed)
    accuracy = float((predict(model, test.images).argmax(dim=1) == test.labels).double().mean())
    per_image, mass = measure_fidelity(model.backbone, test, args.repeats, args.seed)
    times = measure_times(args)
    best = frontier({each: float(values.nanmean()) for each, values in per_image.items()}, times)
    rows = []
    for each in sorted(PASSES, key=times.__getitem__):
        values, difference = per_image[each], per_image[each] - per_image[TODAY]
        kept, paired = values[~values.isnan()], difference[~difference.isnan()]
        rows.append(
            dict(
                **each._asdict(),
                today=each == TODAY,
                time=times[each],
                error=float(kept.mean()),
                difference=float(paired.mean()),
                standard_error=float(paired.std() / len(paired) ** 0.5),
                mass_on_digit=mass[each],
                frontier=each in best,
            )
        )
    results = dict(benchmark='scoring_frontier', options=vars(args), accuracy=accuracy, passes=rows)
    print(f'Encoder: top-1 {accuracy:.1%} on the {len(test.images)} cluttered test digits\n')
    header = ('layer / depth', 'merged', 'side', 'time / step', 'mean error', 'to today', 'mass on digit', 'frontier')
    cells = [
        (
            f'{row["quarter"]}/4',
            f'{row["merged"]:.0%}',
            f'{row["side"]:.0%}',
            f'{row["time"]:.3f}',
            f'{row["error"]:.3f}',
            'today' if row['today'] else f'{row["difference"]:+.3f} ± {row["standard_error"]:.3f}',
            f'{row["mass_on_digit"]:.3f}',
            'yes' if row['frontier'] else '',
        )
        for row in rows
    ]
    print(markdown_table(header, cells))
    if args.output:
        write_json(args.output, results)
        print(f'\nNumbers written to {args.output}')
    return results


if __name__ == '__main__':
    main()
