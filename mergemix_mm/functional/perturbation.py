"""Images that a classifier is tested on: with hidden patches, and changed by an adversary.

Shapes: B batch, L' patches, H x W pixels.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .mixing import replace_patches


def hide_patches(
    images: Tensor, priority: Tensor, count: int, patch_grid: tuple[int, int], fill: float = 0.0
) -> Tensor:
    """Hide the same number of patches in every image (Naseer et al., https://arxiv.org/abs/2105.10497).

    With one priority for several counts, the patches of a smaller count are among those of a larger one.

    Args:
        images (Tensor): [B, 3, H, W].
        priority (Tensor): [B, L'], any floating dtype; the patches with the highest values are hidden. Among equals
            the first patch is hidden.
        count (int): How many patches of each image are hidden, 0 to L'.
        patch_grid (tuple[int, int]): Rows and columns of patches, rows * columns = L'.
        fill (float): The value of hidden pixels. Defaults to 0.0: the mean colour of normalised images.

    Returns:
        Tensor: [B, 3, H, W], new memory.

    Raises:
        ValueError: If the count is out of its range, the priority does not fit the grid, or the image size is not a
            multiple of it.
    """
    if not 0 <= count <= priority.size(1):
        raise ValueError(f'count={count} must be in [0, {priority.size(1)}], the number of patches')
    order = priority.argsort(dim=1, descending=True, stable=True)
    shown = torch.ones_like(priority, dtype=torch.bool).scatter(1, order[:, :count], False)
    return replace_patches(images, torch.full_like(images, fill), shown, patch_grid)


def fgsm(
    loss: Callable[[Tensor], Tensor],
    images: Tensor,
    epsilon: float | Tensor,
    low: float | Tensor = 0.0,
    high: float | Tensor = 1.0,
) -> Tensor:
    """One step along the sign of the gradient: x + epsilon * sign(dL/dx) (FGSM, https://arxiv.org/abs/1412.6572).

    Args:
        loss (Callable): From images [B, ...] to the losses [B] of the images, or to their sum. An image's loss must
            not depend on other images.
        images (Tensor): [B, ...].
        epsilon (float | Tensor): How far a value may move, >= 0; a tensor broadcasts to the images.
        low (float | Tensor): The smallest valid value. Defaults to 0.0.
        high (float | Tensor): The largest valid value. Defaults to 1.0.

    Returns:
        Tensor: [B, ...], in [low, high], at most `epsilon` away from the images.
    """
    return pgd(loss, images, epsilon, epsilon, 1, low, high, random_start=False)


def pgd(
    loss: Callable[[Tensor], Tensor],
    images: Tensor,
    epsilon: float | Tensor,
    step_size: float | Tensor,
    steps: int,
    low: float | Tensor = 0.0,
    high: float | Tensor = 1.0,
    random_start: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Steps along the sign of the gradient within the L-infinity ball (PGD, https://arxiv.org/abs/1706.06083).

    Args:
        loss (Callable): As in :func:`fgsm`.
        images (Tensor): [B, ...].
        epsilon (float | Tensor): How far a value may move, >= 0; a tensor broadcasts to the images.
        step_size (float | Tensor): How far a value moves in a step, >= 0.
        steps (int): Number of gradients, >= 0.
        low (float | Tensor): The smallest valid value. Defaults to 0.0.
        high (float | Tensor): The largest valid value. Defaults to 1.0.
        random_start (bool): Whether to start at a uniform draw from the ball, not at the images. Defaults to True.
        generator (torch.Generator, optional): Of the random start. Defaults to torch's global one.

    Returns:
        Tensor: [B, ...], in [low, high], at most `epsilon` away from the images.
    """
    images = images.detach()
    low, high = (torch.as_tensor(limit, dtype=images.dtype, device=images.device) for limit in (low, high))
    # Both bounds at once: the ball, and the valid values inside of it.
    low, high = (images - epsilon).maximum(low), (images + epsilon).minimum(high)
    attacked = images
    if random_start:
        device = generator.device if generator is not None else images.device
        noise = torch.rand(images.shape, generator=generator, device=device).to(images)
        attacked = images + (2 * noise - 1) * epsilon
    for _ in range(steps):
        with torch.enable_grad():
            attacked = attacked.clamp(low, high).requires_grad_()
            (gradient,) = torch.autograd.grad(loss(attacked).sum(), attacked)
        attacked = attacked.detach() + step_size * gradient.sign()
    return attacked.clamp(low, high)
