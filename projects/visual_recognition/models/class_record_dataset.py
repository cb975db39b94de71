"""Classification datasets of MMPretrain as records for ``ClassificationTask``."""

from collections.abc import Sequence
from typing import Any

from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

from mergemix_mm.datasets.base import RecordDataset


@DATASETS.register_module()
class ClassRecordDataset(RecordDataset):
    """One record per image of another dataset: ``images``, ``label`` (the name of its class) and ``source``.

    Args:
        dataset (BaseDataset | dict): A dataset whose records have ``img_path`` and ``gt_label``, such as
            ``dict(type='mmpretrain.ImageNet', data_root='data/imagenet', split='train')``. Its pipeline is not used.
        class_names (str | Sequence[str], optional): Names in the order of its classes, or the name of such a list in
            ``mmpretrain.datasets.categories``. ``'IMAGENET_SIMPLE_CATEGORIES'`` has short names, of which 'missile'
            and 'sunglasses' stand for two classes each. Defaults to None, which takes the names of the dataset.
        **kwargs: Further arguments of ``RecordDataset``.

    Raises:
        ValueError: If the numbers of names and classes differ.
        RecordError: If an image is missing or corrupt.
    """

    def __init__(self, dataset: BaseDataset | dict, class_names: str | Sequence[str] | None = None, **kwargs) -> None:
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        self.class_names = _find_names(class_names) if isinstance(class_names, str) else class_names
        super().__init__(**kwargs)

    def open_records(self) -> BaseDataset:
        classes = self.dataset.metainfo.get('classes')
        if self.class_names is None:
            self.class_names = classes
        if self.class_names is None or len(self.class_names) != len(classes or self.class_names):
            raise ValueError(
                f'ClassRecordDataset: {len(self.class_names or ())} class_names for the {len(classes or ())} classes '
                f'of {type(self.dataset).__name__}; give one name for each'
            )
        return self.dataset

    def source(self, index: int) -> str:
        return f'{type(self.dataset).__name__}[{index}]'

    def load_record(self, index: int) -> dict[str, Any]:
        info = self.dataset.get_data_info(index)
        return dict(images=[info['img_path']], label=self.class_names[int(info['gt_label'])])


def _find_names(name: str) -> Sequence[str]:
    from mmpretrain.datasets import categories

    if not hasattr(categories, name):
        known = sorted(key for key in vars(categories) if key.isupper())
        raise ValueError(f'ClassRecordDataset: class_names={name!r} is none of {known}')
    return getattr(categories, name)
