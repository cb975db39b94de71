"""Many tasks in one dataset, each with its share of the samples (the task mix of SPHINX, arXiv 2311.07575)."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.registry import DATASETS
from torch.utils.data import Dataset

from ...utils.numbers import is_number
from .samplers import check_modalities


@DATASETS.register_module()
class TaskMixDataset(Dataset):
    """Joins the datasets of several tasks; each keeps its own pipeline.

    :class:`TaskMixSampler` draws batches of one modality from it and mixes the tasks by their weights.

    Args:
        tasks (dict[str, dict]): By the names of the tasks, ``dataset`` (a Dataset or its config, with ``modalities``)
            and ``weight``, the share of the task in the samples relative to the others. Give the weights of all tasks
            or of none; without weights, the share of a task is that of its records.
        pipeline (Sequence): Transforms of all tasks, which follow those of each dataset's own ``pipeline``; then the
            datasets must be configs. Defaults to an empty tuple.

    Attributes:
        names (list[str]): The tasks in the order of their numbers.
        datasets (list[Dataset]): The datasets in the same order.
        weights (np.ndarray): [tasks] float64, the share of each in the samples; they sum to 1.

    Raises:
        ValueError: If there is no task, a task has other keys, no records or no modalities, only some tasks have a
            weight, a weight is not above 0, or the pipeline cannot be appended to that of a dataset.

    Examples:
        >>> train_dataloader = dict(
        ...     batch_size=16, collate_fn=dict(type='ConversationCollate'),
        ...     sampler=dict(type='TaskMixSampler', batch_size=16),
        ...     dataset=dict(type='TaskMixDataset', tasks=dict(
        ...         vqa=dict(weight=3, dataset=dict(type='VQAv2Dataset', ...)),
        ...         grounding=dict(weight=1, dataset=dict(
        ...             type='RefCOCODataset', pipeline=[dict(type='GroundingTask')], ...))),
        ...         pipeline=[dict(type='EncodeConversation', processor=...)]))
    """

    def __init__(self, tasks: Mapping[str, Mapping[str, Any]], pipeline: Sequence = ()) -> None:
        if not tasks:
            raise ValueError('TaskMixDataset: tasks is empty; give dict(name=dict(dataset=..., weight=...), ...).')
        for name, task in tasks.items():
            if not {'dataset'} <= set(task) <= {'dataset', 'weight'}:
                raise ValueError(f"TaskMixDataset: tasks.{name} has {sorted(task)}; it takes 'dataset' and 'weight'.")
        self.names = list(tasks)
        self.datasets: list[Any] = [_build(name, task['dataset'], pipeline) for name, task in tasks.items()]
        self._ends = np.cumsum([len(dataset) for dataset in self.datasets]).tolist()
        self.weights = self._normalise({name: task.get('weight') for name, task in tasks.items()})

    @property
    def metainfo(self) -> dict:
        """Joined from all datasets; where they share a key, the first dataset decides."""
        return {
            key: value for dataset in self.datasets[::-1] for key, value in getattr(dataset, 'metainfo', {}).items()
        }

    @property
    def tasks(self) -> np.ndarray:
        """The number of the task of each record, [N] int64."""
        return np.repeat(np.arange(len(self.datasets)), [len(dataset) for dataset in self.datasets])

    @property
    def groups(self) -> np.ndarray:
        """The group of each record, [N] int64; only one group may share a batch.

        Group 0 is text only and group 1 image-text; where one kind is missing, the other is group 0.
        """
        modalities = np.concatenate([np.asarray(dataset.modalities, dtype=bool) for dataset in self.datasets])
        return np.unique(modalities, return_inverse=True)[1]

    @property
    def lengths(self) -> np.ndarray:
        """About how long each record is, [N]; see :attr:`RecordDataset.lengths`. All datasets must know it."""
        return np.concatenate([dataset.lengths for dataset in self.datasets])

    @property
    def shares(self) -> np.ndarray:
        """The share of each group in the samples, [groups]; a task of both groups splits its weight by its records."""
        return np.bincount(
            self.groups, weights=(self.weights / [len(dataset) for dataset in self.datasets])[self.tasks]
        )

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Any:
        task, place = self._locate(index)
        return self.datasets[task][place]

    def get_data_info(self, index: int) -> dict[str, Any]:
        """The record as the pipeline of its task gets it."""
        task, place = self._locate(index)
        return self.datasets[task].get_data_info(place)

    def _locate(self, index: int) -> tuple[int, int]:
        """Number of the task, and the index in its dataset."""
        index = range(len(self))[index]
        task = bisect_right(self._ends, index)
        # The ends are cumulative, so the start of a task is its end minus its length.
        return task, index - self._ends[task] + len(self.datasets[task])

    def _normalise(self, weights: dict[str, float | None]) -> np.ndarray:
        given = {name: weight for name, weight in weights.items() if weight is not None}
        if given and (len(given) < len(weights) or not all(is_number(weight, above=0) for weight in given.values())):
            raise ValueError(
                f'TaskMixDataset: the weights are {weights}; each must be a number above 0, or none may have one (then '
                'the tasks are mixed in proportion to their records). To leave a task out, take it out of tasks.'
            )
        values = np.array([float(given.get(name, len(d))) for name, d in zip(self.names, self.datasets)])
        return values / values.sum()


def _build(name: str, dataset: Any, pipeline: Sequence) -> Any:
    if isinstance(dataset, dict):
        # The transforms go inside the dataset, where on_error='skip' can replace a record that one of them refuses.
        dataset = DATASETS.build({**dataset, 'pipeline': [*dataset.get('pipeline', ()), *pipeline]})
    elif pipeline:
        raise ValueError(
            f'TaskMixDataset: pipeline cannot be appended to that of tasks.{name}, which is a '
            f'{type(dataset).__name__} already; give its config.'
        )
    check_modalities(dataset, f'TaskMixDataset: {type(dataset).__name__} of tasks.{name}')
    if not len(dataset):
        raise ValueError(f'TaskMixDataset: the dataset of tasks.{name} has no record.')
    return dataset
