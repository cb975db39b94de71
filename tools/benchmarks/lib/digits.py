"""Trains small classifiers on scikit-learn's digits in a plain loop, for benchmarks that need many short runs.

Model and data are those of a config. The loop replaces MMEngine's Runner, whose logging and checkpoints would take
longer than runs of a minute. Batches and weights depend only on the seed, so that two arms with one seed differ only in
their augment.
"""

from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from mergemix_mm import config_path

from .loops import warmup_cosine

CONFIG = 'mergemix/vit-tiny_1xb32-mergemix-coslr-230e_cluttered-digits.py'


@dataclass
class Digits:
    """One split as tensors.

    Args:
        images (Tensor): [N, 3, H, W], normalised as in the config.
        labels (Tensor): [N] int64.
        masks (Tensor): [N, H, W] bool, True on the ink of the digit.
    """

    images: Tensor
    labels: Tensor
    masks: Tensor

    @classmethod
    @lru_cache(maxsize=2)  # All arms of a seed share its two splits.
    def load(cls, split: str, **kwargs) -> 'Digits':
        """Load a split of `DigitsDataset` with the given arguments, normalised as in the config."""
        dataset = DATASETS.build(dict(type='DigitsDataset', split=split, **kwargs))
        samples = [dataset.get_data_info(i) for i in range(len(dataset))]
        images = torch.stack([torch.from_numpy(sample['img']).permute(2, 0, 1) for sample in samples]).float()
        settings = Config.fromfile(config_path(CONFIG)).data_preprocessor
        mean, std = (torch.tensor(settings[key]).view(-1, 1, 1) for key in ('mean', 'std'))
        masks = torch.stack([torch.from_numpy(sample['gt_mask']) for sample in samples])
        labels = torch.tensor([sample['gt_label'] for sample in samples])
        return cls((images - mean) / std, labels, masks)


def build_classifier(augment: dict | None, prob: float, seed: int) -> nn.Module:
    """The `MixupClassifier` of the config with one augment (a config of BATCH_AUGMENTS).

    The weights are those that torch draws when it builds the modules, so the position embedding starts at zero. The
    Runner would call ``init_weights()``, which draws the position embedding. From 200 images, a digit that can be
    anywhere is learnt far better without it.
    """
    cfg = deepcopy(Config.fromfile(config_path(CONFIG)).model)
    cfg.train_cfg = None if augment is None else dict(augments=[augment], probs=[prob])
    torch.manual_seed(seed)
    np.random.seed(seed)  # Augments of MMPretrain, and the choice among them, draw from numpy.
    return MODELS.build(cfg)


def train(
    model: nn.Module, data: Digits, steps: int, seed: int, batch_size: int = 32, lr: float = 2e-3, shift: int = 8
) -> None:
    """Train by AdamW with warm-up and cosine decay. Each image is shifted by up to ``shift`` pixels."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    schedule = warmup_cosine(optimizer, steps)
    order = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(steps):
        chosen = torch.randperm(len(data.labels), generator=order)[:batch_size]
        images = _shift(data.images[chosen], shift, order)
        samples = [DataSample().set_gt_label(int(label)) for label in data.labels[chosen]]
        loss = model.loss(images, samples)['loss']
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()


@torch.no_grad()
def predict(model: nn.Module, images: Tensor, batch_size: int = 512) -> Tensor:
    """Class probabilities [N, num_classes]."""
    model.eval()
    return torch.cat([model(chunk, mode='tensor').softmax(dim=1) for chunk in images.split(batch_size)])


def _shift(images: Tensor, limit: int, generator: torch.Generator) -> Tensor:
    """Shift each image by its own whole number of pixels. New pixels repeat the border."""
    size = images.size(-1)
    padded = nn.functional.pad(images, [limit] * 4, mode='replicate')
    steps = torch.arange(size)
    rows, cols = (torch.randint(2 * limit + 1, (len(images), 1), generator=generator) + steps for _ in range(2))
    batch = torch.arange(len(images))[:, None, None]
    return padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2)
