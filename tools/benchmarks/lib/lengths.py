"""Lengths of records as in LLaVA's mix for instruction tuning, drawn from the distribution of a command line."""

import argparse
from dataclasses import dataclass

import numpy as np


@dataclass
class Records:
    """The lengths of some records.

    Args:
        modalities (np.ndarray): [N] bool, which have an image.
        text (np.ndarray): [N] int64, tokens of text.
        tokens (np.ndarray): [N] int64, all tokens, those of images included.
        lengths (np.ndarray): [N] int64, bytes of the records in a JSON file, which a sampler groups by.
    """

    modalities: np.ndarray
    text: np.ndarray
    tokens: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)


# Bytes of JSON that are no text of a record: keys, id, name of the image.
RECORD_BYTES, BYTES_PER_TOKEN = 200, 4.3
DISTRIBUTION = (
    'Lengths of text are log-normal, cut at LONGEST. In JSON, a record has 200 bytes besides its text, and a token of '
    'text has 4.3 bytes, with a relative deviation of BYTES_SPREAD between records.'
)


def add_length_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the distribution."""
    parser.add_argument('--text-only', type=float, default=40 / 665, help='share of records (default: 40 of 665)')
    parser.add_argument('--image-tokens', type=int, default=576, help='of the others (default: %(default)s)')
    parser.add_argument('--median', type=float, default=400, help='tokens of text (default: %(default)s)')
    parser.add_argument('--sigma', type=float, default=0.7, help='of their logarithm (default: %(default)s)')
    parser.add_argument('--longest', type=int, default=2000, help='tokens of text (default: %(default)s)')
    parser.add_argument('--bytes-spread', type=float, default=0.1, help='(default: %(default)s)')


def draw_records(number: int, args: argparse.Namespace) -> Records:
    """Draw the lengths of some records, by the options above and ``--seed``."""
    rng = np.random.default_rng(args.seed)
    images = rng.random(number) >= args.text_only
    text = np.exp(rng.normal(np.log(args.median), args.sigma, number)).clip(1, args.longest).astype(np.int64)
    per_token = BYTES_PER_TOKEN * np.exp(rng.normal(0, args.bytes_spread, number))
    return Records(images, text, text + args.image_tokens * images, (RECORD_BYTES + text * per_token).astype(np.int64))
