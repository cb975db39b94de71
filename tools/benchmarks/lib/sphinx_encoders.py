"""Two frozen encoders that need each other, for the benchmark of SPHINX: one sees no colours, the other no shapes."""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import torch
from mmpretrain.models.utils import build_2d_sincos_position_embedding
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from mergemix_mm.functional import resize
from mergemix_mm.models.backbones.encoder_branch import EncoderBranch
from mergemix_mm.toy import ShapesTaskDataset
from mergemix_mm.utils.files import replaced_folder

from .measure import markdown_table
from .tower import labelled, pretrain_tower

SIZE, PATCH = 48, 8
WIDTH = 64
GRIDS = (3, 6)  # Things of 16 and of 8 pixels: both views of the study of small things.
TRAIN_SEED, TEST_SEED = 10, 11


def grey(images: Tensor) -> Tensor:
    """The mean of the channels [B, 3, H, W]: all shapes, and of the colours no more than how bright they are."""
    return images.mean(dim=1, keepdim=True).expand_as(images)


def blurred(images: Tensor) -> Tensor:
    """One tone for about every patch [B, 3, H, W]: the colours and roughly where they are."""
    tones = resize(images, tuple(side // PATCH for side in images.shape[-2:]))
    return resize(tones, tuple(images.shape[-2:]))


# Name -> what it sees, and the share of the images in pre-training that keep their colours.
ENCODERS = dict(grey=(grey, 0.0), colour=(blurred, 1.0))


class SeeingEncoder(nn.Module):
    """A tower that sees a part of what is in an image, and knows where its patches are; gives a map [B, C, h, w].

    Pre-training asks what is in a cell and not where it is, so the tower forgets the places. A fixed embedding of them
    is added to its output.

    Args:
        tower (CLIPVisionModel): Sees it.
        name (str): One of `ENCODERS`.
    """

    def __init__(self, tower: CLIPVisionModel, name: str) -> None:
        super().__init__()
        self.branch, self.see = EncoderBranch(tower), ENCODERS[name][0]
        places = build_2d_sincos_position_embedding(SIZE // PATCH, WIDTH)
        self.register_buffer('places', places.transpose(1, 2).unflatten(2, (SIZE // PATCH, -1)))

    def forward(self, images: Tensor) -> Tensor:
        return self.branch(self.see(images)).features + self.places


def scenes(steps: int, batch_size: int, seed: int, grids: tuple[int, ...] = GRIDS) -> Iterator[tuple[Tensor, ...]]:
    """Images, colours and shapes of so many batches; large and small things take turns."""
    sets = [ShapesTaskDataset('caption', length=steps * batch_size, image_size=SIZE, grid=g, seed=seed) for g in grids]
    for step in range(steps):
        dataset = sets[step % len(sets)]
        indices = range(step * batch_size, (step + 1) * batch_size)
        yield labelled([dataset.get_data_info(i) for i in indices], dataset.grid)


def pretrain_encoders(folder: Path, steps: int, num_images: int = 512) -> None:
    """Train both, write them to a folder that is there when both are, and print how well they read new images."""
    lines = []
    sizes = dict(hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=3, num_attention_heads=4)
    with replaced_folder(folder) as part:
        for name, (see, coloured) in ENCODERS.items():
            config = CLIPVisionConfig(image_size=SIZE, patch_size=PATCH, **sizes)
            data = scenes(steps, 64, TRAIN_SEED)
            tower, heads = pretrain_tower(steps, config=config, data=data, coloured=coloured, see=see)
            tower.save_pretrained(part / name)
            for grid in GRIDS:
                images, *labels = next(scenes(1, num_images, TEST_SEED, (grid,)))
                with torch.no_grad():
                    logits = heads(tower(see(images)), grid)[1][int(not coloured)]
                label = labels[int(not coloured)]
                right = (logits.argmax(-1) == label)[label > 0].float().mean().item()
                lines.append([name, 'colours' if coloured else 'shapes', f'{SIZE // grid} px', f'{100 * right:.1f}'])
    print(markdown_table(('encoder', 'reads', 'cells of', 'right %'), lines), end='\n\n', flush=True)


@lru_cache(maxsize=4)
def load_encoder(folder: Path, name: str) -> SeeingEncoder:
    """One of `pretrain_encoders`; nobody may train it."""
    return SeeingEncoder(CLIPVisionModel.from_pretrained(folder / name), name)
