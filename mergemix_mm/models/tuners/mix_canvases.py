"""Mixing the images of a VLM batch, which differ in size and of which a sample may own several or none."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...functional import resize
from ..batch_augments import Mixer, MixResult, as_mixer


@dataclass
class CanvasMix:
    """Mixed canvases. Shapes: N images of the whole batch, L' patches of the scoring encoder.

    Args:
        images (list[Tensor]): N of [3, H, W]; an image that found no partner is the clean one.
        clean (list[Tensor]): N of [3, H, W], before mixing.
        partner (Tensor): [N] int64, the image each one was mixed with.
        ratio (Tensor): [N] float32, the share of the image that is its own in [0, 1]; 1 if it is not mixed.
        owner (Tensor): [N] int64, the sample of each image.
        mixed (Tensor): [N] bool, whether the image was mixed, with one of another sample if the mixer needs a partner.
        mask (Tensor, optional): [N, L'] bool, True where the image keeps its own patch.
        saliency (Tensor, optional): [N, L'] float32.
        grid (tuple[int, int], optional): Rows and columns of the patches.
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

    A mixer that scores patches (`MergeMix`) scores all images in one batch, at the image size of the encoder. Batch
    augments of MMPretrain draw their partners themselves; an image whose partner turns out to be itself or one of its
    own sample stays clean.

    Args:
        mixer (Callable): A `Mixer`, or any batch augment that `mix_batch` takes.
        canvases (list[Tensor]): N images [3, H, W], normalised. Not written to.
        owner (Tensor): [N] int64, the sample of each image.
        encoder (nn.Module, optional): The model that scores, for a mixer that needs one. Defaults to None.

    Returns:
        CanvasMix | None: None if no image can be mixed, because all belong to one sample.
    """
    mixer = as_mixer(mixer)
    if not canvases or (mixer.needs_partner and bool((owner == owner[0]).all())):
        return None
    partner = _other_samples(owner) if mixer.needs_partner and mixer.takes_partner else None
    size = mixer.scoring_size(encoder)
    if size is None:
        return _mix_at_own_sizes(mixer, canvases, owner, encoder, partner)
    result = mixer.mix(_stack(canvases, size), encoder, partner=partner)
    same_size = all(canvas.shape[-2:] == size for canvas in canvases)
    images = list(result.images) if same_size else _apply_masks(mixer, canvases, result)
    mixed = torch.ones_like(owner, dtype=torch.bool)
    return CanvasMix(
        images, canvases, result.partner, result.ratio, owner, mixed, result.mask, result.saliency, result.grid
    )


def _apply_masks(mixer: Mixer, canvases: list[Tensor], result: MixResult) -> list[Tensor]:
    """Apply the masks of a mix at one size to canvases of any size."""
    assert result.mask is not None and result.grid is not None  # What a mixer with a scoring size returns.
    masks = result.mask.unflatten(1, result.grid)[:, None].float()
    images = []
    for canvas, mask, index in zip(canvases, masks, result.partner.tolist(), strict=True):
        size = canvas.shape[-2:]
        fill = mixer.fill(canvas[None], _stack([canvases[index]], size))[0]
        # Nearest, not `resize`: a pixel belongs to one patch. The sides need not be multiples of the patch grid here.
        images.append(torch.where(F.interpolate(mask[None], size)[0].bool(), canvas, fill))
    return images


def _mix_at_own_sizes(
    mixer: Mixer, canvases: list[Tensor], owner: Tensor, encoder: nn.Module | None, partner: Tensor | None
) -> CanvasMix:
    """One call per image size: the images of this size are kept of a batch that is resized to it."""
    images, ratio = list(canvases), torch.ones(len(owner), device=owner.device)
    found, mixed = torch.arange(len(owner), device=owner.device), torch.zeros_like(owner, dtype=torch.bool)
    for size in dict.fromkeys(canvas.shape[-2:] for canvas in canvases):
        members = [i for i, canvas in enumerate(canvases) if canvas.shape[-2:] == size]
        # Partners that are known leave the other images out; an augment that draws them itself needs all images.
        batch = range(len(canvases)) if partner is None else sorted({*members, *partner[members].tolist()})
        place = {i: k for k, i in enumerate(batch)}
        within = None
        if partner is not None:
            within = owner.new_tensor([place.get(j, place[i]) for i, j in zip(batch, partner[list(batch)].tolist())])
        result = mixer.mix(_stack([canvases[i] for i in batch], size), encoder, partner=within)
        partners = [batch[k] for k in result.partner.tolist()]
        for i in members:
            k = place[i]
            if not mixer.needs_partner or owner[partners[k]] != owner[i]:
                images[i], found[i], ratio[i], mixed[i] = result.images[k], partners[k], result.ratio[k], True
    return CanvasMix(images, canvases, found, ratio, owner, mixed)


def _other_samples(owner: Tensor) -> Tensor:
    """Draw for each image one of another sample: [N] -> [N] int64. At least two samples own images."""
    other = (owner[:, None] != owner[None, :]).float()
    return torch.multinomial(other, 1).squeeze(1)


def _stack(canvases: list[Tensor], size: Sequence[int]) -> Tensor:
    """Images [N, 3, *size], those of another size resized."""
    return torch.stack([resize(canvas[None], size)[0] for canvas in canvases])
