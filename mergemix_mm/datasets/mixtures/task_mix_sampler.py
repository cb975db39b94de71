"""Batches of one modality in which tasks come by their weights (the task mix of SPHINX, arXiv 2311.07575)."""

import numpy as np
from mmengine.registry import DATA_SAMPLERS

from .modality_sampler import ModalitySampler, take, whole_steps


@DATA_SAMPLERS.register_module()
class TaskMixSampler(ModalitySampler):
    """Orders the records of a :class:`TaskMixDataset` so that every batch has one modality, and tasks their weights.

    All samples of a step have an image or none has, on every rank. Within a modality, a batch is drawn from all tasks;
    over an epoch each task has exactly its share of the modality's samples, up to the rounding to whole samples, and
    each modality its share of the steps, up to the rounding to whole steps. A task of both modalities splits its
    weight by its records. An epoch is just so long that every record comes at least once; those of tasks with more
    weight come again, shuffled anew. Order, resuming and :meth:`skip` are those of :class:`ModalitySampler`.

    Args:
        dataset (TaskMixDataset): Or any with ``tasks`` and ``groups`` ([N] int64, from 0), ``weights`` [tasks] and
            ``shares`` [groups], both > 0.
        batch_size (int): Samples per batch and rank; must be the data loader's.
        seed (int, optional): The same on all ranks. Defaults to None: drawn, and shared by the ranks.

    Attributes:
        quotas (np.ndarray): [groups, tasks] int64: the samples of an epoch, on all ranks together.

    Raises:
        ValueError: If the dataset mixes no tasks, or ``batch_size`` is below 1.

    Examples:
        >>> train_dataloader = dict(batch_size=16, sampler=dict(type='TaskMixSampler', batch_size=16), ...)
    """

    def __init__(self, dataset, batch_size: int, seed: int | None = None) -> None:
        missing = [key for key in ('tasks', 'weights', 'groups', 'shares') if not hasattr(dataset, key)]
        if missing:
            raise ValueError(
                f'TaskMixSampler: {type(dataset).__name__} has no {missing[0]!r}; use it on a TaskMixDataset, or '
                "sampler=dict(type='ModalitySampler') on other datasets."
            )
        self.tasks = np.asarray(dataset.tasks, dtype=np.int64)
        self.counts, self.portions = _cells(dataset)
        super().__init__(dataset, batch_size, seed)
        needed = self.steps * self.batch_size * self.world_size
        self.quotas = np.stack([_apportion(*cells) for cells in zip(needed, self.portions, self.counts)])

    def _steps_to_fill(self) -> np.ndarray:
        """The steps of each group after which the records of all its tasks are used up."""
        some = self.counts > 0
        needed = np.divide(self.counts, self.portions, out=np.zeros(some.shape), where=some)
        return whole_steps(needed.max(1) / (self.batch_size * self.world_size))

    def _order(self, group: int, needed: int, rng: np.random.Generator) -> np.ndarray:
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
