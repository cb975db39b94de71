"""Segments what an expression refers to: SPHINX writes its box, SAM turns the box into a mask."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mergemix_mm.visualization import save_image
from projects.referring_segmentation.models.figure import Panel, draw_panels
from projects.referring_segmentation.models.referring import add_arguments, segment


def main(argv: Sequence[str] | None = None) -> None:
    """Segment, and write the figure.

    Args:
        argv (Sequence[str], optional): The command line. Defaults to that of the process.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument('--out', type=Path, default='segmented.png', help='figure to write (default: %(default)s)')
    args = parser.parse_args(argv)
    found = segment(args)
    panels = [
        Panel('image', found.image),
        Panel('box of SPHINX', found.image, box=found.box),
        Panel(f'mask of {"GrabCut" if args.grabcut else "SAM"}', found.image, mask=found.mask),
    ]
    print(save_image(draw_panels(panels, args.expression), args.out))


if __name__ == '__main__':
    main()
