"""Pre-trains a tiny CLIP tower on the drawn shapes, and measures what it reads and where it looks."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from lib.measure import add_common_arguments, prepare, write_json
from lib.tower import AttributeHeads, batches, pretrain_tower
from transformers import CLIPVisionModel

from mergemix_mm.models.vision_encoders import build_vision_encoder, score_patches
from mergemix_mm.toy.scenes import GRID
from mergemix_mm.utils.tables import markdown_table


@torch.no_grad()
def measure(tower: CLIPVisionModel, heads: AttributeHeads, split: str, num_images: int = 512, seed: int = 1) -> dict:
    """Measure how well the heads read a split.

    Returns:
        dict: The share of the things whose ``color`` and ``shape`` are read correctly from their cell, in [0, 1].
    """
    images, *labels, _ = next(batches(split, 1, num_images, tower.config.image_size, seed))
    _, in_cell = heads(tower(images))
    there = labels[0] > 0
    names = ('color', 'shape')
    return {
        name: (logits.argmax(-1) == label)[there].float().mean().item()
        for name, logits, label in zip(names, in_cell, labels, strict=True)
    }


@torch.no_grad()
def measure_saliency(tower: CLIPVisionModel, split: str = 'val', num_images: int = 512, seed: int = 1) -> list[dict]:
    """Measure where MergeMix looks in each layer, with half of the patches merged before it.

    Returns:
        list[dict]: ``layer``; ``asked`` and ``things``, the shares of the saliency on the patches that the things
        asked about touch and on those of all cells with a thing; ``asked_area`` and ``things_area``, their shares of
        the image, which a uniform saliency would score. Images without a thing asked about are left out.
    """
    images, colors, _, masks = next(batches(split, 1, num_images, tower.config.image_size, seed))
    chosen = masks.flatten(1).any(dim=1)
    images, patch = images[chosen], tower.config.patch_size
    asked = F.max_pool2d(masks[chosen, None].float(), patch).flatten(1)
    side = tower.config.image_size // patch
    cells = (colors[chosen] > 0).float().view(-1, 1, GRID, GRID)
    things = F.interpolate(cells, size=(side, side), mode='nearest').flatten(1)
    encoder, rows = build_vision_encoder(tower), []
    for layer in range(2, len(encoder.layers) + 1):
        saliency = score_patches(encoder, images, layer=layer).saliency
        saliency = saliency / saliency.sum(dim=1, keepdim=True)
        row = dict(layer=layer)
        for name, area in (('asked', asked), ('things', things)):
            row[name] = (saliency * area).sum(dim=1).mean().item()
            row[f'{name}_area'] = area.mean().item()
        rows.append(row)
    return rows


def main(argv: Sequence[str] | None = None) -> dict:
    """Train, measure and save the tower, and return the measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_arguments(parser)
    parser.add_argument('--steps', type=int, default=1000, help='steps of pre-training (default: %(default)s)')
    parser.add_argument('--save', type=Path, help="folder for the tower, in transformers' format")
    args = parser.parse_args(argv)
    prepare(args)
    steps, num_images = (3, 16) if args.quick else (args.steps, 512)
    tower, heads = pretrain_tower(steps, seed=args.seed)
    read = [dict(split=split, **measure(tower, heads, split, num_images)) for split in ('train', 'val')]
    saliency = measure_saliency(tower, num_images=num_images)
    for rows in (read, saliency):
        cells = [[f'{value:.3f}' if isinstance(value, float) else value for value in row.values()] for row in rows]
        print(markdown_table(list(rows[0]), cells), end='\n\n')
    if args.save:
        tower.save_pretrained(args.save)
    results = dict(steps=steps, read=read, saliency=saliency)
    if args.output:
        write_json(args.output, results)
    return results


if __name__ == '__main__':
    main()
