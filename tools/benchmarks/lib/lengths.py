"""Conversations as long as those of LLaVA's instruction data, with random content, and batches of them in any order."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mergemix_mm.functional.preference import IGNORE_INDEX

from .steps import IMAGE, PAD, PATCH, Batch

# Text tokens of a conversation: log-normal, cut off at both ends. The median, the longest texts and the share of
# conversations without an image are like those of the 665,000 conversations of LLaVA-1.5.
MEDIAN, SPREAD, SHORTEST, LONGEST = 400, 0.8, 16, 2000
TEXT_ONLY = 40 / 665
# Tokens of an image of LLaVA-1.5. With a smaller image, the texts are shorter in proportion.
IMAGE_TOKENS = 576


def draw_lengths(number: int, image_tokens: int = IMAGE_TOKENS) -> list[tuple[int, int]]:
    """Draw image tokens and text tokens of conversations from torch's global generator."""
    texts = (MEDIAN * torch.randn(number).mul(SPREAD).exp()).clamp(SHORTEST, LONGEST) * (image_tokens / IMAGE_TOKENS)
    shown = (torch.rand(number) >= TEXT_ONLY).tolist()
    return [(image_tokens * one, max(round(text), 4)) for text, one in zip(texts.tolist(), shown, strict=True)]


def random_conversations(config: dict[str, Any], number: int) -> list[Batch]:
    """Samples of drawn lengths; the second half of each text is the answer."""
    size, vocabulary = config['vision_config']['image_size'], config['text_config']['vocab_size']
    samples = []
    for image, text in draw_lengths(number, (size // PATCH) ** 2):
        ids = torch.cat([torch.full((image,), IMAGE), torch.randint(IMAGE + 1, vocabulary, (text,))])
        labels = ids.clone()
        labels[: len(ids) - text // 2] = IGNORE_INDEX
        pixels: dict[str, Tensor] = dict(pixel_values=torch.randn(3, size, size)) if image else {}
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
