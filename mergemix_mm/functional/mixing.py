"""From saliency to mixed images and labels, after MergeMix (https://arxiv.org/abs/2510.23479).

Shapes: B batch, L' patches, H x W pixels. A mask is True where an image keeps its own patch and False where it takes
the partner's; a soft mask is the own share of each patch, a float in [0, 1]. A ratio is the share of an image's own
label, in [0, 1].
"""

import math
import random

import torch
from torch import Tensor


def sample_lambda(alpha: float, size: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw mixing coefficients lambda ~ Beta(alpha, alpha).

    Args:
        alpha (float): Parameter of the Beta distribution, > 0 and finite.
        size (int): How many to draw.
        generator (torch.Generator, optional): Source of randomness. Defaults to torch's global one.

    Returns:
        Tensor: [size] float64 on the CPU.

    Raises:
        ValueError: if alpha is out of its range.
    """
    if not 0 < alpha < math.inf:
        raise ValueError(f'alpha={alpha} must be > 0 and finite')
    source = random_source(generator)  # torch's own Beta takes no generator.
    return torch.tensor([source.betavariate(alpha, alpha) for _ in range(size)], dtype=torch.float64)


def random_source(generator: torch.Generator | None = None) -> random.Random:
    """A generator of the standard library for draws on the host, seeded from torch, so that one seed rules."""
    seed = torch.randint(2**62, (), generator=generator, device=generator.device if generator else None)
    return random.Random(int(seed))


def derangement(
    batch_size: int, generator: torch.Generator | None = None, device: torch.device | str | None = None
) -> Tensor:
    """Draw a permutation without fixed point: a partner for each image that is never the image itself.

    Drawn uniformly among the permutations that are a single cycle, which need no rejection.

    Args:
        batch_size (int): Number of images, >= 2.
        generator (torch.Generator, optional): Source of randomness. Defaults to torch's global one.
        device (optional): Device of the result. Defaults to the generator's.

    Returns:
        Tensor: [B] int64.

    Raises:
        ValueError: if batch_size < 2.
    """
    if batch_size < 2:
        raise ValueError(f'batch_size={batch_size}: a partner that is not the image itself needs at least 2 images')
    order = torch.randperm(batch_size, generator=generator, device=generator.device if generator else None)
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    return partner.to(device) if device is not None else partner


def topk_mask(saliency: Tensor, ratio: float | Tensor) -> Tensor:
    """Keep the most salient patches: M = TopK(A, p) with p = floor(lambda * L') (MergeMix, mixing).

    Args:
        saliency (Tensor): [B, L'], any floating dtype. Among equals the first patch wins; NaN counts as -inf.
        ratio (float | Tensor): Share of the patches to keep, in [0, 1], a number or [B].

    Returns:
        Tensor: [B, L'] bool with exactly floor(ratio * L') True per row, the floor taken in float64.

    Raises:
        ValueError: if a ratio is outside [0, 1].
    """
    ratio = torch.as_tensor(ratio, dtype=torch.float64, device='cpu')  # Some devices have no float64.
    if ratio.ndim and len(ratio) != len(saliency):
        raise ValueError(f'ratio has {len(ratio)} values for {len(saliency)} images')
    if not bool(((ratio >= 0) & (ratio <= 1)).all()):
        raise ValueError(f'ratio={ratio.tolist()} must be in [0, 1]')
    num_patches = saliency.size(1)
    count = (ratio * num_patches).floor().long().to(saliency.device).reshape(-1, 1)
    # A sort takes NaN for the largest number, and one NaN would win over every real saliency.
    saliency = torch.where(saliency.isnan(), -math.inf, saliency) if saliency.is_floating_point() else saliency
    # A threshold at the k-th value would keep too many where values are equal; ranks keep exactly `count`.
    order = saliency.argsort(dim=1, descending=True, stable=True)
    among_first = torch.arange(num_patches, device=saliency.device) < count
    return torch.zeros_like(saliency, dtype=torch.bool).scatter(1, order, among_first.expand_as(order))


def mix_images(images: Tensor, partner: Tensor, mask: Tensor, patch_grid: tuple[int, int]) -> Tensor:
    """x_mix = M * x_i + (1 - M) * x_j, with M upsampled to pixels (nearest).

    Args:
        images (Tensor): [B, 3, H, W].
        partner (Tensor): [B] int64, the image whose pixels each image takes.
        mask (Tensor): [B, L'] bool, row by row over the patch grid; True keeps the image itself. A float in [0, 1]
            blends both.
        patch_grid (tuple[int, int]): rows and columns of patches, rows * columns = L'.

    Returns:
        Tensor: [B, 3, H, W], new memory; `images` is not written to.

    Raises:
        ValueError: if the mask does not fit the grid, or the image size is not a multiple of it.
    """
    return replace_patches(images, images[partner], mask, patch_grid)


def replace_patches(images: Tensor, fill: Tensor, mask: Tensor, patch_grid: tuple[int, int]) -> Tensor:
    """M * x + (1 - M) * fill, for any images `fill` [B, 3, H, W]; all else is as in :func:`mix_images`."""
    rows, cols = patch_grid
    height, width = images.shape[-2:]
    if mask.size(1) != rows * cols:
        raise ValueError(f'mask has {mask.size(1)} patches, but patch_grid={tuple(patch_grid)} has {rows * cols}')
    if height % rows or width % cols:
        raise ValueError(
            f'images of {height} x {width} pixels are not a multiple of patch_grid={tuple(patch_grid)}: resize or crop '
            'the images to a multiple of the patch size (or set pad_size_divisor in the data preprocessor)'
        )
    # The mask broadcasts over the pixels of a patch, so it is never copied to the size of the images.
    own, tiles, others = (
        mask.view(-1, 1, rows, 1, cols, 1),
        *(x.unflatten(3, (cols, width // cols)).unflatten(2, (rows, height // rows)) for x in (images, fill)),
    )
    mixed = torch.where(own, tiles, others) if own.dtype == torch.bool else torch.lerp(others, tiles, own.to(tiles))
    return mixed.flatten(4, 5).flatten(2, 3)


def mix_labels(scores: Tensor, partner: Tensor, ratio: Tensor, partner_ratio: Tensor | None = None) -> Tensor:
    """y_mix = ratio * y_i + partner_ratio * y_j.

    Args:
        scores (Tensor): [B, num_classes] one-hot, soft or multi-hot labels.
        partner (Tensor): [B] int64.
        ratio (Tensor): [B].
        partner_ratio (Tensor, optional): [B], where the labels of a mixed image do not sum to one (TokenMix,
            https://arxiv.org/abs/2207.08409). Defaults to None: 1 - ratio.

    Returns:
        Tensor: [B, num_classes] float32.
    """
    scores, ratio = scores.float(), ratio.float().unsqueeze(1)
    other = 1 - ratio if partner_ratio is None else partner_ratio.float().unsqueeze(1)
    return ratio * scores + other * scores[partner]


def area_ratio(mask: Tensor) -> Tensor:
    """The share of patches an image keeps, p / L': mask [B, L'], bool or soft -> [B] float32."""
    return mask.float().mean(dim=1)


def attention_ratio(saliency: Tensor, partner: Tensor, mask: Tensor, partner_saliency: Tensor | None = None) -> Tensor:
    """The share of visible attention mass that is the image's own.

    sum_i A_i M / (sum_i A_i M + sum_j A_j (1 - M)), in float32.

    Args:
        saliency (Tensor): [B, L'], non-negative; NaN and -inf count as 0. Where visible patches have infinite
            attention, all others count as 0 beside them.
        partner (Tensor): [B] int64.
        mask (Tensor): [B, L'] bool, or the own share of each patch in [0, 1].
        partner_saliency (Tensor, optional): [B, L'], what the partners' patches have where they are shown, for
            partners that are moved. Defaults to None: ``saliency[partner]``.

    Returns:
        Tensor: [B] float32 in [0, 1]; the area ratio where nothing visible has any attention.
    """
    own, other = saliency.float(), saliency[partner].float() if partner_saliency is None else partner_saliency.float()
    own, other = (torch.where(x.isnan() | x.isneginf(), 0, x) for x in (own, other))
    share = mask.to(own)
    # Zero shares are left out first: 0 * infinity would be NaN.
    own, other = torch.where(share > 0, own * share, 0), torch.where(share < 1, other * (1 - share), 0)
    shown = torch.stack([own, other], dim=1)
    # Only ratios count. Where the sum overflows, all is divided by the largest one; if that is infinite itself, the
    # infinite ones become 1 and the finite ones 0.
    peak = shown.detach().amax(dim=(1, 2), keepdim=True)
    finite = shown.detach().sum(dim=(1, 2), keepdim=True).isfinite()
    scaled = torch.where(
        peak.isinf(), shown.isinf().to(shown), torch.where(peak.isinf(), 0, shown) / torch.where(finite, 1, peak)
    )
    mass, partner_mass = torch.where(finite, shown, scaled).sum(dim=2).unbind(dim=1)
    visible = mass + partner_mass
    # The denominator is made safe before the division: `where` would send 0 * infinity = NaN into the gradient.
    return torch.where(visible > 0, mass / torch.where(visible > 0, visible, 1), area_ratio(mask))


def gaussian_ratio(num_kept_tokens: int, mask: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Ratios drawn from N(K / L', p / sum M) and min-max normalised over the batch, as MergeMix publishes them.

    The normalisation removes the mean, and with an exact top-k mask p = sum M, so the deviation is 1: the ratio no
    longer depends on the mask. It is kept for fidelity. Use :func:`area_ratio` or :func:`attention_ratio` where the
    ratio should say how much of the image is visible.

    Args:
        num_kept_tokens (int): K, the patches left after merging.
        mask (Tensor): [B, L'] bool.
        generator (torch.Generator, optional): Source of randomness. Defaults to torch's global one.

    Returns:
        Tensor: [B] float32 with minimum 0 and maximum 1; the area ratio if B < 4, of which min-max would turn
            most into 0 and 1.
    """
    batch_size, num_patches = mask.shape
    if batch_size < 4:
        return area_ratio(mask)
    noise = torch.randn(batch_size, generator=generator, device=generator.device if generator else None)
    drawn = (noise + num_kept_tokens / num_patches).to(mask.device)
    low, high = drawn.aminmax()  # Equal numbers would divide by 0.
    return (drawn - low) / (high - low).clamp(min=torch.finfo(drawn.dtype).eps)
