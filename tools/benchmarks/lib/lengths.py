"""Lengths of records as in LLaVA's mix for instruction tuning, drawn from the distribution of a command line."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mergemix_mm.functional.preference import IGNORE_INDEX

from .steps import IMAGE, PAD, Batch


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


def random_samples(config: dict[str, Any], records: Records) -> list[Batch]:
    """Random ids and images for a LLaVA, without padding; the second half of each text is the answer."""
    size, vocabulary = config['vision_config']['image_size'], config['text_config']['vocab_size']
    samples = []
    for shown, text, tokens in zip(records.modalities, records.text.tolist(), records.tokens.tolist()):
        ids = torch.cat([torch.full((tokens - text,), IMAGE), torch.randint(IMAGE + 1, vocabulary, (text,))])
        labels = ids.clone()
        labels[: tokens - text // 2] = IGNORE_INDEX
        pixels: dict[str, Tensor] = dict(pixel_values=torch.randn(3, size, size)) if shown else {}
        samples.append(dict(input_ids=ids, labels=labels, attention_mask=torch.ones_like(ids), **pixels))
    return samples


def to_batches(samples: Sequence[Batch], batch_size: int, grouped: bool) -> list[Batch]:
    """Batches of samples as they come, or sorted by length; padded on the right."""
    samples = sorted(samples, key=lambda sample: len(sample['input_ids'])) if grouped else samples
    return [_pad(samples[start : start + batch_size]) for start in range(0, len(samples), batch_size)]


def _pad(samples: Sequence[Batch]) -> Batch:
    batch = {
        key: pad_sequence([sample[key] for sample in samples], batch_first=True, padding_value=fill)
        for key, fill in dict(input_ids=PAD, labels=IGNORE_INDEX, attention_mask=0).items()
    }
    pixels = [sample['pixel_values'] for sample in samples if 'pixel_values' in sample]
    return batch | dict(pixel_values=torch.stack(pixels)) if pixels else batch


def tokens_per_useful_token(batches: Sequence[Batch]) -> float:
    """Tokens that are computed, padding included, for each token of a sample."""
    masks = [batch['attention_mask'] for batch in batches]
    return sum(mask.numel() for mask in masks) / int(sum(mask.sum() for mask in masks))
