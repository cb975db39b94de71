"""Mixers whose masks are drawn without looking at the images: SmoothMix, GridMix and FMix."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from mmpretrain.registry import BATCH_AUGMENTS
from torch import Tensor

from ...functional import cells_to_pixels, fourier_mask, grid_mask, hole_mask, random_centers, spot_mask
from ...utils.numbers import check_number, is_number
from ..vision_encoders import PatchScores
from .mask_mixer import MaskMixer

# How much of the image the region with holes covers, and its height divided by its width.
REGION_AREA = (0.5, 1.0)
REGION_ASPECT = (0.5, 2.0)


class DrawnMaskMixer(MaskMixer):
    """A :class:`MaskMixer` whose masks are drawn on the pixels, without looking at the images.

    One mask serves the batch; with ``per_image=True`` each image gets its own. A subclass implements
    :meth:`draw_pixels`.
    """

    def draw_mask(
        self, images: Tensor, partner: Tensor, scores: PatchScores | None, generator: torch.Generator | None
    ) -> tuple[Tensor, tuple[int, int]]:
        """One mask for the batch, or one for each image, on the grid of the pixels."""
        height, width = images.shape[-2:]
        mask = self.draw_pixels(len(images) if self.per_image else 1, (height, width), images.device, generator)
        return mask.flatten(1).expand(len(images), -1), (height, width)

    @abstractmethod
    def draw_pixels(
        self, count: int, size: tuple[int, int], device: torch.device, generator: torch.Generator | None
    ) -> Tensor:
        """Draw masks, each with a lambda of its own.

        Args:
            count (int): N, how many to draw.
            size (tuple[int, int]): H and W of the images.
            device (torch.device): Device of the masks.
            generator (torch.Generator, optional): Source of randomness. Defaults to torch's global one.

        Returns:
            Tensor: [N, H, W], bool or the own share in [0, 1].
        """


@BATCH_AUGMENTS.register_module()
class SmoothMix(DrawnMaskMixer):
    """Blend a soft round spot of the partner into each image (SmoothMix, CVPR workshops 2020).

    At distance d from a uniform centre, an image keeps the share 1 - exp(-d^2 / (2 sigma^2)); sigma is drawn evenly
    from a range. The share of the image's own label is the mean of this mask. There is no lambda to draw.

    Args:
        sigma (Sequence[float]): Smallest and largest width of the spot as a share of the shorter side, > 0. Defaults to
            (0.25, 0.5).
        **kwargs: The others of :class:`MaskMixer` but ``alpha``; ``per_image=True`` draws a spot for each image.

    Raises:
        ValueError: If an argument is out of its range, or there is an ``alpha``.
    """

    def __init__(self, sigma: Sequence[float] = (0.25, 0.5), **kwargs) -> None:
        if 'alpha' in kwargs:
            raise ValueError('SmoothMix: it draws the width of the spot and no lambda; remove alpha, or set sigma')
        super().__init__(**kwargs)
        self.sigma = _check_range('SmoothMix: sigma', sigma, above=0)

    def draw_pixels(
        self, count: int, size: tuple[int, int], device: torch.device, generator: torch.Generator | None
    ) -> Tensor:
        """Soft spots, [N, H, W] float32."""
        center = random_centers(count, size, generator, device)
        return spot_mask(center, min(size) * _uniform(self.sigma, count, generator), size)


@BATCH_AUGMENTS.register_module()
class GridMix(DrawnMaskMixer):
    """Mix the cells of a grid (GridMix, Pattern Recognition 109, 2021), or regular holes as a well-known port does.

    The paper also trains the labels of the single cells, with a loss of their own; here only the image's label is
    trained. The label is the area.

    Args:
        alpha (float): Parameter of lambda ~ Beta(alpha, alpha), > 0 and finite. Defaults to 1.0.
        mask (str): ``'cells'``, the paper's: each cell is the image's own with probability lambda. ``'holes'``: square
            holes of area 1 - lambda of their cell show the partner, in a region that is 0.5 to 1 of the image's area
            and 0.5 to 2 times as high as wide (IlyaDobrynin/GridMixup, which OpenMixup took over). Defaults to
            ``'cells'``.
        num_cells (int | Sequence[int], optional): Cells along a side, or for ``'holes'`` along the width of the region;
            two numbers are drawn from, both included. Defaults to None: 7, or 2 to 6 holes.
        **kwargs: The others of :class:`MaskMixer`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self, alpha: float = 1.0, mask: str = 'cells', num_cells: int | Sequence[int] | None = None, **kwargs
    ) -> None:
        super().__init__(alpha=alpha, **kwargs)
        if mask not in ('cells', 'holes'):
            raise ValueError(f"GridMix: mask={mask!r} must be 'cells' or 'holes'")
        if num_cells is None:
            num_cells = 7 if mask == 'cells' else (2, 6)
        numbers = (num_cells, num_cells) if isinstance(num_cells, int) else num_cells
        self.mask = mask
        self.num_cells = _check_range('GridMix: num_cells', numbers, least=1, integer=True)

    def draw_pixels(
        self, count: int, size: tuple[int, int], device: torch.device, generator: torch.Generator | None
    ) -> Tensor:
        """Cells or holes, [N, H, W] bool."""
        share = self.draw_lambda(count, generator)
        low, high = self.num_cells
        numbers = _uniform((low, high + 1), count, generator).floor().long().clamp(max=int(high))
        if self.mask == 'cells':
            found = [grid_mask(one[None], n, generator, device) for one, n in zip(share, numbers.tolist(), strict=True)]
            return torch.cat([cells_to_pixels(cells, size) for cells in found])
        sides = torch.tensor(size)
        area, aspect = (_uniform(bounds, count, generator) for bounds in (REGION_AREA, REGION_ASPECT))
        width = (size[0] * size[1] * area / aspect).sqrt()
        region = torch.stack([width * aspect, width], dim=1).floor().minimum(sides)
        place = torch.stack([_uniform((0, 1), count, generator) for _ in size], dim=1)
        corner = ((sides - region + 1) * place).floor().minimum(sides - region)
        return hole_mask(share, numbers, corner.long(), region.long(), size, device)


@BATCH_AUGMENTS.register_module()
class FMix(DrawnMaskMixer):
    """Mix by thresholded Fourier noise: smooth shapes of any form (FMix, https://arxiv.org/abs/2002.12047).

    The share lambda of the pixels where the noise is highest is the image's own. The label is the area.

    Args:
        alpha (float): Parameter of lambda ~ Beta(alpha, alpha), > 0 and finite. Defaults to 1.0.
        decay (float): The amplitude of the noise falls as 1 / frequency^decay; a larger number makes larger shapes,
            >= 0. Defaults to 3.0.
        **kwargs: The others of :class:`MaskMixer`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(self, alpha: float = 1.0, decay: float = 3.0, **kwargs) -> None:
        super().__init__(alpha=alpha, **kwargs)
        check_number('FMix: decay', decay, '>= 0 and finite', least=0)
        self.decay = decay

    def draw_pixels(
        self, count: int, size: tuple[int, int], device: torch.device, generator: torch.Generator | None
    ) -> Tensor:
        """Shapes of noise, [N, H, W] bool."""
        return fourier_mask(self.draw_lambda(count, generator), size, self.decay, generator, device)


def _uniform(bounds: tuple[float, float], count: int, generator: torch.Generator | None) -> Tensor:
    """Numbers [count] float32 on the CPU, drawn evenly from a range."""
    drawn = torch.rand(count, generator=generator, device=generator.device if generator is not None else None)
    return bounds[0] + (bounds[1] - bounds[0]) * drawn.cpu()


def _check_range(where: str, bounds: Sequence[float], **limits) -> tuple[float, float]:
    """Two numbers, the smaller one first."""
    words = 'whole numbers >= 1' if limits.get('integer') else 'numbers > 0'
    pair = isinstance(bounds, Sequence) and len(bounds) == 2
    if not pair or not all(is_number(bound, **limits) for bound in bounds) or bounds[0] > bounds[1]:
        raise ValueError(f'{where}={bounds!r} must be two {words}, the smaller one first')
    return bounds[0], bounds[1]
