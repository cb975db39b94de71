"""Batches of one kind: all samples of a step have images or none has; tasks come by their weights."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from mmengine.dist import get_dist_info, sync_random_seed
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import Sampler

from ...utils.numbers import check_number

# Steps whose samples are sorted by length together. More steps leave less padding, and mix less of the data.
SORTED_STEPS = 50


@DATA_SAMPLERS.register_module()
class ModalitySampler(Sampler):
    """Orders the indices so that every batch, on every rank of a step, has one modality (and one task).

    In a mixed batch the vision tower would run for a few rows only, and ranks with different modalities or tasks would
    wait for each other. The order depends only on the seed and the epoch, so a resumed run sees what an uninterrupted
    one sees: epoch loops and the endless iterator of iteration loops both call :meth:`set_epoch`, and the latter calls
    :meth:`skip`, which loads nothing.

    A dataset that mixes tasks (:class:`UnifiedDataset`) has ``groups`` and ``shares``. Then an epoch holds the steps of
    each group in proportion to its share, and has the smallest length that uses every record at least once. Groups
    that need more samples than they have records repeat them in a new order.

    With ``group_by_length``, the samples of a step have similar lengths, as in LLaVA's grouping by modality and length:
    the shuffled records of 50 steps at a time are sorted by ``lengths`` and cut into steps, and each rank takes every
    n-th record of a step, so that all ranks have equally much to compute. Steps of all lengths then come in a drawn
    order. Every record comes as often as without, and the number of steps stays.

    Args:
        dataset (Sized): A dataset with ``modalities`` [N] bool: whether a record has images; or with ``groups`` [N]
            int64, from 0, of records that may share a batch, and ``shares`` [groups] > 0, the share of each group in
            the steps. To group by length, also with ``lengths`` [N], in any unit.
        batch_size (int): Samples per batch and rank; must be the data loader's.
        seed (int, optional): The same on all ranks. Defaults to None: it is drawn and shared by the ranks.
        shuffle (bool): Whether to shuffle the records of a group, and the batches. Otherwise batches come in the order
            of their first record. Defaults to True.
        round_up (bool): True fills the last batch of each group with its first records, False drops that batch.
            Defaults to True.
        group_by_length (bool): Whether the samples of a step have similar lengths, which leaves little padding.
            Defaults to False.

    Raises:
        ValueError: If the dataset has neither, ``batch_size`` is below 1, no batch is full, or lengths are missing.

    Examples:
        >>> train_dataloader = dict(
        ...     batch_size=16, sampler=dict(type='ModalitySampler', batch_size=16, group_by_length=True), ...)
    """

    def __init__(
        self,
        dataset,
        batch_size: int,
        seed: int | None = None,
        shuffle: bool = True,
        round_up: bool = True,
        group_by_length: bool = False,
    ) -> None:
        groups = getattr(dataset, 'groups', getattr(dataset, 'modalities', None))
        if groups is None:
            raise ValueError(
                f"ModalitySampler: {type(dataset).__name__} has no 'modalities' (bool array: which records have "
                'images). Use a record dataset such as ConversationDataset, or several of them in a TaskMixDataset, or '
                "sampler=dict(type='DefaultSampler')."
            )
        allowed = "the data loader's, at least 1."
        check_number(f'{type(self).__name__}: batch_size', batch_size, allowed, least=1, integer=True)
        if seed is not None:
            allowed = 'an integer of at least 0, or None.'
            check_number(f'{type(self).__name__}: seed', seed, allowed, least=0, integer=True)
        self.groups = np.asarray(groups, dtype=np.int64)
        self.batch_size = batch_size
        self.seed = sync_random_seed() if seed is None else seed
        self.shuffle = shuffle
        self.round_up = round_up
        self.lengths = _lengths(dataset, type(self).__name__) if group_by_length else None
        self.rank, self.world_size = get_dist_info()
        self.epoch = 0
        self._skipped_epochs, self._offset = 0, 0
        self.steps = self._count_steps(getattr(dataset, 'shares', None))
        if not self.steps.sum():
            raise ValueError(
                f'ModalitySampler: {len(self.groups)} records fill no step of {batch_size} samples on '
                f'{self.world_size} ranks; use round_up=True or smaller batches.'
            )

    def __iter__(self) -> Iterator[int]:
        epoch = self.epoch + self._skipped_epochs
        # A generator per epoch: a resumed run starts in any epoch without drawing those before it.
        rng = np.random.default_rng([self.seed, epoch]) if self.shuffle else None
        steps = np.concatenate([self._steps_of(group, rng) for group in range(len(self.steps))])
        order = np.argsort(steps[:, 0], kind='stable') if rng is None else rng.permutation(len(steps))
        # All ranks compute the same steps, and each takes its own part of every step.
        share = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        offset, self._offset = self._offset, 0
        return map(int, steps[order, share].ravel()[offset:])

    def __len__(self) -> int:
        """The number of samples per rank."""
        return int(self.steps.sum()) * self.batch_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch, from 0; after :meth:`skip`, epochs count from where the skip ended."""
        self.epoch = epoch

    def skip(self, num_samples: int) -> None:
        """Begin the next iteration after the first samples of the run; MMEngine's iteration loop calls it on resuming.

        Args:
            num_samples (int): The samples to skip per rank, from the beginning of the first epoch.
        """
        self._skipped_epochs, self._offset = divmod(num_samples, len(self))

    def _count_steps(self, shares: np.ndarray | None) -> np.ndarray:
        """The steps of each group in an epoch: those that its records fill, or more if its share is larger."""
        steps = self._steps_to_fill()
        return steps if shares is None else whole_steps((steps / shares).max() * np.asarray(shares))

    def _steps_to_fill(self) -> np.ndarray:
        """The steps that the records of each group fill: [groups] int64."""
        counts = np.bincount(self.groups, minlength=1)
        size = self.batch_size * self.world_size
        return -(-counts // size) if self.round_up else counts // size

    def _steps_of(self, group: int, rng: np.random.Generator | None) -> np.ndarray:
        """The steps of one group: [steps, ranks * batch_size] indices."""
        size = self.batch_size * self.world_size
        order = self._order(group, int(self.steps[group]) * size, rng)
        if self.lengths is None:
            return order.reshape(-1, size)
        order = sort_by_length(order, self.lengths, SORTED_STEPS * size)
        # Neighbours of the sorted order go to different ranks.
        return order.reshape(-1, self.batch_size, self.world_size).swapaxes(1, 2).reshape(-1, size)

    def _order(self, group: int, needed: int, rng: np.random.Generator | None) -> np.ndarray:
        """``needed`` indices of a group, in the order in which its steps take them."""
        # The last step is filled from the first pass: another pass would repeat a few records twice in one epoch.
        spare = self.batch_size * self.world_size
        return take(np.flatnonzero(self.groups == group), needed, rng, spare)


def take(members: np.ndarray, needed: int, rng: np.random.Generator | None, spare: int = 1) -> np.ndarray:
    """Take all members equally often; some of them once more.

    Args:
        members (np.ndarray): [n] indices.
        needed (int): How many to take.
        rng (np.random.Generator, optional): Shuffles the members for every pass. None takes them in their order.
        spare (int): The number of indices at the end that repeat the first ones instead of a new pass. Defaults to 1.

    Returns:
        np.ndarray: [needed] indices.
    """
    if not needed:
        return np.empty(0, np.int64)
    if rng is not None and len(members):
        passes = max(needed - spare, 0) // len(members) + 1
        members = np.concatenate([rng.permutation(members) for _ in range(passes)])
    # np.resize repeats the array where it is too short; the method of the same name fills it with zeros.
    return np.resize(members, needed)


def sort_by_length(order: np.ndarray, lengths: np.ndarray, span: int) -> np.ndarray:
    """Sort every ``span`` indices of an order by their lengths, short ones first; equal ones keep their order.

    Args:
        order (np.ndarray): [n] indices.
        lengths (np.ndarray): [N] numbers, one for each index.
        span (int): How many of them are sorted together; the last ones may be fewer.

    Returns:
        np.ndarray: [n] indices.
    """
    # lexsort takes the most important key last.
    return order[np.lexsort((lengths[order], np.arange(len(order)) // span))]


def check_modalities(dataset: Any, name: str) -> None:
    """Refuse a part of a joined dataset that does not know which of its records have images.

    Args:
        dataset (Dataset): The part.
        name (str): The joined dataset and the argument that gives the part.

    Raises:
        ValueError: If it has no ``modalities``.
    """
    if not hasattr(dataset, 'modalities'):
        raise ValueError(
            f'{name} has no modalities (bool array: which records have images); use a record dataset such as '
            'ConversationDataset.'
        )


def _lengths(dataset, sampler: str) -> np.ndarray:
    lengths = np.asarray(getattr(dataset, 'lengths', None))
    if lengths.shape != (len(dataset),) or lengths.dtype.kind not in 'iuf':
        raise ValueError(
            f"{sampler}: group_by_length=True needs 'lengths' of {type(dataset).__name__} (an array, one number per "
            'record), and of all datasets in it; record datasets of JSON, Parquet and Arrow files have them.'
        )
    return lengths


def whole_steps(steps: np.ndarray) -> np.ndarray:
    """Round up; what exceeds a whole number by a rounding error adds no step."""
    return np.ceil(steps - 1e-6).astype(np.int64)


@DATA_SAMPLERS.register_module()
class TaskMixSampler(ModalitySampler):
    """Orders the records of a :class:`TaskMixDataset` so that every batch has one modality, and tasks their weights.

    On every rank, either all samples of a step have an image or none has one. Within a modality, a batch is drawn from
    all tasks. Over an epoch, each task has its share of the modality's samples, rounded to whole samples, and each
    modality its share of the steps, rounded to whole steps. A task with both modalities splits its weight by its
    records. An epoch has the smallest length that uses every record at least once; tasks with more weight repeat their
    records in a new order. Order, resuming and :meth:`skip` are those of :class:`ModalitySampler`.

    Args:
        dataset (TaskMixDataset): Or any dataset with ``tasks`` and ``groups`` ([N] int64, from 0), and with
            ``weights`` [tasks] and ``shares`` [groups], both > 0.
        batch_size (int): Samples per batch and rank; must be the data loader's.
        seed (int, optional): The same on all ranks. Defaults to None: it is drawn and shared by the ranks.
        group_by_length (bool): As for :class:`ModalitySampler`. Tasks with answers of different lengths then share
            fewer batches; their shares of an epoch stay. Defaults to False.

    Attributes:
        quotas (np.ndarray): [groups, tasks] int64, the number of samples in an epoch on all ranks together.

    Raises:
        ValueError: If the dataset mixes no tasks, or ``batch_size`` is below 1.

    Examples:
        >>> train_dataloader = dict(batch_size=16, sampler=dict(type='TaskMixSampler', batch_size=16), ...)
    """

    def __init__(self, dataset, batch_size: int, seed: int | None = None, group_by_length: bool = False) -> None:
        missing = [key for key in ('tasks', 'weights', 'groups', 'shares') if not hasattr(dataset, key)]
        if missing:
            raise ValueError(
                f'TaskMixSampler: {type(dataset).__name__} has no {missing[0]!r}; use it on a TaskMixDataset, or '
                "sampler=dict(type='ModalitySampler') on other datasets."
            )
        self.tasks = np.asarray(dataset.tasks, dtype=np.int64)
        self.counts, self.portions = _cells(dataset)
        super().__init__(dataset, batch_size, seed, group_by_length=group_by_length)
        needed = self.steps * self.batch_size * self.world_size
        self.quotas = np.stack([_apportion(*cells) for cells in zip(needed, self.portions, self.counts)])

    def _steps_to_fill(self) -> np.ndarray:
        """The steps of each group after which all records of all its tasks have been used."""
        some = self.counts > 0
        needed = np.divide(self.counts, self.portions, out=np.zeros(some.shape), where=some)
        return whole_steps(needed.max(1) / (self.batch_size * self.world_size))

    def _order(self, group: int, needed: int, rng: np.random.Generator | None) -> np.ndarray:
        assert rng is not None  # The order of the tasks is always drawn.
        # First which task each place of the order gets, then the records of each task for its places.
        slots = rng.permutation(np.repeat(np.arange(self.quotas.shape[1]), self.quotas[group]))
        order = np.empty(needed, np.int64)
        for task in np.flatnonzero(self.quotas[group]):
            members = np.flatnonzero((self.groups == group) & (self.tasks == task))
            order[slots == task] = take(members, int(self.quotas[group, task]), rng)
        return order


def _cells(dataset) -> tuple[np.ndarray, np.ndarray]:
    """Records of each task in each group, [groups, tasks], and the share of the task in the samples of the group."""
    weights, num_groups = np.asarray(dataset.weights, dtype=np.float64), len(dataset.shares)
    cells = np.asarray(dataset.groups) * len(weights) + np.asarray(dataset.tasks)
    counts = np.bincount(cells, minlength=num_groups * len(weights)).reshape(num_groups, len(weights))
    shares = weights * counts / counts.sum(0)
    return counts, shares / shares.sum(1, keepdims=True)


def _apportion(needed: int, portions: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Whole numbers that sum to ``needed``, each its portion rounded down or up, none below its count."""
    exact = needed * portions
    # `needed` is large enough for all counts; only rounding errors can bring a portion below its count.
    quotas = np.maximum(np.floor(exact), counts).astype(np.int64)
    quotas[np.argsort(quotas - exact, kind='stable')[: needed - quotas.sum()]] += 1
    return quotas
