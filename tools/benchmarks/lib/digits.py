"""Trains small classifiers on scikit-learn's digits in a plain loop, for benchmarks that need many short runs.

Model and data are those of a config. The loop replaces MMEngine's Runner, whose logging and checkpoints would take
longer than runs of a minute. Batches and weights depend only on the seed, so that two arms with one seed differ only in
their augment.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
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
        masks (Tensor, optional): [N, H, W] bool, True on the ink of the digit.
        source (Tensor, optional): [N] int64, the digit's place among all 1,797, which names it in every split.
    """

    images: Tensor
    labels: Tensor
    masks: Tensor | None = None
    source: Tensor | None = None

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
        labels, source = (torch.tensor([sample[key] for sample in samples]) for key in ('gt_label', 'source_index'))
        return cls((images - mean) / std, labels, masks, source)


def build_classifier(augment: dict | None, prob: float, seed: int, options: dict | None = None) -> nn.Module:
    """The `MixupClassifier` of the config with its first weights, as a Runner builds it.

    Args:
        augment (dict, optional): Config of a batch augment (BATCH_AUGMENTS). None does not mix.
        prob (float): Share of mixed batches in [0, 1].
        seed (int): Of the weights and of the mixes.
        options (dict, optional): Changes of the config, as ``--cfg-options`` of `tools/train.py` takes them, e.g.
            ``{'model.clean_weight': 1.0}``. Defaults to None.
    """
    cfg = Config.fromfile(config_path(CONFIG))
    cfg.merge_from_dict(options or {})
    cfg.model.train_cfg = None if augment is None else dict(augments=[augment], probs=[prob])
    seed_mixes(seed)
    MMLogger.get_current_instance().setLevel('WARNING')  # It would log how every weight was initialised.
    model = MODELS.build(cfg.model)
    model.init_weights()
    return model


def seed_mixes(seed: int) -> None:
    """Seed what mixers draw from: torch, and numpy for augments of MMPretrain and for the choice among augments."""
    torch.manual_seed(seed)
    np.random.seed(seed)


def train(
    model: nn.Module,
    data: Digits,
    steps: int,
    seed: int,
    batch_size: int = 32,
    lr: float = 2e-3,
    shift: int = 8,
    show_ink: Callable[[Tensor], None] | None = None,
) -> None:
    """Train by AdamW with warm-up and cosine decay. Each image is shifted by up to ``shift`` pixels.

    Args:
        model (nn.Module): Trained in place.
        data (Digits): The training images.
        steps (int): Gradient steps.
        seed (int): Of the order and of the shifts.
        batch_size (int): Images per step. Defaults to 32.
        lr (float): Highest learning rate. Defaults to 2e-3.
        shift (int): Defaults to 8.
        show_ink (Callable, optional): Called before each step with the masks of its images [B, H, W] bool, shifted as
            the images are. Defaults to None.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    schedule = warmup_cosine(optimizer, steps)
    order = torch.Generator().manual_seed(seed)
    images = data.images if show_ink is None else torch.cat([data.images, data.masks[:, None]], dim=1)
    # The clean loss adds to the gradient, and clipping, unlike AdamW, is not blind to its scale.
    max_norm = 5.0 * (1 + model.clean_weight)
    model.train()
    for _ in range(steps):
        chosen = torch.randperm(len(data.labels), generator=order)[:batch_size]
        shifted = _shift(images[chosen], shift, order)
        if show_ink is not None:
            show_ink(shifted[:, 3].bool())
        samples = [DataSample().set_gt_label(int(label)) for label in data.labels[chosen]]
        loss, _ = model.parse_losses(model.loss(shifted[:, :3], samples))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)
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
