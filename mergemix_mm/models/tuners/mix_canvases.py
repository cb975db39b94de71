"""Mixing the images of a VLM batch, which differ in size and of which a sample may own several or none."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...functional import resize
from ..batch_augments import MergeMix, MixResult, SwapImages, mix_batch
from ..vision_encoders import build_vision_encoder


@dataclass
class CanvasMix:
    """Mixed canvases. Shapes: N images of the whole batch, L' patches of the scoring encoder.

    Args:
        images (list[Tensor]): N of [3, H, W]; an image that found no partner is the clean one.
        clean (list[Tensor]): N of [3, H, W], before mixing.
        partner (Tensor): [N] int64, the image each one was mixed with.
        ratio (Tensor): [N] float32, the share of the image that is its own in [0, 1]; 1 if it is not mixed.
        owner (Tensor): [N] int64, the sample of each image.
        mixed (Tensor): [N] bool, whether the image was mixed, with one of another sample where a partner is needed.
        mask (Tensor, optional): [N, L'] bool, True where the image keeps its own patch.
        saliency (Tensor, optional): [N, L'] float32.
        grid (tuple[int, int], optional): rows and columns of the patches.
    """

    images: list[Tensor]
    clean: list[Tensor]
    partner: Tensor
    ratio: Tensor
    owner: Tensor
    mixed: Tensor
    mask: Tensor | None = None
    saliency: Tensor | None = None
    grid: tuple[int, int] | None = None


@torch.compiler.disable  # Draws from Python's generators; what it does depends on the sizes and the partners.
@torch.no_grad()
def mix_canvases(
    mixer: Callable, canvases: list[Tensor], owner: Tensor, encoder: nn.Module | None = None
) -> CanvasMix | None:
    """Mix each image with one of another sample, resized to it where they differ.

    `MergeMix` and its relatives score all images in one batch, at the image size of the encoder. Batch augments of
    MMPretrain draw their partners themselves; an image whose partner turns out to be itself or one of its own sample
    stays clean.

    Args:
        mixer (Callable): a `MergeMix`, or any batch augment that `mix_batch` takes.
        canvases (list[Tensor]): N images [3, H, W], normalised. Not written to.
        owner (Tensor): [N] int64, the sample of each image.
        encoder (nn.Module, optional): the model that scores, for `MergeMix` without one of its own.

    Returns:
        CanvasMix | None: None if no image can be mixed, as all belong to one sample.
    """
    if not canvases or (getattr(mixer, 'needs_partner', True) and bool((owner == owner[0]).all())):
        return None
    if isinstance(mixer, SwapImages):
        return _swap(canvases, owner)
    if isinstance(mixer, MergeMix):
        return _mix_by_saliency(mixer, canvases, owner, encoder)
    return _mix_by_augment(mixer, canvases, owner)


def _mix_by_saliency(mixer: MergeMix, canvases: list[Tensor], owner: Tensor, encoder: nn.Module | None) -> CanvasMix:
    scorer = mixer.encoder or encoder
    size = build_vision_encoder(scorer).image_size if scorer is not None else canvases[0].shape[-2:]
    partner = _other_samples(owner) if mixer.needs_partner else None
    result = mixer.mix(_stack(canvases, size), encoder, partner=partner)
    same_size = all(canvas.shape[-2:] == size for canvas in canvases)
    images = list(result.images) if same_size else _mix_each(mixer, canvases, result)
    mixed = torch.ones_like(owner, dtype=torch.bool)
    return CanvasMix(
        images, canvases, result.partner, result.ratio, owner, mixed, result.mask, result.saliency, result.grid
    )


def _mix_each(mixer: MergeMix, canvases: list[Tensor], result: MixResult) -> list[Tensor]:
    """Apply the masks of a mix at one size to canvases of any size."""
    masks = result.mask.unflatten(1, result.grid)[:, None].float()
    images = []
    for canvas, mask, index in zip(canvases, masks, result.partner.tolist(), strict=True):
        size = canvas.shape[-2:]
        fill = mixer.fill(canvas[None], _stack([canvases[index]], size))[0]
        images.append(torch.where(F.interpolate(mask[None], size)[0].bool(), canvas, fill))
    return images


def _swap(canvases: list[Tensor], owner: Tensor) -> CanvasMix:
    partner = _other_samples(owner)
    images = [_resize(canvases[j], canvas.shape[-2:]) for canvas, j in zip(canvases, partner.tolist(), strict=True)]
    return CanvasMix(images, canvases, partner, torch.zeros_like(owner).float(), owner, torch.ones_like(owner).bool())


def _mix_by_augment(augment: Callable, canvases: list[Tensor], owner: Tensor) -> CanvasMix:
    """One call per image size, with all images resized to it, of which those of this size are kept."""
    itself = torch.arange(len(owner), device=owner.device)
    images, partner, ratio = list(canvases), itself.clone(), torch.ones(len(owner), device=owner.device)
    for size in dict.fromkeys(canvas.shape[-2:] for canvas in canvases):
        result = mix_batch(augment, _stack(canvases, size))
        for i, canvas in enumerate(canvases):
            if canvas.shape[-2:] == size and owner[result.partner[i]] != owner[i]:
                images[i], partner[i], ratio[i] = result.images[i], result.partner[i], result.ratio[i]
    return CanvasMix(images, canvases, partner, ratio, owner, partner != itself)


def _other_samples(owner: Tensor) -> Tensor:
    """Draw for each image one of another sample: [N] -> [N] int64. At least two samples own images."""
    other = (owner[:, None] != owner[None, :]).float()
    return torch.multinomial(other, 1).squeeze(1)


def _stack(canvases: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Images [N, 3, *size], those of another size resized."""
    return torch.stack([_resize(canvas, size) for canvas in canvases])


def _resize(canvas: Tensor, size: tuple[int, int]) -> Tensor:
    return resize(canvas[None], size)[0]
