"""Scikit-learn's 1,797 handwritten digits as a dataset that needs no download, plain or on a cluttered background."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.registry import DATASETS
from mmpretrain.datasets.base_dataset import BaseDataset

from ..utils.numbers import check_number, is_number

IMAGE_SIZE = 32
CLUTTERED_DIGIT_SIZE = IMAGE_SIZE // 2
FRAGMENT_SIZE = 8
NUM_FRAGMENTS = 6
VISIBLE_INK = 0.25
CLUTTER_SEED = 20251023


@DATASETS.register_module()
class DigitsDataset(BaseDataset):
    """Real handwritten digits (8x8, 10 classes) upsampled to 32 px, stratified into a train and a test split.

    The digits are the test set of the UCI ML hand-written digits (https://doi.org/10.24432/C50P49), which scikit-learn
    ships. A sample holds ``img`` (uint8, 32x32x3, white ink on black), ``gt_label`` (int), ``gt_mask`` (bool, 32x32,
    True where the digit's ink can be seen), ``img_shape``, ``ori_shape`` and ``source_index`` (0..1796, the digit's
    place in scikit-learn's order), so a pipeline starts with the augmentations and ends with ``PackInputs``; nothing is
    read from a file. ``PackInputs(algorithm_keys=('gt_mask',))`` hands the mask on.

    With ``clutter=True`` each digit covers a quarter of the image, in a random place on a background of soft colours
    and fragments of other digits (after the "cluttered translated MNIST" of https://arxiv.org/abs/1406.6247). Image
    ``source_index`` is the same in every split and for every ``seed``; the fragments come from all 1,797 digits,
    independently of the class.

    Args:
        split (str): ``'train'`` or ``'test'``. Defaults to ``'train'``.
        test_ratio (float): Share of each class that is held out for the test split, in (0, 1). Ignored with
            ``train_per_class``. Defaults to 0.2.
        train_per_class (int, optional): The number of digits per class in the train split; the test split holds
            all others. From 1 to 173, as the smallest class has 174 digits. Defaults to None, which means that
            ``test_ratio`` decides.
        clutter (bool): Whether to paste the digits on a cluttered background. Defaults to False.
        seed (int): Chooses which digits belong to the train split; NumPy's global state is not used.
            Defaults to 0.
        pipeline (Sequence): Transforms, as everywhere in MMPretrain. Defaults to an empty tuple.
        **kwargs: Further arguments of MMPretrain's ``BaseDataset``, such as ``indices``, ``metainfo`` or
            ``lazy_init``. ``test_mode`` defaults to True on the test split.

    Raises:
        ValueError: If ``split``, ``test_ratio``, ``train_per_class`` or ``seed`` is outside its range.
        ImportError: If scikit-learn is not installed (when the data is loaded).

    Examples:
        >>> dataset = DigitsDataset(split='test', clutter=True)
        >>> dataset[0]['img'].shape, dataset[0]['gt_mask'].shape
        ((32, 32, 3), (32, 32))
    """

    METAINFO = {'classes': tuple('0123456789')}

    def __init__(
        self,
        split: str = 'train',
        test_ratio: float = 0.2,
        train_per_class: int | None = None,
        clutter: bool = False,
        seed: int = 0,
        pipeline: Sequence = (),
        **kwargs,
    ) -> None:
        if split not in ('train', 'test'):
            raise ValueError(f"DigitsDataset: split={split!r} is unknown; use split='train' or split='test'.")
        if not is_number(test_ratio, above=0, below=1):
            raise ValueError(
                f'DigitsDataset: test_ratio={test_ratio!r} must lie between 0 and 1 (both excluded): it is the share '
                'of each class that is held out. Use 0.2 for an 80/20 split.'
            )
        if train_per_class is not None and not is_number(train_per_class, least=1, integer=True):
            raise ValueError(
                f'DigitsDataset: train_per_class={train_per_class!r} must be an integer of at least 1, '
                'or None to split by test_ratio.'
            )
        check_number('DigitsDataset: seed', seed, 'an integer of at least 0.', least=0, integer=True)
        self.split = split
        self.test_ratio = test_ratio
        self.train_per_class = train_per_class
        self.clutter = clutter
        self.seed = seed
        # Outside of `test_mode`, BaseDataset replaces samples that the pipeline drops.
        kwargs.setdefault('test_mode', split == 'test')
        super().__init__(ann_file='', pipeline=pipeline, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Draw all images of the split.

        Returns:
            list[dict]: One dictionary per image, in scikit-learn's order; see the class for its keys.
        """
        ink, labels = _load_digits()
        in_train = _choose_train(labels, self.test_ratio, self.train_per_class, self.seed)
        chosen = np.flatnonzero(in_train if self.split == 'train' else ~in_train)
        if self.clutter:
            # All digits are drawn before the split is taken, so an image does not depend on the split.
            images, masks = _draw_cluttered(ink)
        else:
            images, masks = _draw_plain(ink)
        shape = (IMAGE_SIZE, IMAGE_SIZE)
        data_list = []
        for index in chosen.tolist():
            data = dict(img=images[index], gt_label=int(labels[index]), gt_mask=masks[index], source_index=index)
            data_list.append(data | dict(img_shape=shape, ori_shape=shape))
        return data_list

    def extra_repr(self) -> list[str]:
        """The lines that ``repr`` shows besides the counts."""
        per_class = '' if self.train_per_class is None else f', {self.train_per_class} training digits per class'
        return [f'Split: \t{self.split} (seed {self.seed}{per_class})', f'Clutter: \t{self.clutter}']


def _load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Scikit-learn's digits: ink [N, 8, 8] float32 in [0, 1] and labels [N] int64."""
    spec = find_spec('sklearn')
    if spec is None or spec.origin is None:
        raise ImportError(
            "DigitsDataset: scikit-learn, which ships the digits, is not installed; run 'pip install scikit-learn'."
        )
    file = Path(spec.origin).parent / 'datasets' / 'data' / 'digits.csv.gz'
    if file.is_file():  # Importing scikit-learn would take much longer than reading its file.
        rows = np.loadtxt(file, delimiter=',')
    else:
        from sklearn.datasets import load_digits

        rows = np.column_stack(load_digits(return_X_y=True))
    return (rows[:, :-1] / 16).astype(np.float32).reshape(-1, 8, 8), rows[:, -1].astype(np.int64)


def _choose_train(labels: np.ndarray, test_ratio: float, train_per_class: int | None, seed: int) -> np.ndarray:
    """Stratified choice of the train split: [N] bool."""
    rng = np.random.default_rng(seed)
    in_train = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        if train_per_class is None:
            # At least one digit of every class on either side, however extreme the ratio.
            num_train = min(max(len(members) - round(test_ratio * len(members)), 1), len(members) - 1)
        else:
            num_train = train_per_class
            smallest = np.bincount(labels).min()
            if num_train >= smallest:
                raise ValueError(
                    f'DigitsDataset: train_per_class={num_train} leaves nothing to test on: the smallest class has '
                    f'{smallest} digits. Use at most {smallest - 1}, or None to split by test_ratio.'
                )
        in_train[members[:num_train]] = True
    return in_train


def _resize(ink: np.ndarray, size: int) -> np.ndarray:
    """Bicubic resize of [N, h, w] to [N, size, size], kept in [0, 1]."""
    resized = F.interpolate(torch.from_numpy(ink)[:, None], size=(size, size), mode='bicubic', align_corners=False)
    return resized[:, 0].clamp(0, 1).numpy()


def _to_uint8(images: np.ndarray) -> np.ndarray:
    return np.rint(images.clip(0, 1) * 255).astype(np.uint8)


def _draw_plain(ink: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """White ink on black: [N, 8, 8] -> images [N, 32, 32, 3] uint8, masks [N, 32, 32] bool."""
    ink = _resize(ink, IMAGE_SIZE)
    return np.repeat(_to_uint8(ink)[..., None], 3, axis=-1), ink > VISIBLE_INK


def _draw_cluttered(ink: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Digits at a quarter of the area on clutter: [N, 8, 8] -> images [N, 32, 32, 3] uint8, masks [N, 32, 32] bool."""
    rng = np.random.default_rng(CLUTTER_SEED)
    num = len(ink)
    ink = _resize(ink, CLUTTERED_DIGIT_SIZE)

    # A margin around the canvas lets fragments be cut off by the border of the image.
    margin = FRAGMENT_SIZE // 2
    side = IMAGE_SIZE + 2 * margin
    tones = rng.uniform(0.0, 0.3, (num * 3, 4, 4)).astype(np.float32)
    canvas = _resize(tones, side).reshape(num, 3, side, side).transpose(0, 2, 3, 1).copy()
    for _ in range(NUM_FRAGMENTS):
        source = rng.integers(num, size=num)
        cut = rng.integers(0, CLUTTERED_DIGIT_SIZE - FRAGMENT_SIZE + 1, (2, num))
        place = rng.integers(0, side - FRAGMENT_SIZE + 1, (2, num))
        colour = rng.uniform(0.2, 0.6, (num, 3)).astype(np.float32)
        _paste(canvas, ink[_window(source, cut, FRAGMENT_SIZE)], place, colour)
    canvas = canvas[:, margin:-margin, margin:-margin]

    place = rng.integers(0, IMAGE_SIZE - CLUTTERED_DIGIT_SIZE + 1, (2, num))
    colour = rng.uniform(0.8, 1.0, (num, 3)).astype(np.float32)
    _paste(canvas, ink, place, colour)
    masks = np.zeros((num, IMAGE_SIZE, IMAGE_SIZE), dtype=bool)
    masks[_window(np.arange(num), place, CLUTTERED_DIGIT_SIZE)] = ink > VISIBLE_INK
    return _to_uint8(canvas), masks


def _window(index: np.ndarray, corner: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Index of one size x size window per image: image ``index`` [N], top and left ``corner`` [2, N]."""
    steps = np.arange(size)
    rows = corner[0][:, None, None] + steps[None, :, None]
    columns = corner[1][:, None, None] + steps[None, None, :]
    return index[:, None, None], rows, columns


def _paste(canvas: np.ndarray, ink: np.ndarray, corner: np.ndarray, colour: np.ndarray) -> None:
    """Blend ink [N, s, s] of one colour [N, 3] per image into canvas [N, H, W, 3], in place."""
    window = _window(np.arange(len(canvas)), corner, ink.shape[-1])
    cover = ink[..., None]
    canvas[window] = canvas[window] * (1 - cover) + colour[:, None, None] * cover
