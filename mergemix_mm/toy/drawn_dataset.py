"""What the datasets of drawn shapes share: one record per index, drawn from (seed, split, index) alone."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from mmengine.dataset import Compose
from torch.utils.data import Dataset

from .shapes_scene import split_pairs

SPLITS = ('train', 'val')
MIN_IMAGE_SIZE = 24


class DrawnDataset(Dataset, ABC):
    """Base of the datasets that draw their records; a subclass implements :meth:`draw`.

    A colour-shape pair belongs to one split: of each colour, and of each shape, four pairs appear in train images
    only and two in val images only.

    Args:
        split (str): ``'train'`` or ``'val'``. Defaults to ``'train'``.
        length (int): Number of records, >= 1. Defaults to 10000.
        image_size (int): Height and width in pixels, >= 24. Defaults to 48.
        seed (int): Of all draws, >= 0; numpy's global state plays no part. Defaults to 0.
        pipeline (Sequence): Transforms that turn a record into a sample. Defaults to an empty tuple.

    Raises:
        ValueError: If an argument is outside its range.
    """

    METAINFO: dict = {}

    def __init__(
        self,
        split: str = 'train',
        length: int = 10000,
        image_size: int = 48,
        seed: int = 0,
        pipeline: Sequence = (),
    ) -> None:
        name = type(self).__name__
        if split not in SPLITS:
            raise ValueError(f"{name}: split={split!r} is unknown; use split='train' or split='val'.")
        for key, value, least in (('length', length, 1), ('image_size', image_size, MIN_IMAGE_SIZE), ('seed', seed, 0)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f'{name}: {key}={value!r} must be an integer of at least {least}.')
        self.split, self.length, self.image_size, self.seed = split, length, image_size, seed
        self.pairs = split_pairs(split)
        self.pipeline = Compose(pipeline)

    @abstractmethod
    def draw(self, index: int, rng: np.random.Generator) -> dict:
        """Draw a record, without its ``source``, from this generator alone."""

    @property
    def metainfo(self) -> dict:
        """What metrics need to know of the dataset."""
        return dict(self.METAINFO)

    @property
    def modalities(self) -> np.ndarray:
        """[N] bool: whether a record has an image; all do."""
        return np.ones(self.length, dtype=bool)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        return self.pipeline(self.get_data_info(index))

    def get_data_info(self, index: int) -> dict:
        """Draw a record.

        Args:
            index (int): From -N to N - 1.

        Returns:
            dict: see the class.

        Raises:
            IndexError: If there is no such record.
        """
        name = type(self).__name__
        if not -self.length <= index < self.length:
            raise IndexError(f'{name}: index {index} is outside the {self.length} records')
        index %= self.length
        record = self.draw(index, np.random.default_rng((self.seed, SPLITS.index(self.split), index)))
        return {**record, 'source': f'{name}[{index}]'}
