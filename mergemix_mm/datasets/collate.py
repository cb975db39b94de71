"""Puts encoded conversations of different lengths, with and without images, into one batch."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.registry import FUNCTIONS

from ..families.base import declared, token_padding

# A sample, or the rejected side of a pair, with this key has its own images (possibly none).
SIZES_KEY = 'original_sizes'


class ConversationCollate:
    """Pads the tokens of samples from ``EncodeConversation`` and concatenates their images.

    Images are concatenated over the first dimension. Their other dimensions are padded with zeros to the largest (tiles
    of LLaVA-NeXT). For SmolVLM and Idefics3, the first dimension is the row of the batch: a row of text only gets
    images of zeros, which these models ignore. A batch without any image has no image keys. Samples with and without
    images may be mixed.

    In a config, ``collate_fn=dict(type='ConversationCollate', padding_side='right')``.

    Args:
        padding_side (str): ``'right'`` (usual in training) or ``'left'`` (for generation). Defaults to ``'right'``.

    Raises:
        ValueError: If ``padding_side`` is neither, or some samples only have a rejected answer.

    Examples:
        >>> batch = ConversationCollate()([dataset[0], dataset[1]])
        >>> batch['inputs']['input_ids'].shape, len(batch['data_samples'])
        (torch.Size([2, 640]), 2)
    """

    def __init__(self, padding_side: str = 'right') -> None:
        if padding_side not in ('left', 'right'):
            raise ValueError(f"ConversationCollate: padding_side={padding_side!r} is unknown; use 'left' or 'right'.")
        self.padding_side = padding_side

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Collate samples.

        Args:
            samples (Sequence[dict]): ``inputs`` and ``data_samples`` of each.

        Returns:
            dict: ``inputs``, the batch: tokens [B, L], image tensors [N, ...] in the order of the samples, and
            ``rejected`` (dict of tokens [B, L']) for preference pairs, with image tensors of all its rows and
            ``original_sizes`` as soon as one pair has rejected images of its own; ``data_samples``, a list.
        """
        inputs = [sample['inputs'] for sample in samples]
        batch: dict[str, Any] = self._pad_tokens(inputs, inputs)
        batch.update(_join_images(inputs))
        rejected = [one['rejected'] for one in inputs if 'rejected' in one]
        if rejected:
            if len(rejected) != len(inputs):
                raise ValueError(
                    f'ConversationCollate: {len(rejected)} of {len(inputs)} samples have a rejected answer. Keep pairs '
                    'and plain conversations in different datasets.'
                )
            batch['rejected'] = self._pad_tokens(rejected, inputs)
            if any(SIZES_KEY in one for one in rejected):
                # Pairs without rejected images have the same images on both sides.
                losers = [one if SIZES_KEY in one else {**winner, **one} for winner, one in zip(inputs, rejected)]
                batch['rejected'] |= _join_images(losers) or {SIZES_KEY: losers[0][SIZES_KEY]}
        return dict(inputs=batch, data_samples=[sample['data_samples'] for sample in samples])

    def _pad_tokens(self, inputs: Sequence[dict], owners: Sequence[dict]) -> dict[str, torch.Tensor]:
        length = max(len(one['input_ids']) for one in inputs)
        batch = {}
        for key, value in token_padding().items():
            if key not in inputs[0]:
                continue
            rows = []
            for one, owner in zip(inputs, owners):
                missing = length - len(one[key])
                sides = (missing, 0) if self.padding_side == 'left' else (0, missing)
                rows.append(F.pad(one[key], sides, value=owner['pad_token_id'] if value is None else value))
            batch[key] = torch.stack(rows)
        return batch


@FUNCTIONS.register_module(name='ConversationCollate')
def conversation_collate(samples: Sequence[dict[str, Any]], padding_side: str = 'right') -> dict[str, Any]:
    """What a config means by ConversationCollate: MMEngine binds the arguments of ``collate_fn`` to a function."""
    return ConversationCollate(padding_side)(samples)


class UnifiedCollate(ConversationCollate):
    """`ConversationCollate` that also takes samples of ``EncodeGeneration``, and says which of the two a batch is.

    Samples without a ``task`` are of understanding. ``inputs['task']`` of the batch is ``'gen'`` or ``'und'``, a str;
    a generation batch holds ``input_ids`` and ``attention_mask`` [B, L] of the prompts and, in training,
    ``target_images`` [B, 3, H, W].

    In a config, ``collate_fn=dict(type='UnifiedCollate', padding_side='right')``.

    Args:
        padding_side (str): ``'right'`` (usual in training) or ``'left'`` (for generation). Defaults to ``'right'``.

    Raises:
        ValueError: If ``padding_side`` is neither, or the samples are of both tasks.
    """

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Collate samples of one task; see the class."""
        tasks = [sample['inputs'].get('task', 'und') for sample in samples]
        if len(set(tasks)) > 1:
            raise ValueError(
                f'UnifiedCollate: a batch holds {tasks.count("gen")} samples of generation and {tasks.count("und")} of '
                "understanding; use sampler=dict(type='ModalitySampler', batch_size=<that of the data loader>)."
            )
        inputs = [{key: value for key, value in sample['inputs'].items() if key != 'task'} for sample in samples]
        data_samples = [sample['data_samples'] for sample in samples]
        if tasks[0] == 'und':
            batch = super().__call__([dict(inputs=one, data_samples=None) for one in inputs])['inputs']
        else:
            batch = self._pad_tokens(inputs, inputs)
            if 'target_images' in inputs[0]:
                batch['target_images'] = torch.stack([one['target_images'] for one in inputs])
        return dict(inputs={**batch, 'task': tasks[0]}, data_samples=data_samples)


@FUNCTIONS.register_module(name='UnifiedCollate')
def unified_collate(samples: Sequence[dict[str, Any]], padding_side: str = 'right') -> dict[str, Any]:
    """What a config means by UnifiedCollate: MMEngine binds the arguments of ``collate_fn`` to a function."""
    return UnifiedCollate(padding_side)(samples)


def _join_images(inputs: Sequence[dict]) -> dict[str, torch.Tensor]:
    """All other tensors of the samples."""
    known = {*token_padding(), 'pad_token_id', 'rejected'}
    with_images = [one for one in inputs if len(one[SIZES_KEY])]
    keys = [key for key in with_images[0] if key not in known] if with_images else []
    by_row = any(family.row_key in keys for family in declared())
    joined = {}
    for key in keys:
        tensors = [one[key] for one in with_images]
        # LLaVA-NeXT's images differ in the number of tiles.
        largest = torch.tensor([tensor.shape[1:] for tensor in tensors]).amax(0).tolist()
        if by_row and key != SIZES_KEY:
            empty = tensors[0].new_zeros(1, *largest)
            tensors = [one[key] if len(one[SIZES_KEY]) else empty for one in inputs]
        joined[key] = torch.cat([_pad_to(tensor, largest) for tensor in tensors])
    return joined


def _pad_to(tensor: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Zeros after every dimension but the first."""
    missing = [(0, size - found) for found, size in zip(tensor.shape[1:], shape)]
    return F.pad(tensor, [side for pair in reversed(missing) for side in pair])
