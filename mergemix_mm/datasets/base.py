"""Base of all record datasets: it loads images, runs the pipeline, and decides what happens to unusable records."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence, Sized
from typing import Any

import numpy as np
import torch
from mmengine.dataset import Compose
from mmengine.logging import print_log
from PIL import Image
from torch.utils.data import Dataset

from ..utils.images import MAX_PIXELS, MissingImageError, check_image_options, image_name, read_image
from ..utils.text import RecordError, quoted

# Warnings about skipped records that are written in full; a log of a thousand of them would hide all else.
NUM_SHOWN = 5
# The keys of a record that hold images: those of its conversation, and those of the rejected one of a preference pair.
IMAGE_LISTS = ('images', 'rejected_images')


class RecordDataset(Dataset, ABC):
    """Base of the datasets that yield records of a conversation.

    A record is a dict of ``messages`` (transformers' format), ``images`` (PIL images in RGB, in the order of the image
    parts), ``img_path`` (their names, without data) and ``source`` (``'file.json:12'``). Preference pairs also have
    ``rejected`` (messages) and, where the rejected answer has images of its own, ``rejected_images``. All other keys,
    such as ``gt_answer``, are kept for the pipeline. A subclass implements :meth:`open_records`, :meth:`load_record`
    and :meth:`source`, and :attr:`modalities` if some records have no image.

    Args:
        data_root (str): Where relative paths of files and prefixes begin. Defaults to ''.
        data_prefix (dict, optional): ``img_path``: where the paths of images begin. Defaults to None, which means
            ``data_root`` itself.
        pipeline (Sequence): Transforms of a record. Defaults to an empty tuple.
        on_error (str): ``'raise'`` stops at the first unusable record with its file and line. ``'skip'`` warns, counts
            the record in :attr:`num_skipped`, and returns the next usable record of the same modality in its place. The
            order is that of the file, which starts over at its end, so the replacement is always the same. Defaults to
            ``'raise'``.
        test_mode (bool): Whether the data is for evaluation; then no record is replaced. Defaults to False.
        metainfo (dict, optional): What evaluators get to know of the dataset. Defaults to None.
        background (str | Sequence[int]): The colour that transparent pixels of an image show. Defaults to ``'white'``.
        max_pixels (float, optional): Larger images are unusable; see :func:`read_image`. Defaults to 100 million.

    Raises:
        ValueError: If ``on_error`` or ``data_prefix`` is unknown, ``background`` or ``max_pixels`` is out of its range,
            ``on_error='skip'`` is set together with ``test_mode=True``, or there is no record.
        RecordError: If a record is unusable and ``on_error='raise'``, or if no record of its modality is usable.
    """

    def __init__(
        self,
        data_root: str = '',
        data_prefix: dict | None = None,
        pipeline: Sequence = (),
        on_error: str = 'raise',
        test_mode: bool = False,
        metainfo: dict | None = None,
        background: str | Sequence[int] = 'white',
        max_pixels: float | None = MAX_PIXELS,
    ) -> None:
        name = type(self).__name__
        try:
            check_image_options(background, max_pixels)
        except ValueError as error:
            raise ValueError(f'{name}: {error}.') from error
        self.background, self.max_pixels = background, max_pixels
        if on_error not in ('raise', 'skip'):
            raise ValueError(f"{name}: on_error={on_error!r} is unknown; use 'raise' or 'skip'.")
        if on_error == 'skip' and test_mode:
            raise ValueError(
                f"{name}: on_error='skip' would replace records in an evaluation (test_mode=True) and change its "
                "scores; use on_error='raise' and repair the file."
            )
        prefix = dict(data_prefix or {})
        image_prefix = prefix.pop('img_path', '')
        if prefix:
            raise ValueError(f"{name}: data_prefix has {sorted(prefix)}; the only prefix is 'img_path'.")
        self.data_root = data_root
        self.image_prefix = os.path.join(data_root, image_prefix)
        self.pipeline = Compose(list(pipeline))
        self.on_error = on_error
        self.test_mode = test_mode
        self.metainfo = dict(metainfo or {})
        self.records: Any = self.open_records()  # Its type is that of the subclass.
        if not len(self.records):
            file = getattr(self, 'ann_file', None)
            of = f' in {os.path.join(data_root, file)}' if isinstance(file, str) else ''
            raise ValueError(f'{name}: there is no record to read{of}.')
        # One mark per record, in memory that the worker processes of a data loader share: what one of them found
        # unusable, no other reads again, and the count is that of all.
        self._skipped = torch.zeros(len(self.records) if on_error == 'skip' else 0, dtype=torch.uint8).share_memory_()
        self._num_shown = 0

    @abstractmethod
    def open_records(self) -> Sized:
        """The value of ``self.records``, read at construction; its length is that of the dataset."""

    @abstractmethod
    def load_record(self, index: int) -> dict[str, Any]:
        """A record whose images are still paths, URLs or bytes.

        Raises:
            ValueError: If the record is unusable; the message does not name the source.
        """

    @abstractmethod
    def source(self, index: int) -> str:
        """File and line of a record."""

    @property
    def modalities(self) -> np.ndarray:
        """Whether each record has images, [N] bool, for :class:`ModalitySampler`; all True by default."""
        return np.ones(len(self), dtype=bool)

    @property
    def lengths(self) -> np.ndarray:
        """About how long the text of each record is, [N] int64 bytes, for ``group_by_length`` of the samplers.

        The index of the file knows it: no record is read, and no image. Only the order counts, so what all records have
        alike may be part of it (names of keys, ids, file names). Images are not counted: within a batch, they should
        have about equally many tokens. Images inside a JSON record (``data:`` URLs) would be counted as text.

        Raises:
            AttributeError: If the records of this dataset do not say it.
        """
        return self.records.lengths

    @property
    def num_skipped(self) -> int:
        """How many different records all worker processes of a data loader have found unusable so far."""
        return int(self._skipped.sum())

    def get_data_info(self, index: int) -> dict[str, Any]:
        """The record, images loaded, as the pipeline gets it."""
        # A range counts negative indices from the end, and raises IndexError beyond both.
        index = range(len(self))[index]
        try:
            record = self.load_record(index)
            keys = [key for key in IMAGE_LISTS if key in record]
            loaded = {key: [self._load_image(source) for source in record[key]] for key in keys}
            names = [image_name(source) for source in record['images']]
        except RecordError:  # It names the file already.
            raise
        except ValueError as error:
            raise RecordError(f'{self.source(index)}: {error}') from error
        except (AttributeError, IndexError, KeyError, RecursionError, TypeError) as error:
            # JSON of another shape (a list, a number, null) fails in as many ways as there are ways to use it.
            raise RecordError(
                f'{self.source(index)}: not in the layout of {type(self).__name__}: {quoted(error, 200)}'
            ) from error
        return {**record, **loaded, 'img_path': names, 'source': self.source(index)}

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Any:
        if self.on_error == 'raise':
            return self._prepare(index)
        for candidate in self._candidates(range(len(self))[index]):
            if self._skipped[candidate]:
                continue
            try:
                return self._prepare(candidate)
            except RecordError as error:
                self._skipped[candidate] = 1
                self._warn(error)
        kind = 'with images' if self.modalities[index] else 'of text only'
        raise RecordError(f'{type(self).__name__}: none of the records {kind} is usable; {self.num_skipped} failed.')

    def _prepare(self, index: int) -> Any:
        sample = self.pipeline(self.get_data_info(index))
        # MMEngine's transforms return None to drop a sample; without a replacement, batches would differ in size.
        if sample is None:
            raise RecordError(f'{self.source(index)}: a transform of the pipeline returned None')
        return sample

    def _candidates(self, index: int) -> Iterator[int]:
        """The record itself, then the others of its modality, beginning with those after it.

        Another modality would break the batches of :class:`ModalitySampler`.
        """
        yield index
        same = np.flatnonzero(self.modalities == self.modalities[index])
        yield from np.roll(same, -int(np.searchsorted(same, index, side='right'))).tolist()

    def _warn(self, error: RecordError) -> None:
        count = self.num_skipped
        if self._num_shown < NUM_SHOWN:
            self._num_shown += 1
            more = ' Further ones are only counted.' if self._num_shown == NUM_SHOWN else ''
            text = f'skipped a record ({count} so far): {error}{more}'
        elif str(count).strip('0') == '1':  # 10, 100, 1000, ...
            text = f'{count} of {len(self)} records were skipped so far.'
        else:
            return
        print_log(f'{type(self).__name__}: {text}', logger='current', level=30)

    def _load_image(self, source) -> Image.Image:
        """Read an image; its path is relative to ``image_prefix``. See :func:`read_image` for what is read."""
        try:
            return read_image(source, root=self.image_prefix, background=self.background, max_pixels=self.max_pixels)
        except MissingImageError as error:
            raise ValueError(f'{error}; look at data_root and data_prefix=dict(img_path=...)') from error
