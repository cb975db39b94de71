"""CIFAR-100-C: the test images of CIFAR-100 with common corruptions (https://arxiv.org/abs/1903.12261)."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from mmengine.registry import DATASETS
from mmpretrain.datasets import BaseDataset
from mmpretrain.datasets.categories import CIFAR100_CATEGORIES

SEVERITIES = (1, 2, 3, 4, 5)
# The corruptions of the benchmark, and those that its authors left for tuning.
CORRUPTIONS = (
    *('gaussian_noise', 'shot_noise', 'impulse_noise'),
    *('defocus_blur', 'glass_blur', 'motion_blur', 'zoom_blur'),
    *('snow', 'frost', 'fog', 'brightness'),
    *('contrast', 'elastic_transform', 'pixelate', 'jpeg_compression'),
)
EXTRA_CORRUPTIONS = ('speckle_noise', 'gaussian_blur', 'spatter', 'saturate')
URL = 'https://zenodo.org/record/3555552'


@DATASETS.register_module()
class CIFAR100C(BaseDataset):
    """The corrupted test images of CIFAR-100, at one or several corruptions and severities.

    The folder holds one file per corruption, such as ``fog.npy``: uint8 RGB images [N, H, W, 3], a fifth of them for
    each severity from 1 to 5 (in the benchmark 5 x 10,000), and ``labels.npy`` [N]. The archive is at Zenodo
    (https://zenodo.org/record/3555552). Images stay in the files until they are used.

    A sample holds ``img``, ``gt_label``, ``img_shape``, ``ori_shape``, ``corruption`` (str) and ``severity`` (int).
    :class:`CorruptionError` needs the corruption: ``PackInputs(meta_keys=('corruption', 'severity'))`` hands it on.

    Args:
        data_root (str): The folder. Defaults to ``'data/CIFAR-100-C'``.
        corruptions (Sequence[str], optional): Names of files without ``.npy``. Defaults to None: the 15 corruptions of
            the benchmark. ``speckle_noise``, ``gaussian_blur``, ``spatter`` and ``saturate`` are there for tuning.
        severities (Sequence[int]): From 1 to 5. Defaults to all five.
        pipeline (Sequence): Transforms, which get an image and not a path. Defaults to an empty tuple.
        **kwargs: Further arguments of MMPretrain's ``BaseDataset``, such as ``indices``. ``test_mode`` defaults to
            True.

    Raises:
        ValueError: If a corruption or a severity is unknown, or a file has another layout.
        FileNotFoundError: If a file is missing.
    """

    METAINFO = {'classes': CIFAR100_CATEGORIES}

    def __init__(
        self,
        data_root: str = 'data/CIFAR-100-C',
        corruptions: Sequence[str] | None = None,
        severities: Sequence[int] = SEVERITIES,
        pipeline: Sequence = (),
        **kwargs,
    ) -> None:
        self.corruptions = CORRUPTIONS if corruptions is None else tuple(corruptions)
        self.severities = tuple(severities)
        known = {*CORRUPTIONS, *EXTRA_CORRUPTIONS}
        if isinstance(corruptions, str) or not self.corruptions or not set(self.corruptions) <= known:
            raise ValueError(f'CIFAR100C: corruptions={corruptions!r} must be a list with some of {sorted(known)}')
        if not self.severities or not set(self.severities) <= set(SEVERITIES):
            raise ValueError(f'CIFAR100C: severities={severities!r} must be a list with some of {list(SEVERITIES)}')
        kwargs.setdefault('test_mode', True)
        super().__init__(ann_file='', data_root=data_root, pipeline=pipeline, **kwargs)

    def load_data_list(self) -> list[dict]:
        """List the images: corruption by corruption, severity by severity, in the order of the files."""
        labels = _open(self._path('labels'))
        if labels.ndim != 1 or len(labels) % len(SEVERITIES):
            raise ValueError(
                f'CIFAR100C: {self._path("labels")} has the shape {list(labels.shape)}; it must be one label for each '
                'image of the five severities'
            )
        per_severity = len(labels) // len(SEVERITIES)
        data_list = []
        for corruption in self.corruptions:
            images = _open(self._path(corruption))
            if images.dtype != np.uint8 or images.ndim != 4 or images.shape[::3] != (len(labels), 3):
                raise ValueError(
                    f'CIFAR100C: {self._path(corruption)} holds {images.dtype} {list(images.shape)}, where labels.npy '
                    f'asks for uint8 [{len(labels)}, height, width, 3]'
                )
            for severity in self.severities:
                begin = (severity - 1) * per_severity
                data_list += [
                    dict(corruption=corruption, severity=severity, row=row, gt_label=int(labels[row]))
                    for row in range(begin, begin + per_severity)
                ]
        return data_list

    def get_data_info(self, idx: int) -> dict:
        """A sample as the pipeline gets it, with its image."""
        info = super().get_data_info(idx)
        image = np.array(_open(self._path(info['corruption']))[info.pop('row')])
        return dict(info, img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2])

    def _path(self, name: str) -> Path:
        path = Path(self.data_root or '.').expanduser() / f'{name}.npy'
        if not path.is_file():
            raise FileNotFoundError(
                f'CIFAR100C: there is no file {path}; unpack CIFAR-100-C.tar of {URL} and set data_root to its folder'
            )
        return path


# Not an attribute of the dataset: worker processes that do not fork would get copies of the images.
@cache
def _open(path: Path) -> np.ndarray:
    """An array whose pages are read from the file when they are used."""
    try:
        return np.load(path, mmap_mode='r', allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f'CIFAR100C: {path} is not a NumPy file that can be read: {error}') from error
