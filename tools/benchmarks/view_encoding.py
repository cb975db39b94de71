"""Time of encoding the views of SPHINX: one call of each encoder for all views of a batch, against a loop over views
and encoders, and the saving by skipping views that are padding.
"""

import argparse
from collections.abc import Callable, Sequence

import torch
from lib.measure import add_common_arguments, interleaved_times, prepare, ratio_cells, write_json
from mmengine.registry import MODELS
from torch import Tensor

from mergemix_mm.functional import real_views, split_views
from mergemix_mm.models.vlms.sphinx import ViewEncoder
from mergemix_mm.utils.tables import markdown_table

LOOP, BATCHED = 'loop over views and encoders', 'one call per encoder'
# Height and width of the original image.
SHAPES = {'1:1': (448, 448), '2:1': (224, 448), '3:1': (150, 450)}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='The model is a frozen vision transformer and a frozen ConvNeXt of MMPretrain with a neck on a grid of '
        '14 x 14. Only the forward pass is timed. The arms take turns, and ratios are taken within a round. Images lie '
        'in the corner of their square.',
    )
    parser.add_argument('--batch-sizes', type=int, nargs='+', default=[1, 4], help='images (default: %(default)s)')
    parser.add_argument('--view-size', type=int, default=224, help='in pixels (default: %(default)s)')
    parser.add_argument('--vit', default='deit-t', help='arch of the vision transformer (default: %(default)s)')
    parser.add_argument('--convnext', default='atto', help='arch of the ConvNeXt (default: %(default)s)')
    parser.add_argument('--rounds', type=int, default=9, help='calls per arm (default: %(default)s)')
    add_common_arguments(parser)
    args = parser.parse_args(argv)
    if args.quick:
        args.batch_sizes, args.view_size, args.rounds = [1], 32, 1
    return args


def build_encoder(args: argparse.Namespace, grid: int) -> ViewEncoder:
    """The backbones and their neck with random weights."""
    torch.manual_seed(args.seed)
    size = args.view_size
    vit = dict(type='mmpretrain.VisionTransformer', arch=args.vit, img_size=size, patch_size=16, out_type='raw')
    convnext = dict(type='mmpretrain.ConvNeXt', arch=args.convnext, gap_before_final_norm=False)
    backbone = MODELS.build(dict(type='MultiBackbone', encoders=[dict(encoder=vit), dict(encoder=convnext)]))
    channels = [backbone.branches[0].encoder.embed_dims, backbone.branches[1].encoder.channels[-1]]
    neck = dict(type='EmbeddingMixNeck', in_channels=channels, out_channels=256, grid=size // 16, class_token=True)
    return ViewEncoder(backbone, MODELS.build(neck), grid).eval()


def encode_in_a_loop(encoder: ViewEncoder, images: Tensor) -> Tensor:
    """Encode each view separately, one encoder after the other, as the release does."""
    size = images.size(-1) // encoder.crop_grid
    views = split_views(images, encoder.crop_grid, size).unbind(1)
    maps = [tuple(branch(view) for branch in encoder.backbone.branches) for view in views]
    tokens = [encoder.neck(each) for each in maps]
    return torch.stack(tokens, dim=1).flatten(0, 2)


@torch.no_grad()
def run(function: Callable[..., Tensor], *args) -> Callable[[], Tensor]:
    """An arm: the call without gradients."""
    return torch.no_grad()(lambda: function(*args))


def measure_batching(args: argparse.Namespace) -> tuple[list[tuple], dict]:
    """The rows of the first table, and all times by grid and batch size."""
    rows, times = [], {}
    for grid in (2, 3):
        encoder = build_encoder(args, grid)
        for batch_size in args.batch_sizes:
            images = torch.randn(batch_size, 3, grid * args.view_size, grid * args.view_size)
            arms = {LOOP: run(encode_in_a_loop, encoder, images), BATCHED: run(encoder, images)}
            assert torch.allclose(arms[LOOP](), arms[BATCHED](), atol=1e-3)
            found = times[f'{grid}/{batch_size}'] = interleaved_times(arms, args.rounds)
            views = f'1 + {grid} x {grid}'
            rows += [(views, batch_size, arm, *ratio_cells(found[arm], found[LOOP])) for arm in arms]
    return rows, times


def measure_skipping(args: argparse.Namespace) -> tuple[list[tuple], dict]:
    """The rows of the second table, and all times by grid and shape."""
    rows, times, batch_size = [], {}, args.batch_sizes[-1]
    for grid in (2, 3):
        encoder = build_encoder(args, grid)
        images = torch.randn(batch_size, 3, grid * args.view_size, grid * args.view_size)
        real = {shape: real_views(torch.tensor([size] * batch_size), grid, 'corner') for shape, size in SHAPES.items()}
        arms = {shape: run(encoder, images, mask) for shape, mask in real.items()}
        found = interleaved_times(arms, args.rounds)
        times.update({f'{grid}/{shape}': values for shape, values in found.items()})
        for shape, mask in real.items():
            num_real, num_views = int(mask[0].sum()), mask.size(1)
            share = f'{num_real / num_views:.2f}'
            ratio = ratio_cells(found[shape], found['1:1'])
            rows.append((f'1 + {grid} x {grid}', shape, f'{num_real} of {num_views}', share, *ratio))
    return rows, times


def main(argv: Sequence[str] | None = None) -> dict[str, dict]:
    """Measure both and print the tables.

    Returns:
        dict: ``batching`` and ``skipping``, the times (s) of the arms.
    """
    args = parse_args(argv)
    prepare(args)
    rows, batching = measure_batching(args)
    print(markdown_table(('views', 'images', 'encoding', 'time / loop', 'range over the rounds'), rows), end='\n\n')
    rows, skipping = measure_skipping(args)
    header = ('views', 'image', 'encoded', 'share of the views', 'time / 1:1', 'range over the rounds')
    print(markdown_table(header, rows))
    results = dict(batching=batching, skipping=skipping)
    if args.output:
        write_json(args.output, dict(options=vars(args), **results))
    return results


if __name__ == '__main__':
    main()
