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
    """The config of a tower of four layers of width 96, with 0.35 million weights."""
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
    """Train a tower on the attributes of the images of the train split.

    Linear heads read the colours and shapes of the scene from the class token, and the content of each cell from the
    mean of the patches of the cell. Some pairs of colour and shape never appear in the train split, so a tower that
    sees shapes in their own colours would learn from the colour which shapes are impossible. Therefore half of each
    batch keeps its colours and trains the colour heads. In the other half, channels are mixed at random, and it trains
    the shape heads.

    Args:
        steps (int): Steps of AdamW with warm-up and cosine decay. Defaults to 1000.
        batch_size (int): Images in a step, which are new in every step. Defaults to 64.
        lr (float): Peak learning rate. Defaults to 1e-3.
        seed (int): Seed of weights, images and channel mixes. Defaults to 0.
        config (CLIPVisionConfig, optional): Config of the tower. Defaults to None, which is :func:`tower_config`.
        data (Iterable, optional): Images, colours and shapes of each step. Defaults to None, which is :func:`batches`.
        coloured (float): Share of a batch that keeps its colours. With 1 the tower learns no shapes, with 0 no colours.
            Defaults to 0.5.
        see (Callable, optional): Maps images to what the tower sees of them. Defaults to None, which is all.

    Returns:
        tuple[CLIPVisionModel, AttributeHeads]: The tower in eval mode, and its heads for measurements.
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
    """Linear heads for the colours and shapes of a scene, on the class token and on the patches of each cell.

    Args:
        width (int): Number of channels of the tower.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        # Cells have one class more than presence, for empty cells.
        self.present = nn.ModuleList([nn.Linear(width, len(COLORS)), nn.Linear(width, len(SHAPES))])
        self.in_cell = nn.ModuleList([nn.Linear(width, len(COLORS) + 1), nn.Linear(width, len(SHAPES) + 1)])

    def forward(self, output, grid: int = GRID) -> tuple[list[Tensor], list[Tensor]]:
        """Logits of presence [B, 6] and of each cell [B, grid ** 2, 7], each for colours and for shapes."""
        patches = output.last_hidden_state[:, 1:]
        side = math.isqrt(patches.size(1))
        cells = F.adaptive_avg_pool2d(patches.transpose(1, 2).unflatten(2, (side, side)), grid).flatten(2)
        present = [head(output.pooler_output) for head in self.present]
        return present, [head(cells.transpose(1, 2)) for head in self.in_cell]

    def loss(self, output, colors: Tensor, shapes: Tensor, num_coloured: int) -> Tensor:
        """The sum of the four losses: of colours on the first ``num_coloured`` images, and of shapes on the others."""
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
    """Batches of drawn images.

    Yields:
        tuple: Images [B, 3, S, S], normalised; colours and shapes [B, 9] int64, 0 for an empty cell; masks [B, S, S]
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
    """Convert a PIL image to [3, H, W] float32 in [-1, 1], as the processor of the shapes does."""
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3)
    return (pixels.permute(2, 0, 1).float() - MEAN) / STD


def mix_channels(images: Tensor) -> Tensor:
    """Replace each channel by a random weighted mean of the three channels: [B, 3, H, W], one mix for each image."""
    weight = (2 * torch.randn(len(images), 3, 3)).softmax(dim=-1)
    return torch.einsum('nij,njhw->nihw', weight, images)
