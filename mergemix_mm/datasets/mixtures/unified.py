"""Image understanding and text-to-image generation in one dataset, for unified models."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from mmengine.registry import DATASETS
from torch.utils.data import Dataset

from ...utils.numbers import is_number
from .samplers import check_modalities

TASKS = ('gen', 'und')


@DATASETS.register_module()
class UnifiedDataset(Dataset):
    """Joins a dataset of text-to-image records and one of conversations; each keeps its own pipeline.

    Indices of generation come first. Each sample gets its task, ``'gen'`` or ``'und'``, into ``inputs``.
    :class:`ModalitySampler` draws batches of one task (and modality) from it at the ratio, with the same task on every
    rank of a step; :class:`UnifiedCollate` collates them.

    Args:
        gen (Dataset | dict): Prompts and images, with ``EncodeGeneration`` in its pipeline: a
            :class:`TextToImageDataset` or a :class:`ShapesGenerationDataset`.
        und (Dataset | dict): Conversations, with ``EncodeConversation`` in its pipeline, and with ``modalities``: a
            :class:`ConversationDataset` or a :class:`ShapesConversationDataset`.
        ratio (dict[str, float], optional): Steps of the two tasks relative to each other, all > 0. Defaults to None:
            ``dict(gen=1, und=1)``, the best ratio of AIA (https://arxiv.org/abs/2511.22663).

    Raises:
        ValueError: If ``ratio`` has other keys, or numbers that are not positive; if ``und`` has no modalities.

    Examples:
        >>> train_dataloader = dict(
        ...     batch_size=16, collate_fn=dict(type='UnifiedCollate'),
        ...     sampler=dict(type='ModalitySampler', batch_size=16),
        ...     dataset=dict(type='UnifiedDataset', gen=dict(type='TextToImageDataset', ...),
        ...                  und=dict(type='ConversationDataset', ...)))
    """

    def __init__(self, gen: Dataset | dict, und: Dataset | dict, ratio: Mapping[str, float] | None = None) -> None:
        ratio = dict.fromkeys(TASKS, 1) if ratio is None else dict(ratio)
        if set(ratio) != set(TASKS) or not all(is_number(value, above=0) for value in ratio.values()):
            raise ValueError(
                f'UnifiedDataset: ratio={ratio} must be dict(gen=..., und=...) with numbers above 0; for a '
                'single task use its dataset without UnifiedDataset.'
            )
        given = dict(gen=gen, und=und)
        self.datasets: dict[str, Any] = {
            task: DATASETS.build(d) if isinstance(d, dict) else d for task, d in given.items()
        }
        self.ratio = ratio
        check_modalities(self.datasets['und'], f'UnifiedDataset: und={type(self.datasets["und"]).__name__}')

    @property
    def metainfo(self) -> dict:
        """Joined from both datasets; where they share a key, understanding decides."""
        return {**getattr(self.datasets['gen'], 'metainfo', {}), **getattr(self.datasets['und'], 'metainfo', {})}

    @property
    def groups(self) -> np.ndarray:
        """The group of each record, [N] int64; only one group may share a batch.

        Group 0 is generation; the modalities of understanding that exist follow, text only first.
        """
        modalities = np.asarray(self.datasets['und'].modalities, dtype=np.int64)
        present = np.unique(modalities, return_inverse=True)[1]
        return np.concatenate([np.zeros(len(self.datasets['gen']), np.int64), 1 + present])

    @property
    def lengths(self) -> np.ndarray:
        """About how long each record is, [N]; see :attr:`RecordDataset.lengths`. Both datasets must know it."""
        return np.concatenate([self.datasets[task].lengths for task in TASKS])

    @property
    def shares(self) -> np.ndarray:
        """The share of each group in the steps, [groups]; within understanding, in proportion to the records."""
        counts = np.bincount(self.groups)[1:]
        gen = self.ratio['gen'] / sum(self.ratio.values())
        return np.array([gen, *((1 - gen) * counts / counts.sum())])

    def __len__(self) -> int:
        return sum(len(dataset) for dataset in self.datasets.values())

    def __getitem__(self, index: int) -> dict[str, Any]:
        task, place = self._locate(index)
        sample = self.datasets[TASKS[task]][place]
        return {**sample, 'inputs': {**sample['inputs'], 'task': TASKS[task]}}

    def get_data_info(self, index: int) -> dict[str, Any]:
        """The record as the pipeline of its task gets it."""
        task, place = self._locate(index)
        return self.datasets[TASKS[task]].get_data_info(place)

    def _locate(self, index: int) -> tuple[int, int]:
        """Number of the task, and the index in its dataset."""
        index, num_gen = range(len(self))[index], len(self.datasets['gen'])
        return (0, index) if index < num_gen else (1, index - num_gen)
