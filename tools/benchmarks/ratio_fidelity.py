"""Which label matches what can be seen? Mixing ratios against the visible share of the own digit.

Digits on clutter come with masks of their ink, so that the pixels of either digit in a mixed image can be counted. One
encoder, trained without mixing, scores the patches of images that it has not seen. The program also measures how far
its saliency can be trusted.
"""

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from lib.digit_mixes import measure_clean_against_mixed, measure_kinds, measure_saliency, mix_all_ways, score
from lib.digits import Digits, build_classifier, predict, train
from lib.measure import add_common_arguments, prepare, write_json
from torch import Tensor, nn

from mergemix_mm.utils.tables import markdown_table


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='Visible share = ink of the own digit in the mixed image / ink of both digits in the mixed image. If no '
        'ink is visible, the share is undefined; such cases are counted and left out.',
    )
    parser.add_argument('--steps', type=int, default=2000, help='training steps of the encoder (default: %(default)s)')
    parser.add_argument('--batch-size', type=int, default=32, help='images mixed together (default: %(default)s)')
    parser.add_argument('--repeats', type=int, default=20, help='mixes per test image (default: %(default)s)')
    parser.add_argument('--num-merge', type=int, help='patches merged (default: half of them)')
    parser.add_argument('--layer', type=int, help='the scored layer (default: at 3/4 of the depth)')
    parser.add_argument('--alpha', type=float, default=1.0, help='lambda ~ Beta(alpha, alpha) (default: %(default)s)')
    add_common_arguments(parser)
    args = parser.parse_args(argv)
    if args.quick:
        args.steps, args.repeats = 10, 2
    if args.batch_size < 4:
        parser.error(f'--batch-size {args.batch_size} must be at least 4, as the gaussian ratio needs')
    return args


def measure_fidelity(encoder: nn.Module, test: Digits, args: argparse.Namespace) -> list[dict]:
    """|ratio - visible share| of every arm, as the mean over the images, each of which is mixed several times."""
    generator = torch.Generator().manual_seed(args.seed)
    np.random.seed(args.seed)
    num_images = len(test.images)
    ratios: dict[str, list] = {}
    for _ in range(args.repeats):
        drawn: dict[str, Tensor] = {}
        # All batches are full, because the gaussian ratio is normalised over the batch.
        order = torch.randperm(num_images, generator=generator)[: num_images // args.batch_size * args.batch_size]
        for chosen in order.split(args.batch_size):
            scores = {
                'merged': score(encoder, test.images[chosen], args.num_merge, args.layer),
                'unmerged': score(encoder, test.images[chosen], 0, args.layer),
            }
            for name, columns in mix_all_ways(scores, test.masks[chosen], args.alpha, generator).items():
                table = drawn.setdefault(name, torch.full((num_images, 3), torch.nan))
                table[chosen] = torch.stack(columns, dim=1)
        for name, table in drawn.items():
            ratios.setdefault(name, []).append(table)
    tables = {name: torch.stack(drawn).double() for name, drawn in ratios.items()}  # [repeats, N, 3]
    errors = {name: _errors(table) for name, table in tables.items()}
    return [_fidelity_row(name, tables[name], errors[name], errors['CutMix']) for name in tables]


def _errors(table: Tensor) -> Tensor:
    """[repeats, N, (ratio, own ink, partner's ink)] -> |ratio - share| [repeats, N]; NaN if no ink is visible."""
    ratio, own, other = table.unbind(dim=-1)
    return (ratio - own / (own + other)).abs()


def _fidelity_row(name: str, table: Tensor, error: Tensor, reference: Tensor) -> dict:
    ratio, own, other = table.unbind(dim=-1)
    share = own / (own + other)
    valid = ~share.isnan()
    # The difference is NaN if one of the two is, so only mixes in which both arms show ink are compared.
    mean, standard_error = _mean_over_images(error)
    difference, difference_error = _mean_over_images(error - reference)
    return dict(
        arm=name,
        error=mean,
        standard_error=standard_error,
        against_cutmix=difference,
        against_cutmix_standard_error=difference_error,
        bias=float((ratio - share)[valid].mean()),
        correlation=float(torch.corrcoef(torch.stack([ratio[valid], share[valid]]))[0, 1]),
        both_visible=float(((own > 0) & (other > 0))[~ratio.isnan()].double().mean()),
        nothing_visible=int((own + other == 0).sum()),
        mixes=int((~ratio.isnan()).sum()),
    )


def _mean_over_images(values: Tensor) -> tuple[float, float]:
    """Mean and standard error of values [repeats, N] over the images, whose repeats are averaged first."""
    per_image = values.nanmean(dim=0)
    per_image = per_image[~per_image.isnan()]
    return float(per_image.mean()), float(per_image.std() / len(per_image) ** 0.5)


def main(argv: Sequence[str] | None = None) -> dict:
    """Train the encoder, measure, print the tables, and write the numbers if asked to.

    Args:
        argv (Sequence[str], optional): The command line. Defaults to that of the process.

    Returns:
        dict: ``fidelity``, ``saliency``, ``kinds`` and ``clean_against_mixed``, one dictionary per row of the tables,
            and ``accuracy``.
    """
    args = parse_args(argv)
    prepare(args)
    training, test = Digits.load('train', clutter=True), Digits.load('test', clutter=True)
    print(f'Training the encoder: {args.steps} steps on {len(training.images)} images', flush=True)
    model = build_classifier(None, 0.0, args.seed)
    train(model, training, args.steps, args.seed)
    accuracy = float((predict(model, test.images).argmax(dim=1) == test.labels).double().mean())
    encoder = model.backbone
    encoder.eval()

    results = dict(
        benchmark='ratio_fidelity',
        options=vars(args),
        accuracy=accuracy,
        fidelity=measure_fidelity(encoder, test, args),
        saliency=measure_saliency(encoder, test, args),
        kinds=measure_kinds(encoder, test, args),
        clean_against_mixed=measure_clean_against_mixed(encoder, test, args),
    )
    _print_tables(results, len(test.images))
    if args.output:
        write_json(args.output, results)
        print(f'\nNumbers written to {args.output}')
    return results


def _print_tables(results: dict, num_images: int) -> None:
    print(f'\nEncoder: top-1 {results["accuracy"]:.1%} on the {num_images} cluttered test digits')
    print('\nRatio fidelity: |ratio - visible share of the own digit|\n')
    header = (
        'mix / ratio',
        'mean error',
        'difference to CutMix',
        'bias',
        'correlation',
        'both visible',
        'none visible',
    )
    rows = [
        (
            row['arm'],
            _with_error((row['error'], row['standard_error'])),
            _with_error((row['against_cutmix'], row['against_cutmix_standard_error']), sign='+'),
            f'{row["bias"]:+.3f}',
            f'{row["correlation"]:.3f}',
            f'{row["both_visible"]:.1%}',
            f'{row["nothing_visible"]} of {row["mixes"]}',
        )
        for row in results['fidelity']
    ]
    print(markdown_table(header, rows))
    print('\nSaliency by layer: does it find the digit, and does it agree with the saliency without merging?\n')
    agreement = ('spearman', 'pearson', 'top20_overlap')
    names = ('Spearman', 'Pearson', 'top 20% shared')
    rows = [
        (
            row['layer'],
            row['saliency'],
            _with_error(row['mass_on_digit']),
            f'{row["area_of_digit"]:.3f}',
            _with_error(row['digit_in_top20']),
            *(_with_error(row.get(key)) for key in agreement),
        )
        for row in results['saliency']
    ]
    print(markdown_table(('layer', 'saliency', 'mass on the digit', "digit's area", 'digit in top 20%', *names), rows))
    print('\nWhich saliency: does it find the digit, and do labels by its visible share match the mixed image?\n')
    columns = dict(
        mass_on_digit='mass on the digit', digit_in_top20='digit in top 20%', ratio_error='|ratio - visible share|'
    )
    rows = [(row['layer'], row['saliency'], *(_with_error(row[key]) for key in columns)) for row in results['kinds']]
    print(markdown_table(('layer', 'saliency', *columns.values()), rows))
    print('\nSaliency on clean and on mixed images, on the patches that the image keeps\n')
    rows = [
        (row['arm'], row['images'], *(_with_error(row.get(key)) for key in agreement))
        for row in results['clean_against_mixed']
    ]
    print(markdown_table(('mix', 'images', *names), rows))


def _with_error(value: tuple[float, float] | None, sign: str = '') -> str | None:
    return None if value is None else f'{value[0]:{sign}.3f} ± {value[1]:.3f}'


if __name__ == '__main__':
    main()
