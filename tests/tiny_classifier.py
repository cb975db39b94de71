"""A MixupClassifier with a tiny vision transformer, and batches for it."""

import numpy as np
import torch
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from tiny_vit import VIT

HEAD = dict(type='VisionTransformerClsHead', num_classes=5, in_channels=16)
MERGEMIX = dict(augments=[dict(type='MergeMix')], probs=[1.0])


def classifier(**kwargs):
    torch.manual_seed(0)
    np.random.seed(0)
    cfg = dict(type='MixupClassifier', backbone=VIT, head=HEAD, train_cfg=MERGEMIX) | kwargs
    model = MODELS.build(cfg)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def batch(size=4, labels=None):
    labels = range(size) if labels is None else labels
    return torch.randn(size, 3, 32, 32), [DataSample().set_gt_label(label) for label in labels]


def soft_cross_entropy(model, images, scores):
    logits = model(images, mode='tensor')
    return -(scores * logits.log_softmax(1)).sum(1).mean()


def forwards(model):
    """Count the images that enter the patch embedding: one entry for each pass of the encoder."""
    passes = []
    model.backbone.patch_embed.register_forward_pre_hook(lambda module, args: passes.append(len(args[0])))
    return passes
