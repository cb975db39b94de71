"""Mixing the images of a VLM batch, which differ in size and of which a sample may own several or none."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...functional import resize
from ..batch_augments import Mixer, MixResult, as_mixer
from ..vision_encoders import PatchScores


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
        mask (Tensor | list[Tensor], optional): [N, L'] bool, True where the image keeps its own patch, or its own
            share in [0, 1]; N of [L'] where each image was scored at its own size, so that L' differs.
        saliency (Tensor | list[Tensor], optional): [N, L'] float32, or N of [L'].
        grid (tuple[int, int] | list[tuple[int, int]], optional): Rows and columns of the mask, or those of each image.
        saliency_grid (tuple[int, int] | list[tuple[int, int]], optional): Rows and columns of the saliency, or those of
            each image. Defaults to None: `grid`.
    """

    images: list[Tensor]
    clean: list[Tensor]
    partner: Tensor
    ratio: Tensor
    owner: Tensor
    mixed: Tensor
    mask: Tensor | list[Tensor] | None = None
    saliency: Tensor | list[Tensor] | None = None
    grid: tuple[int, int] | list[tuple[int, int]] | None = None
    saliency_grid: tuple[int, int] | list[tuple[int, int]] | None = None


@torch.compiler.disable  # Draws from Python's generators; what it does depends on the sizes and the partners.
@torch.no_grad()
def mix_canvases(
    mixer: Callable, canvases: list[Tensor], owner: Tensor, encoder: nn.Module | None = None
) -> CanvasMix | None:
    """Mix each image with one of another sample, resized to it where they differ.

    A mixer that scores patches (`MergeMix`) scores all images in one batch, at the image size of the encoder. With an
    encoder of images of any size, it scores each image at its own size, in one batch per size.

    Batch augments of MMPretrain draw their partners themselves; an image whose partner turns out to be itself or one of
    its own sample stays clean.

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
        images,
        canvases,
        result.partner,
        result.ratio,
        owner,
        mixed,
        result.mask,
        result.saliency,
        result.grid,
        result.saliency_grid,
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
        images.append(torch.lerp(fill, canvas, F.interpolate(mask[None], size)[0].to(canvas)))
    return images


def _mix_at_own_sizes(
    mixer: Mixer, canvases: list[Tensor], owner: Tensor, encoder: nn.Module | None, partner: Tensor | None
) -> CanvasMix:
    """One call per image size: the images of this size are kept of a batch that is resized to it.

    Each image is scored once, at its own size.
    """
    images, ratio = list(canvases), torch.ones(len(owner), device=owner.device)
    found, mixed = torch.arange(len(owner), device=owner.device), torch.zeros_like(owner, dtype=torch.bool)
    sizes = [canvas.shape[-2:] for canvas in canvases]
    groups = {size: [i for i, own in enumerate(sizes) if own == size] for size in dict.fromkeys(sizes)}
    saliency = _score_at_own_sizes(mixer, canvases, groups, encoder)
    masks: dict[int, tuple[Tensor, tuple[int, int]]] = {}
    for size, members in groups.items():
        # Partners that are known leave the other images out; an augment that draws them itself needs all images.
        batch = list(range(len(canvases))) if mixer.needs_partner else members
        if partner is not None:
            batch = sorted({*members, *partner[members].tolist()})
        place = {i: k for k, i in enumerate(batch)}
        within = None
        if partner is not None:
            within = owner.new_tensor([place.get(j, place[i]) for i, j in zip(batch, partner[batch].tolist())])
        stacked = _stack([canvases[i] for i in batch], size)
        if saliency is None:
            result = mixer.mix(stacked, encoder, partner=within)
        else:
            scores = _scores_on(saliency[members[0]].shape, [saliency[i] for i in batch])
            result = mixer.mix_scored(stacked, scores, partner=within)
        partners = [batch[k] for k in result.partner.tolist()]
        for i in members:
            k = place[i]
            if result.mask is not None and result.grid is not None:
                masks[i] = result.mask[k], result.grid
            if not mixer.needs_partner or owner[partners[k]] != owner[i]:
                images[i], found[i], ratio[i], mixed[i] = result.images[k], partners[k], result.ratio[k], True
    mix = CanvasMix(images, canvases, found, ratio, owner, mixed)
    if saliency is not None:
        order = range(len(canvases))
        mix.mask, mix.grid = [masks[i][0] for i in order], [masks[i][1] for i in order]
        mix.saliency = [saliency[i].flatten() for i in order]
        mix.saliency_grid = [(saliency[i].size(0), saliency[i].size(1)) for i in order]
    return mix


def _score_at_own_sizes(
    mixer: Mixer, canvases: list[Tensor], groups: dict[torch.Size, list[int]], encoder: nn.Module | None
) -> dict[int, Tensor] | None:
    """The saliency of each image, [rows, columns]; one pass per size. None for a mixer that scores nothing."""
    saliency: dict[int, Tensor] = {}
    for members in groups.values():
        scores = mixer.score(torch.stack([canvases[i] for i in members]), encoder)
        if scores is None:
            return None
        assert scores.num_kept_patches == scores.saliency.size(1)  # Without a scoring size, nothing merges.
        saliency.update(zip(members, scores.saliency.unflatten(1, scores.grid), strict=True))
    return saliency


def _scores_on(grid: Sequence[int], saliency: list[Tensor]) -> PatchScores:
    """Saliency [rows, columns] of several images on one grid, where each keeps its sum."""
    rows = []
    for own in saliency:
        resized = resize(own[None, None], grid).flatten()
        rows.append(resized * (own.sum() / resized.sum()))
    return PatchScores.unmerged(torch.stack(rows), (grid[0], grid[1]))


def _other_samples(owner: Tensor) -> Tensor:
    """Draw for each image one of another sample: [N] -> [N] int64. At least two samples own images."""
    other = (owner[:, None] != owner[None, :]).float()
    return torch.multinomial(other, 1).squeeze(1)


def _stack(canvases: list[Tensor], size: Sequence[int]) -> Tensor:
    """Images [N, 3, *size], those of another size resized."""
    return torch.stack([resize(canvas[None], size)[0] for canvas in canvases])
