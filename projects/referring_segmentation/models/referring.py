"""The part that the commands of the applications share: from an expression to its box and its mask."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from mergemix_mm.engine.launch import LaunchError
from mergemix_mm.utils.images import MissingImageError, read_image
from mergemix_mm.utils.text import printable, shown

from .grounder import Grounder
from .segmenters import GrabCutSegmenter, SamSegmenter


@dataclass
class Segmented:
    """What was found for an expression.

    Args:
        image (PIL.Image.Image): The image, in RGB.
        box (Tensor): [4], xyxy in pixels.
        mask (np.ndarray): [H, W] bool.
    """

    image: Image.Image
    box: Tensor
    mask: np.ndarray


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that :func:`segment` reads."""
    parser.add_argument('model', help='folder of a trained SPHINX, as SavePretrainedHook writes it')
    parser.add_argument('image', type=Path, help='image file')
    parser.add_argument('expression', help="words for one thing in the image, such as 'the red ring'")
    segmenter = parser.add_mutually_exclusive_group()
    segmenter.add_argument(
        '--sam',
        default='facebook/sam-vit-base',
        metavar='NAME',
        help='SamModel that turns the box into a mask, on the hub or in a folder (default: %(default)s)',
    )
    segmenter.add_argument('--grabcut', action='store_true', help="OpenCV's GrabCut instead, which needs no weights")
    parser.add_argument('--device', help="e.g. 'cuda:1' or 'cpu' (default: the accelerator, if there is one)")


def segment(args: argparse.Namespace) -> Segmented:
    """Find what the expression refers to.

    Raises:
        SystemExit: If a file or a model cannot be read, or the answer does not name one box.
    """
    try:
        image = read_image(args.image)
    except MissingImageError as error:
        raise LaunchError(f'IMAGE: {shown(args.image, 200)} cannot be read: there is no such file') from error
    except ValueError as error:
        raise LaunchError(f'IMAGE: {error}') from error
    try:
        grounder = Grounder(args.model, args.device)
    except (OSError, ValueError) as error:
        raise LaunchError(f'MODEL: {error}') from error
    answer, box = grounder(image, args.expression)
    if box is None:
        raise LaunchError(f'{args.expression!r}: the answer {answer!r} does not name one box, so there is no mask')
    try:
        segmenter = GrabCutSegmenter() if args.grabcut else SamSegmenter(args.sam, args.device)
    except (OSError, ValueError) as error:
        raise LaunchError(f'--sam: {error}') from error
    mask = segmenter(image, box)
    corners = ', '.join(f'{value:.1f}' for value in box.tolist())
    print(f'{args.expression}: {printable(answer)} -> box ({corners}) -> mask of {int(mask.sum())} pixels')
    return Segmented(image, box, mask)
