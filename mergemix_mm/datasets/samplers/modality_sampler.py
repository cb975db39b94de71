"""Batches of one modality: all samples of a step have images, or none has."""

from collections.abc import Iterator

import numpy as np
from mmengine.dist import get_dist_info, sync_random_seed
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import Sampler


@DATA_SAMPLERS.register_module()
class ModalitySampler(Sampler):
    """Orders the indices so that every batch, on every rank of a step, has one modality.

    Mixed batches spend the vision tower on few rows, and ranks that disagree on it wait for each other. The order
    depends on the seed and the epoch alone, so a resumed run sees what an uninterrupted one does: epoch loops and the
    endless iterator of iteration loops both call :meth:`set_epoch`, and the latter skips what was seen already.

    Args:
        dataset (Sized): A dataset with ``modalities`` [N] bool: whether a record has images.
        batch_size (int): Samples per batch and rank; must be the data loader's.
        seed (int, optional): The same on all ranks. Defaults to None: drawn, and shared by the ranks.
        shuffle (bool): Whether to shuffle records within their modality, and the batches. Without it, batches are in
            the order of their first record. Defaults to True.
        round_up (bool): Whether the last batch of each modality is filled with records from its beginning, or
            dropped. Defaults to True.

    Raises:
        ValueError: If the dataset has no ``modalities``, ``batch_size`` is below 1, or nothing is left to sample.

    Examples:
        >>> train_dataloader = dict(batch_size=16, sampler=dict(type='ModalitySampler', batch_size=16), ...)
    """

    def __init__(
        self, dataset, batch_size: int, seed: int | None = None, shuffle: bool = True, round_up: bool = True
    ) -> None:
        modalities = getattr(dataset, 'modalities', None)
        if modalities is None:
            raise ValueError(
                f"ModalitySampler: {type(dataset).__name__} has no 'modalities' (bool array: which records have "
                "images). Use a record dataset such as ConversationDataset, or sampler=dict(type='DefaultSampler')."
            )
        if batch_size < 1:
            raise ValueError(f"ModalitySampler: batch_size={batch_size!r} must be the data loader's, at least 1.")
        self.modalities = np.asarray(modalities, dtype=bool)
        self.batch_size = batch_size
        self.seed = sync_random_seed() if seed is None else seed
        self.shuffle = shuffle
        self.round_up = round_up
        self.rank, self.world_size = get_dist_info()
        self.epoch = 0
        self.num_steps = sum(self._count_steps(int(count)) for count in np.bincount(self.modalities, minlength=2))
        if not self.num_steps:
            raise ValueError(
                f'ModalitySampler: {len(self.modalities)} records fill no step of {batch_size} samples on '
                f'{self.world_size} ranks; use round_up=True or smaller batches.'
            )

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.epoch]) if self.shuffle else None
        steps = np.concatenate([self._steps_of(modality, rng) for modality in (False, True)])
        order = np.argsort(steps[:, 0], kind='stable') if rng is None else rng.permutation(len(steps))
        share = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        return iter(steps[order, share].ravel().tolist())

    def __len__(self) -> int:
        """The number of samples per rank."""
        return self.num_steps * self.batch_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch, from 0."""
        self.epoch = epoch

    def _count_steps(self, count: int) -> int:
        size = self.batch_size * self.world_size
        return -(-count // size) if self.round_up else count // size

    def _steps_of(self, modality: bool, rng: np.random.Generator | None) -> np.ndarray:
        """The steps of one modality: [steps, ranks * batch_size] indices."""
        members = np.flatnonzero(self.modalities == modality)
        if rng is not None:
            members = rng.permutation(members)
        size = self.batch_size * self.world_size
        return np.resize(members, (self._count_steps(len(members)), size)) if len(members) else members.reshape(0, size)
