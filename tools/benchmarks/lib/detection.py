"""Trains small encoders as classifiers, and detectors that start from them, on drawn shapes in plain loops.

Models and data are those of configs/transfer. The loops replace MMEngine's Runner, whose logging and checkpoints would
take longer than runs of a minute.
"""

import contextlib
import io
from collections.abc import Sequence
from copy import deepcopy
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, METRICS, MODELS, init_default_scope
from torch import Tensor, nn

from mergemix_mm import config_path
from mergemix_mm.toy.drawing import draw_clutter, draw_thing, to_uint8
from mergemix_mm.toy.scenes import COLORS, SHAPES

from .digits import Digits
from .loops import warmup_cosine

CONFIG = 'transfer/tiny-mask-rcnn-vit_1xb16-scratch-coslr-6e_shapes.py'
MIX_CONFIG = 'transfer/tiny-mask-rcnn-vit-convnext_1xb16-scratch-coslr-6e_shapes.py'
CROP = 48  # Side in pixels of the images of classifiers, which is half of that of detectors.
GRIDS = (1, 2, 3)  # Cells of 48, 24 and 16 pixels, so that things are as large as in the images of detectors.


@lru_cache(maxsize=2)
def load_config(path: str) -> Config:
    """A config of this project, which is cached and must not be changed."""
    return Config.fromfile(config_path(path))


def encoder_config(name: str) -> dict:
    """The small ``'ViT'`` or ``'ConvNeXt'`` of the configs, for the images of a classifier."""
    vit, convnext = (deepcopy(entry.encoder) for entry in load_config(MIX_CONFIG).model.backbone.encoders)
    if name == 'ViT':
        return dict(vit, img_size=CROP, out_type='cls_token')
    return dict(convnext, gap_before_final_norm=True)


def build_classifier(name: str, augment: dict | None, seed: int) -> nn.Module:
    """A `MixupClassifier` of shapes that mixes half of its batches by an augment; None does not mix."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    head = 'VisionTransformerClsHead' if name == 'ViT' else 'LinearClsHead'
    loss = dict(type='mmpretrain.LabelSmoothLoss', label_smooth_val=0.1, mode='original')
    return MODELS.build(
        dict(
            type='MixupClassifier',
            data_preprocessor=dict(type='mmpretrain.ClsDataPreprocessor', num_classes=len(SHAPES)),
            backbone=encoder_config(name),
            head=dict(type=f'mmpretrain.{head}', num_classes=len(SHAPES), in_channels=64, loss=loss),
            train_cfg=None if augment is None else dict(augments=[augment], probs=[0.5]),
        )
    )


def draw_crops(length: int, seed: int) -> Digits:
    """Images [N, 3, 48, 48] of one shape each, normalised as those of detectors, and the labels of the shapes."""
    settings = load_config(CONFIG).model.data_preprocessor
    mean, std = (torch.tensor(settings[key]).view(-1, 1, 1) for key in ('mean', 'std'))
    rng = np.random.default_rng((seed, CROP))
    images, labels = [], rng.integers(len(SHAPES), size=length)
    for label in labels:
        grid = GRIDS[rng.integers(len(GRIDS))]
        canvas = draw_clutter(CROP, rng)
        cell = tuple(rng.integers(grid, size=2))
        draw_thing(canvas, COLORS[rng.integers(len(COLORS))], SHAPES[label], cell, grid, rng)
        images.append(torch.from_numpy(to_uint8(canvas)).permute(2, 0, 1))
    return Digits((torch.stack(images).float() - mean) / std, torch.from_numpy(labels), None)


def build_detector(encoders: Sequence[tuple[str, Path]], mixed: bool, num_merge: float = 0.0) -> nn.Module:
    """The Mask R-CNN of the config, started from encoders of classifiers.

    Args:
        encoders (Sequence[tuple[str, Path]]): Kind and weights of each encoder. Without any, a ViT starts from scratch.
        mixed (bool): Whether the encoders are frozen in a `MultiBackbone`, with an `EmbeddingMixNeck` before the simple
            pyramid. Otherwise the only encoder is a ViT, which trains.
        num_merge (float): Share of the patches that a ViT merges. Defaults to 0.0.
    """
    init_default_scope('mmdet')
    MMLogger.get_current_instance().setLevel('WARNING')  # It would log how every weight was initialised.
    cfg = deepcopy(load_config(MIX_CONFIG if mixed else CONFIG).model)
    if mixed:
        both = dict(zip(('ViT', 'ConvNeXt'), cfg.backbone.encoders, strict=True))
        cfg.backbone.encoders = [dict(both[name], frozen=True) for name, _ in encoders]
        cfg.neck[0].in_channels = [64] * len(encoders)
    if num_merge:
        cfg.backbone.update(type='ToMeVisionTransformer', num_merge=num_merge)
    model = MODELS.build(cfg)
    model.init_weights()
    targets = [branch.encoder for branch in model.backbone.branches] if mixed else [model.backbone] * len(encoders)
    for target, (_, path) in zip(targets, encoders, strict=True):
        target.load_state_dict(torch.load(path, weights_only=True))  # MMPretrain resizes the position embedding.
    return model


def open_dataset(folder: Path, split: str, num_train: int, num_val: int):
    """A split of the drawn set with the pipeline of the config."""
    init_default_scope('mmdet')
    cfg = deepcopy(load_config(CONFIG)[f'{split}_dataloader'].dataset)
    # Squares of one size, as docs/benchmarks/detection.md says; the pipelines do not resize them.
    cfg.update(folder=str(folder), num_train=num_train, num_val=num_val, varied=False)
    return DATASETS.build(cfg)


def train_detector(model: nn.Module, dataset, steps: int, seed: int, batch_size: int = 8) -> None:
    """Train with the optimizer of the config and the schedule of :func:`warmup_cosine`."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    optim_wrapper = build_optim_wrapper(model, load_config(CONFIG).optim_wrapper)
    schedule = warmup_cosine(optim_wrapper.optimizer, steps)
    order = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(steps):
        chosen = torch.randint(len(dataset), (batch_size,), generator=order)
        model.train_step(pseudo_collate([dataset[int(i)] for i in chosen]), optim_wrapper)
        schedule.step()


@torch.no_grad()
def evaluate(model: nn.Module, dataset, folder: Path, batch_size: int = 16) -> dict[str, float]:
    """Test on the val split. ``bbox`` and ``segm`` are the mAP of COCO in percent."""
    with contextlib.redirect_stdout(io.StringIO()):
        metric = METRICS.build(
            dict(
                type='CocoMetric',
                _scope_='mmdet',
                ann_file=str(folder / 'annotations/val.json'),
                metric=['bbox', 'segm'],
            )
        )
        metric.dataset_meta = dataset.metainfo
        model.eval()
        for start in range(0, len(dataset), batch_size):
            batch = [dataset[i] for i in range(start, min(start + batch_size, len(dataset)))]
            samples = model.test_step(pseudo_collate(batch))
            metric.process({}, [sample.to_dict() for sample in samples])
        results = metric.evaluate(len(dataset))
    return {key: 100 * results[f'coco/{key}_mAP'] for key in ('bbox', 'segm')}


def random_batch(size: int, batch_size: int) -> Tensor:
    """Images for timing."""
    return torch.randn(batch_size, 3, size, size)
