"""The study `accuracy` of mixing_study.py: ways to mix, and ratios and masks of MergeMix, on cluttered digits."""

import sys

from lib.runs import Runs
from mixing_study import main as mixing_study


def main(argv: list[str] | None = None) -> Runs:
    """Run what is missing and print the table; the options are those of mixing_study.py."""
    return mixing_study(['accuracy', *(sys.argv[1:] if argv is None else argv)])


if __name__ == '__main__':
    main()
