"""Whether saliency finds the object: its mass on the object, and the boxes of weakly supervised localization.

A box is cut out of a saliency map as of a class activation map (https://arxiv.org/abs/1512.04150): the map is scaled to
[0, 1] and resized to the image, and the box encloses its largest connected part above a threshold. As each kind of map
has a threshold of its own that serves it best, kinds are compared at their best one (MaxBoxAcc of
https://arxiv.org/abs/2001.07437). Shapes: N images, L' patches.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..functional import topk_mask

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))


def object_share(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """The share of each patch that the object covers: masks [N, H, W] bool -> [N, L'] float32 in [0, 1]."""
    return F.adaptive_avg_pool2d(masks.float().unsqueeze(1), grid).flatten(1)


def mass_on_object(saliency: Tensor, share: Tensor) -> Tensor:
    """The share of the saliency that lies on the object; by chance, the object's share of the area.

    Args:
        saliency (Tensor): [N, L'], non-negative.
        share (Tensor): [N, L'], of each patch, as of :func:`object_share`.

    Returns:
        Tensor: [N] in [0, 1]; NaN for an image without any saliency.
    """
    return (saliency * share).sum(dim=1) / saliency.sum(dim=1)


def object_in_top(saliency: Tensor, share: Tensor, top: float = 0.2) -> Tensor:
    """The share of the object that the most salient patches hold; by chance, about `top`.

    Args:
        saliency (Tensor): [N, L'].
        share (Tensor): [N, L'], as for :func:`mass_on_object`.
        top (float): How many patches count, in [0, 1]. Defaults to 0.2.

    Returns:
        Tensor: [N] in [0, 1]; NaN for an image without an object.
    """
    return (share * topk_mask(saliency, top)).sum(dim=1) / share.sum(dim=1)


def saliency_boxes(
    saliency: Tensor, grid: tuple[int, int], size: tuple[int, int], thresholds: Sequence[float] = THRESHOLDS
) -> Tensor:
    """The box around the largest connected part of each map above each threshold.

    Args:
        saliency (Tensor): [N, L'].
        grid (tuple[int, int]): Rows and columns of patches.
        size (tuple[int, int]): Height and width of the images in pixels.
        thresholds (Sequence[float]): Shares of the range from the lowest to the highest saliency of an image, in
            [0, 1). Defaults to 0.05, 0.1 ... 0.95.

    Returns:
        Tensor: [N, thresholds, 4] xyxy in pixels, the right and lower edges excluded; the whole image for a map of one
            value.
    """
    # Of the patches, since resizing makes differences of rounding between equal values.
    whole = saliency.amax(dim=1) <= saliency.amin(dim=1)
    maps = F.interpolate(saliency.float().unflatten(1, (1, *grid)), size, mode='bilinear')[:, 0]
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    scaled = ((maps - low) / (high - low)).cpu().numpy()
    boxes = torch.zeros(len(scaled), len(thresholds), 4)
    boxes[..., 2], boxes[..., 3] = size[1], size[0]
    for number in (~whole).nonzero().flatten().tolist():
        for column, threshold in enumerate(thresholds):
            above = (scaled[number] > threshold).astype(np.uint8)
            _, _, parts, _ = cv2.connectedComponentsWithStats(above, connectivity=8)
            left, top, width, height, _ = max(parts[1:], key=lambda part: part[cv2.CC_STAT_AREA])
            boxes[number, column] = torch.tensor([left, top, left + width, top + height])
    return boxes


def mask_box(mask: Tensor) -> Tensor:
    """The box around a mask [H, W] bool that is not empty -> [4] xyxy in pixels, edges as in :func:`saliency_boxes`."""
    rows, columns = mask.any(dim=1).nonzero().flatten(), mask.any(dim=0).nonzero().flatten()
    return torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()


def box_overlap(boxes: Tensor, truths: Tensor) -> Tensor:
    """The intersection over union of boxes [..., 4] with the true box that fits best of truths [M, 4] -> [...].

    Boxes are xyxy with right and lower edges excluded.
    """
    boxes = boxes.unsqueeze(-2)
    shared = torch.minimum(boxes[..., 2:], truths[:, 2:]) - torch.maximum(boxes[..., :2], truths[:, :2])
    shared = shared.clamp(min=0).prod(dim=-1)
    areas = (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1) + (truths[:, 2:] - truths[:, :2]).prod(dim=-1)
    return (shared / (areas - shared)).amax(dim=-1)
