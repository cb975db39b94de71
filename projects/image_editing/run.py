"""Erases or replaces what an expression refers to: SPHINX writes a box, SAM makes a mask of it, inpainting fills it."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmengine.device import get_device

from mergemix_mm.engine.launch import LaunchError
from mergemix_mm.visualization import save_image
from projects.image_editing.models.editing import dilate, erase, load_pipeline, replace
from projects.referring_segmentation.models.figure import Panel, draw_panels
from projects.referring_segmentation.models.referring import Segmented, add_arguments, segment


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    edit = parser.add_mutually_exclusive_group(required=True)
    edit.add_argument('--erase', action='store_true', help="fill the mask from around it, by OpenCV's inpainting")
    edit.add_argument('--replace', metavar='PROMPT', help='paint this into the mask with a diffusion model')
    parser.add_argument(
        '--dilate', type=int, default=3, metavar='PIXELS', help='grow the mask by this first (default: %(default)s)'
    )
    parser.add_argument(
        '--inpainting',
        default='stable-diffusion-v1-5/stable-diffusion-inpainting',
        metavar='NAME',
        help='inpainting pipeline of diffusers for --replace, on the hub or in a folder (default: %(default)s)',
    )
    parser.add_argument('--seed', type=int, default=0, help='seed of --replace (default: %(default)s)')
    parser.add_argument('--out', type=Path, default='edited.png', help='image to write (default: %(default)s)')
    parser.add_argument('--figure', type=Path, help='figure to write: before, mask and after')
    args = parser.parse_args(argv)
    if args.dilate < 0:
        parser.error(f'--dilate {args.dilate} must be at least 0')
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Edit the image, and write it and its figure.

    Args:
        argv (Sequence[str], optional): The command line. Defaults to that of the process.
    """
    args = parse_args(argv)
    pipeline = None if args.erase else _load_pipeline(args)
    found = segment(args)
    mask = dilate(found.mask, args.dilate)
    if pipeline is None:
        after = erase(found.image, mask)
    else:
        after = replace(found.image, mask, args.replace, pipeline, seed=args.seed)
    print(save_image(np.asarray(after), args.out))
    if args.figure is not None:
        print(save_image(_draw(found, mask, after, args), args.figure))


def _load_pipeline(args: argparse.Namespace):
    try:
        return load_pipeline(args.inpainting, args.device or get_device())
    except (ImportError, OSError, ValueError) as error:
        raise LaunchError(f'--replace: {error}') from error


def _draw(found: Segmented, mask: np.ndarray, after, args: argparse.Namespace) -> np.ndarray:
    panels = [
        Panel('before', found.image, box=found.box),
        Panel('mask', found.image, mask=mask),
        Panel('erased' if args.erase else f'replaced by {args.replace}', after),
    ]
    return draw_panels(panels, args.expression)


if __name__ == '__main__':
    main()
