"""Pre-training of a tiny CLIP tower on drawn shapes, from which small VLMs start."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from mergemix_mm.toy import ShapesConversationDataset
from mergemix_mm.toy.scenes import COLORS, GRID, SHAPES

from .loops import warmup_cosine

MEAN = STD = 127.5  # As in `ShapesProcessor`.


def tower_config(image_size: int = 48, patch_size: int = 8) -> CLIPVisionConfig:
    """Four layers of width 96: 0.35 million weights."""
    return CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=image_size,
        patch_size=patch_size,
    )


def pretrain_tower(
    steps: int = 1000,
    batch_size: int = 64,
    lr: float = 1e-3,
    seed: int = 0,
    config: CLIPVisionConfig | None = None,
    data: Iterable[tuple[Tensor, ...]] | None = None,
    coloured: float = 0.5,
    see: Callable[[Tensor], Tensor] | None = None,
) -> 'tuple[CLIPVisionModel, AttributeHeads]':
    """Train a tower on the attributes of the train split's images; no image, and no combination, of val is seen.

    Linear heads read which colours and shapes there are from the class token, and what stands in each cell of the
    scene's grid from the mean of the cell's patches. Some colour-shape pairs never appear in train images: a tower
    that sees shapes in their own colours learns from the colour which shape cannot be. So half of each batch keeps its
    colours and trains the colour heads, and the other half gets its channels mixed at random and trains the shape
    heads.

    Args:
        steps (int): Optimiser steps, AdamW with a tenth of warm-up and cosine decay. Defaults to 1000.
        batch_size (int): Images per step, each drawn anew. Defaults to 64.
        lr (float): Peak learning rate. Defaults to 1e-3.
        seed (int): Of weights, images and channel mixes. Defaults to 0.
        config (CLIPVisionConfig, optional): Of the tower. Defaults to None: :func:`tower_config`.
        data (Iterable, optional): Images, colours and shapes, for each step. Defaults to None: :func:`batches`.
        coloured (float): Share of a batch that keeps its colours. With 1 the tower learns no shapes, with 0 no colours.
            Defaults to 0.5.
        see (Callable, optional): What the tower sees of images. Defaults to None: all.

    Returns:
        tuple[CLIPVisionModel, AttributeHeads]: the tower, in eval mode, and its heads, for measuring.
    """
    torch.manual_seed(seed)
    tower = CLIPVisionModel(config or tower_config())
    heads = AttributeHeads(tower.config.hidden_size)
    parameters = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.05)
    schedule = warmup_cosine(optimizer, steps)
    tower.train()
    if data is None:
        data = batches('train', steps, batch_size, tower.config.image_size, seed)
    for images, colors, shapes, *_ in data:
        kept = int(coloured * len(images))
        images = torch.cat([images[:kept], mix_channels(images[kept:])])
        loss = heads.loss(tower(images if see is None else see(images)), colors, shapes, kept)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    return tower.eval(), heads


class AttributeHeads(nn.Module):
    """Linear readings of the colours and shapes of a scene, from the class token and from the patches of each cell.

    Args:
        width (int): Channels of the tower.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        # Presence of each colour and shape; and per cell one class more, nothing.
        self.present = nn.ModuleList([nn.Linear(width, len(COLORS)), nn.Linear(width, len(SHAPES))])
        self.in_cell = nn.ModuleList([nn.Linear(width, len(COLORS) + 1), nn.Linear(width, len(SHAPES) + 1)])

    def forward(self, output, grid: int = GRID) -> tuple[list[Tensor], list[Tensor]]:
        """Logits of presence [B, 6] and per cell [B, grid ** 2, 7], each for colours and for shapes."""
        patches = output.last_hidden_state[:, 1:]
        side = math.isqrt(patches.size(1))
        cells = F.adaptive_avg_pool2d(patches.transpose(1, 2).unflatten(2, (side, side)), grid).flatten(2)
        present = [head(output.pooler_output) for head in self.present]
        return present, [head(cells.transpose(1, 2)) for head in self.in_cell]

    def loss(self, output, colors: Tensor, shapes: Tensor, num_coloured: int) -> Tensor:
        """Sum of the four losses: colours from the first `num_coloured` images, shapes from the others."""
        total = output.pooler_output.new_zeros(())
        chosen = slice(None, num_coloured), slice(num_coloured, None)
        logits = self(output, math.isqrt(colors.size(1)))
        for present, in_cell, labels, rows in zip(*logits, (colors, shapes), chosen, strict=True):
            if not len(labels[rows]):
                continue
            there = F.one_hot(labels[rows], in_cell.size(-1)).amax(dim=1)[:, 1:].float()
            total = total + F.binary_cross_entropy_with_logits(present[rows], there)
            total = total + F.cross_entropy(in_cell[rows].flatten(0, 1), labels[rows].flatten())
        return total


def batches(
    split: str, steps: int, batch_size: int, image_size: int, seed: int = 0
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Images drawn one after the other.

    Yields:
        tuple: images [B, 3, S, S], normalised; colours and shapes [B, 9] int64, 0 for an empty cell; masks [B, S, S]
        bool of the things that the question is about.
    """
    dataset = ShapesConversationDataset(split, length=steps * batch_size, image_size=image_size, seed=seed)
    for start in range(0, len(dataset), batch_size):
        records = [dataset.get_data_info(start + i) for i in range(batch_size)]
        yield *labelled(records), torch.stack([torch.from_numpy(record['gt_mask']) for record in records])


def labelled(records: Sequence[dict], grid: int = GRID) -> tuple[Tensor, Tensor, Tensor]:
    """Images of drawn records, normalised, and the colours and shapes [B, grid ** 2] in their cells."""
    images = torch.stack([to_tensor(record['images'][0]) for record in records])
    colors, shapes = torch.zeros(2, len(records), grid * grid, dtype=torch.int64)
    for i, record in enumerate(records):
        for thing in record['things']:
            cell = thing['cell'][0] * grid + thing['cell'][1]
            colors[i, cell] = COLORS.index(thing['color']) + 1
            shapes[i, cell] = SHAPES.index(thing['shape']) + 1
    return images, colors, shapes


def to_tensor(image) -> Tensor:
    """PIL image -> [3, H, W] float32 in [-1, 1], as the processor of the shapes has it."""
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3)
    return (pixels.permute(2, 0, 1).float() - MEAN) / STD


def mix_channels(images: Tensor) -> Tensor:
    """Each output channel is a random weighted mean of the three: [B, 3, H, W], one mix per image."""
    weight = (2 * torch.randn(len(images), 3, 3)).softmax(dim=-1)
    return torch.einsum('nij,njhw->nihw', weight, images)
