"""A tensor in a file: its kind is known without reading it, and its elements are read in pieces."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

# Elements at once: few megabytes, whatever the tensor's size.
PIECE = 1 << 20


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor stands in a file.

    Args:
        path (Path): The file.
        start (int): The byte in the file where its first element begins.
        like (Tensor): On the meta device: shape, dtype and strides of the elements behind `start`.
    """

    path: Path
    start: int
    like: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.like.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.like.dtype

    @property
    def nbytes(self) -> int:
        return self.like.nbytes

    def pieces(self) -> Iterator[Tensor]:
        """The elements in the order of the tensor, flat, a few megabytes at a time.

        Nothing is mapped: pages of a mapped file would count as memory of the process. A tensor that does not lie in
        its own order (``channels_last``) is read whole.

        Raises:
            ValueError: If the file ends too early.
        """
        if not self.like.is_contiguous():
            yield from self.read().contiguous().view(-1).split(PIECE)
            return
        with self.path.open('rb') as file:
            file.seek(self.start)
            for start in range(0, self.like.numel(), PIECE):
                yield self._read(file, min(PIECE, self.like.numel() - start))

    def read(self) -> Tensor:
        """The whole tensor.

        Raises:
            ValueError: If the file ends too early.
        """
        last = sum((size - 1) * stride for size, stride in zip(self.shape, self.like.stride()))
        with self.path.open('rb') as file:
            file.seek(self.start)
            elements = self._read(file, last + 1 if self.like.numel() else 0)
        return elements.as_strided(self.shape, self.like.stride())

    def write(self, pieces: Iterable[Tensor], progress: Callable[[int], object]) -> None:
        """Put the elements of a contiguous tensor into the file, which is there already.

        Args:
            pieces (Iterable[Tensor]): As :meth:`pieces` gives them.
            progress (Callable): Called with the number of bytes of each piece.
        """
        with self.path.open('r+b') as file:
            file.seek(self.start)
            for piece in pieces:
                file.write(piece.view(torch.uint8).numpy())
                progress(piece.nbytes)

    def _read(self, file: BinaryIO, count: int) -> Tensor:
        elements = torch.empty(count, dtype=self.dtype)
        if file.readinto(elements.view(torch.uint8).numpy()) != elements.nbytes:
            raise ValueError(f'{self.path} ends within a tensor: it is damaged, or was not copied whole')
        return elements
