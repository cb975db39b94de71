"""The page of mixed samples: clean image, partner, saliency, mask and mixed image, one row per image."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .canvas import figure_to_image

if TYPE_CHECKING:
    from ..models.batch_augments import MixResult
    from ..models.tuners.mix_canvases import CanvasMix

OWN_COLOUR = '#2563a8'
PARTNER_COLOUR = '#d9702b'
TEXT_COLOUR = '#1f2937'
COLUMNS = {
    'clean': ('image', OWN_COLOUR),
    'partner': ('partner', PARTNER_COLOUR),
    'saliency': ('saliency', TEXT_COLOUR),
    'mask': ('mask', TEXT_COLOUR),
    'mixed': ('mixed', TEXT_COLOUR),
}
MAX_NAME_LENGTH = 18
CELL_HEIGHT = 1.45
TOLERANCE = 25  # In pixel values: resizing overshoots at edges.


def draw_mixed_samples(
    result: 'MixResult | CanvasMix | Sequence[MixResult | CanvasMix]',
    mean: Tensor | Sequence[float] | None = None,
    std: Tensor | Sequence[float] | None = None,
    labels: Sequence | Tensor | None = None,
    classes: Sequence[str] | None = None,
    max_rows: int = 8,
    channel_order: str = 'rgb',
    dpi: int = 110,
    titles: Sequence[str] | None = None,
) -> np.ndarray:
    """Draw a row per image: clean, partner, saliency, mask and mixed, with the labels and their shares.

    Columns that are empty in all rows (saliency and mask of Mixup, clean images that were not kept) are left out. A
    CanvasMix may hold images of different sizes, and images that were not mixed. These fill only the first column. A
    partner is drawn in the shape of the image that it is mixed into.

    Args:
        result (MixResult | CanvasMix | Sequence): One mixed batch, or several that share the page.
        mean (Tensor | Sequence[float], optional): The mean of the normalisation of the images, 1 or 3 numbers on the
            scale 0..255. Defaults to None: 0.
        std (Tensor | Sequence[float], optional): The standard deviation, 1 or 3 numbers on that scale. Defaults to
            None: 1.
        labels (Sequence | Tensor, optional): One entry per image: a name, a class index, or several of a multi-label
            image; with several batches, one such sequence (or None) for each. Defaults to None: the page then says
            'own' and 'partner'.
        classes (Sequence[str], optional): Class names. Defaults to None, which shows the indices.
        max_rows (int): The most rows, counted over all batches; with `titles`, the batches share them evenly. Defaults
            to 8.
        channel_order (str): ``'rgb'`` or ``'bgr'``, the order of the normalised images. Defaults to ``'rgb'``.
        dpi (int): Pixels per inch; an image is about 1.45 inches high. Defaults to 110.
        titles (Sequence[str], optional): With several batches, a name for each, written beside its rows. Defaults to
            None.

    Returns:
        np.ndarray: [H, W, 3] uint8, RGB.

    Raises:
        ValueError: If ``channel_order`` or ``max_rows`` is out of range, there is no batch, or the labels do not
            match the images.
    """
    if channel_order not in ('rgb', 'bgr'):
        raise ValueError(f"draw_mixed_samples: channel_order={channel_order!r} must be 'rgb' or 'bgr'.")
    if max_rows < 1:
        raise ValueError(f'draw_mixed_samples: max_rows={max_rows} must be at least 1.')
    if isinstance(result, Sequence):
        batches = list(zip(result, labels if labels is not None else [None] * len(result), strict=True))
    else:
        batches = [(result, labels)]
    rows: list[dict] = []
    for (batch, batch_labels), title in zip(batches, titles or [''] * len(batches), strict=True):
        count = max_rows - len(rows) if titles is None else max(max_rows // len(batches), 1)
        made = _make_rows(batch, mean, std, batch_labels, classes, count, channel_order)
        rows += [row | dict(title=title) for row in made]
    if not rows:
        raise ValueError('draw_mixed_samples: there is no mixed image to draw; pass at least one MixResult.')
    return figure_to_image(_make_figure(rows, dpi))


def _make_rows(batch, mean, std, labels, classes, max_rows, channel_order) -> list[dict]:
    """The content of each row: 'own', 'other' (names), 'ratio', and an array for each column that is not empty."""
    size = len(batch.images)
    if labels is not None and len(labels) != size:
        raise ValueError(f'draw_mixed_samples: {len(labels)} labels for {size} images; pass one entry per image.')
    rows = []
    for index in range(min(size, max_rows)):
        partner = int(batch.partner[index])
        ratio = float(batch.ratio[index])
        partner_ratio = getattr(batch, 'partner_ratio', None)
        other_share = 1 - ratio if partner_ratio is None else float(partner_ratio[index])
        row: dict[str, Any] = dict(ratio=ratio, other_ratio=other_share, own='own', other='partner')
        if labels is not None:
            row.update(own=_name(labels[index], classes), other=_name(labels[partner], classes))
        if batch.clean is not None:
            row['clean'] = _to_pixels(batch.clean[index], mean, std, channel_order)
        rows.append(row)
        if hasattr(batch, 'mixed') and not batch.mixed[index]:
            continue
        row['mixed'] = _to_pixels(batch.images[index], mean, std, channel_order)
        if batch.clean is not None:
            # The clean partner: that of `images` is mixed itself.
            row['partner'] = _to_pixels(batch.clean[partner], mean, std, channel_order)
        # One grid for all images, or one for each.
        grid, saliency_grid = (
            one[index] if isinstance(one, list) else one for one in (batch.grid, batch.saliency_grid)
        )
        if batch.mask is not None:
            row['mask'] = batch.mask[index].reshape(grid).cpu().numpy()
        if batch.saliency is not None:
            saliency = batch.saliency[index].detach().float().reshape(1, 1, *(saliency_grid or grid)).cpu()
            # Smooth: edges of patches would distract from what is salient. The mask keeps its edges.
            saliency = F.interpolate(saliency, size=row['mixed'].shape[:2], mode='bilinear', align_corners=False)
            row['saliency'] = saliency[0, 0].numpy()
    return rows


def _to_pixels(image: Tensor, mean, std, channel_order: str) -> np.ndarray:
    """Undo the normalisation of one image: [3, H, W] -> [H, W, 3] uint8, RGB."""
    image = image.detach().float().cpu()
    if std is not None:
        image = image * torch.as_tensor(std, dtype=torch.float32).cpu().reshape(-1, 1, 1)
    if mean is not None:
        image = image + torch.as_tensor(mean, dtype=torch.float32).cpu().reshape(-1, 1, 1)
    if channel_order == 'bgr':
        image = image.flip(0)
    return image.clamp(0, 255).round().byte().permute(1, 2, 0).numpy()


def _name(label, classes: Sequence[str] | None) -> str:
    """Short name of one label, or of the first two of a multi-label image."""
    if isinstance(label, str):
        names = [label]
    else:
        indices = torch.as_tensor(label).flatten().tolist()
        names = [str(int(index)) if classes is None else str(classes[int(index)]) for index in indices]
    name = ', '.join(names[:2]) + (', …' if len(names) > 2 else '') or 'none'
    if len(name) > MAX_NAME_LENGTH:
        name = name[: MAX_NAME_LENGTH - 1].rstrip(' ,') + '…'
    # Quoted, so that the class '7' is not read as a part of the ratio before it.
    return f'“{name}”' if name[0].isdigit() else name


def _make_figure(rows: list[dict], dpi: int):
    from matplotlib.figure import Figure
    from matplotlib.gridspec import GridSpec

    columns = [column for column in COLUMNS if any(column in row for row in rows)]
    shapes = [(row['mixed'] if 'mixed' in row else row['clean']).shape[:2] for row in rows]
    # All sizes are in inches: cells keep the shape of the images, and captions the height of their text.
    steepness = np.array([height / width for height, width in shapes])
    cell_w = min(max(CELL_HEIGHT / steepness[0], 1.0), 3.0)
    cell_hs = np.clip(CELL_HEIGHT * steepness / steepness[0], 0.6, 3.0)
    caption, gap, heading, side = 0.32, 0.07, 0.3, 0.1
    first = side + 0.25 * any(row['title'] for row in rows)
    page_w = len(columns) * cell_w + (len(columns) - 1) * gap + first + side
    page_h = heading + cell_hs.sum() + len(rows) * caption

    figure = Figure(figsize=(page_w, page_h), dpi=dpi, facecolor='white')
    grid = GridSpec(
        len(rows),
        len(columns),
        left=first / page_w,
        right=1 - side / page_w,
        top=1 - heading / page_h,
        bottom=caption / page_h,
        wspace=gap / cell_w,
        hspace=caption / cell_hs.mean(),
        height_ratios=cell_hs,
        figure=figure,
    )
    for line, row in enumerate(rows):
        for place, column in enumerate(columns):
            axes = figure.add_subplot(grid[line, place])
            axes.set_axis_off()
            if place == 0 and row['title']:
                axes.text(-0.05, 0.5, row['title'], rotation=90, ha='right', va='center', transform=axes.transAxes)
            if line == 0:
                title, colour = COLUMNS[column]
                axes.set_title(title, fontsize=10, fontweight='bold', color=colour, pad=5)
            if column in row:
                _show(axes, column, row)
                _caption(axes, _caption_parts(column, row))
    return figure


def _show(axes, column: str, row: dict) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    if column == 'mask':
        axes.imshow(
            row['mask'],
            cmap=LinearSegmentedColormap.from_list('mask', [PARTNER_COLOUR, OWN_COLOUR]),  # Soft masks blend.
            vmin=0,
            vmax=1,
            interpolation='nearest',
            aspect='auto',
        )
        rows, cols = row['mask'].shape
        if max(rows, cols) <= 24:
            axes.vlines(np.arange(1, cols) - 0.5, -0.5, rows - 0.5, color='white', linewidth=0.4, alpha=0.5)
            axes.hlines(np.arange(1, rows) - 0.5, -0.5, cols - 0.5, color='white', linewidth=0.4, alpha=0.5)
    elif column == 'saliency':
        # The heat map lies over a grey image, so that only it has colours.
        if 'clean' in row:
            axes.imshow(row['clean'].mean(axis=2), cmap='gray', vmin=0, vmax=255, aspect='auto')
        axes.imshow(row['saliency'], cmap='inferno', alpha=0.65 if 'clean' in row else 1.0, aspect='auto')
    else:
        axes.imshow(row[column], aspect='auto')


def _caption_parts(column: str, row: dict) -> list[tuple[str, str]]:
    """The parts of a caption, each a text and its colour."""
    ratio = row['ratio']
    if column == 'clean':
        return [(row['own'], OWN_COLOUR)]
    if column == 'partner':
        return [(row['other'], PARTNER_COLOUR)]
    if column == 'mask':
        return [(f'{row["mask"].mean():.0%} own', TEXT_COLOUR)]
    if column == 'mixed':
        return [
            (f'{ratio:.2f} {row["own"]}', OWN_COLOUR),
            (' + ', TEXT_COLOUR),
            (f'{row["other_ratio"]:.2f} {row["other"]}', PARTNER_COLOUR),
        ]
    return []


def _caption(axes, parts: list[tuple[str, str]]) -> None:
    """Write the parts centred below the axes: side by side, or in two lines if they would become too small."""
    from matplotlib.artist import Artist
    from matplotlib.offsetbox import AnnotationBbox, HPacker, TextArea, VPacker

    if not parts:
        return
    inches = axes.get_position().width * axes.figure.get_figwidth()
    lines = [parts]
    size = _fitting_size(lines, inches)
    if len(parts) > 1 and size < 7.5:
        lines = [parts[:1], parts[1:]]
        size = min(_fitting_size(lines, inches), 7.5)
    packed: list[Artist] = [
        HPacker(
            children=[TextArea(text, textprops=dict(color=colour, fontsize=size)) for text, colour in line],
            pad=0,
            sep=0,
            align='baseline',
        )
        for line in lines
    ]
    box = AnnotationBbox(
        VPacker(children=packed, pad=0, sep=1, align='center'),
        (0.5, 0),
        xybox=(0, -3),
        xycoords='axes fraction',
        boxcoords='offset points',
        box_alignment=(0.5, 1),
        frameon=False,
        pad=0,
        annotation_clip=False,
    )
    axes.add_artist(box)


def _fitting_size(lines: list[list[tuple[str, str]]], inches: float) -> float:
    """The font size in points, 8.5 at most, at which every line fits into the width."""
    length = max(sum(len(text) for text, _ in line) for line in lines)
    # A character of the default font is about 0.55 of its size wide.
    return min(8.5, 72 * inches / (0.55 * length))


def labels_of(data_batch, batch_size: int) -> list | None:
    """The labels of a batch in the form that :func:`draw_mixed_samples` takes.

    Args:
        data_batch (Any): A batch of the data loader; labels are read from its ``data_samples``, if it has them.
        batch_size (int): Number of mixed images B.

    Returns:
        list | None: B tensors of class indices (the positive classes of a multi-label sample), or None if the batch
        does not hold one label per image.
    """
    samples = data_batch.get('data_samples') if isinstance(data_batch, dict) else None
    if samples is None or len(samples) != batch_size:
        return None
    labels = []
    for sample in samples:
        if 'gt_label' in sample:
            labels.append(sample.gt_label)
        elif 'gt_score' in sample:
            labels.append(sample.gt_score.nonzero().flatten())
        else:
            return None
    return labels


def pixel_scale(processor, images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation for `draw_mixed_samples`: pixels in 0..255 are ``image * std + mean``.

    Args:
        processor (ProcessorMixin | None): A processor of transformers, whose image processor says how it rescales and
            normalises. With None, or if its numbers lead out of 0..255, the values of the images are stretched to it.
        images (Sequence[Tensor]): Normalised images [3, H, W], at least one.

    Returns:
        tuple[Tensor, Tensor]: Each [3] or [1] float32.
    """
    lowest = torch.stack([image.detach().float().amin((1, 2)).cpu() for image in images]).amin(0)
    highest = torch.stack([image.detach().float().amax((1, 2)).cpu() for image in images]).amax(0)
    image_processor = getattr(processor, 'image_processor', None)
    if image_processor is not None:
        # The images may come from elsewhere. The numbers of the processor are used only if they lead to pixel values.
        mean, std = _of_processor(image_processor)
        if (lowest * std + mean).min() >= -TOLERANCE and (highest * std + mean).max() <= 255 + TOLERANCE:
            return mean, std
    # One scale for all images and channels, so that colours and brightness stay comparable.
    std = 255 / (highest.max() - lowest.min()).clamp(min=1e-6).reshape(1)
    return -lowest.min() * std, std


def _of_processor(image_processor) -> tuple[Tensor, Tensor]:
    mean, std = torch.zeros(1), torch.ones(1)
    if getattr(image_processor, 'do_normalize', True):
        mean = torch.tensor(image_processor.image_mean, dtype=torch.float32).flatten()
        std = torch.tensor(image_processor.image_std, dtype=torch.float32).flatten()
    factor = image_processor.rescale_factor if getattr(image_processor, 'do_rescale', True) else 1
    return mean / factor, std / factor
