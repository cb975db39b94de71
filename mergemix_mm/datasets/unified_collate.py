"""Puts the samples of one task into a batch for a unified model: understanding or generation."""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.registry import FUNCTIONS

from .collate import ConversationCollate


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
