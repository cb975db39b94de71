"""Rates and decay by BackboneLayerDecayConstructor; FSDPOptimWrapper without FSDP.

What the latter does with FSDP is in test_vlm_tuner_distributed.py and test_fsdp2_strategy.py.
"""

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, OPTIM_WRAPPERS, init_default_scope
from torch import nn

import mergemix_mm  # noqa: F401

VIT = dict(
    type='mmpretrain.VisionTransformer',
    arch=dict(embed_dims=16, num_layers=3, num_heads=2, feedforward_channels=32),
    img_size=32,
    patch_size=8,
    out_type='featmap',
)


class Detector(nn.Module):
    """Knows nothing of depths, as the detectors of MMDetection."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.neck = nn.Conv2d(16, 8, 1)
        self.query_embedding = nn.Embedding(4, 8)


def groups(model, **kwargs):
    """name -> parameter group, for AdamW with lr 1 and weight decay 0.1."""
    cfg = dict(optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.1), constructor='BackboneLayerDecayConstructor')
    optim_wrapper = build_optim_wrapper(model, cfg | kwargs)
    return {group['param_name']: group for group in optim_wrapper.optimizer.param_groups}


@pytest.mark.parametrize('scope', ['mmdet', 'mmpretrain'])
def test_rates_fall_towards_the_image_and_are_full_outside_the_backbone(scope):
    init_default_scope(scope)
    found = groups(Detector(MODELS.build(VIT)), paramwise_cfg=dict(layer_decay_rate=0.5))
    rates = {name: group['lr'] for name, group in found.items()}
    expected = {
        'backbone.pos_embed': 0.5**4,
        'backbone.cls_token': 0.5**4,
        'backbone.patch_embed.projection.weight': 0.5**4,
        'backbone.layers.0.attn.qkv.weight': 0.5**3,
        'backbone.layers.1.ffn.layers.0.0.bias': 0.5**2,
        'backbone.layers.2.ln1.weight': 0.5,
        'backbone.ln1.weight': 1.0,
        'neck.weight': 1.0,
        'neck.bias': 1.0,
        'query_embedding.weight': 1.0,
    }
    assert expected.items() <= rates.items()


def test_matrices_decay_and_vectors_and_tokens_do_not():
    found = groups(Detector(MODELS.build(VIT)))
    vectors = ('bias', 'cls_token', 'pos_embed', 'ln1.weight', 'ln2.weight')
    assert {group['weight_decay'] for name, group in found.items() if name.endswith(vectors)} == {0.0}
    assert {group['weight_decay'] for name, group in found.items() if not name.endswith(vectors)} == {0.1}
    assert {group['lr'] for group in found.values()} == {1.0}  # layer_decay_rate is 1 if it is not given.


def test_the_defaults_of_the_weight_decay_can_be_changed():
    found = groups(Detector(MODELS.build(VIT)), paramwise_cfg=dict(norm_decay_mult=0.5, custom_keys={}))
    assert found['backbone.ln1.weight']['weight_decay'] == 0.05
    assert found['backbone.pos_embed']['weight_decay'] == 0.1
    assert found['neck.bias']['weight_decay'] == 0.0


def test_every_trained_parameter_is_in_one_group_and_frozen_ones_in_none():
    model = Detector(MODELS.build(dict(VIT, frozen_stages=1)))
    found = groups(model)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(found) == trained and 'backbone.layers.0.attn.qkv.weight' not in trained
    assert sum(len(group['params']) for group in found.values()) == len(trained)


def test_other_backbones_count_their_layers_themselves():
    arch = dict(depths=[1, 1, 3, 1], channels=[8, 8, 8, 8])
    model = Detector(MODELS.build(dict(type='mmpretrain.ConvNeXt', arch=arch)))
    rates = {name: group['lr'] for name, group in groups(model, paramwise_cfg=dict(layer_decay_rate=0.5)).items()}
    first = rates['backbone.downsample_layers.0.0.weight']
    assert first == min(rates.values()) < rates['backbone.stages.3.0.pointwise_conv1.weight'] < 1.0
    assert rates['neck.weight'] == 1.0


LR_MULT = dict(layer_decay_rate=0.5, custom_keys=dict(backbone=dict(lr_mult=0.1), neck=dict(decay_mult=0.5)))


@pytest.mark.parametrize(
    'model, options, message',
    [
        (lambda: Detector(nn.Linear(2, 2)), {}, 'Detector has a Linear.*get_layer_depth'),
        (lambda: nn.Linear(2, 2), {}, 'Linear has no backbone'),
        (lambda: Detector(MODELS.build(VIT)), dict(paramwise_cfg=LR_MULT), 'lr_mult of backbone'),
        (lambda: Detector(MODELS.build(VIT)), dict(optimizer=dict(type='AdamW', lr=1.0)), 'weight_decay'),
    ],
)
def test_what_cannot_decay_layer_by_layer_is_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        groups(model(), **options)


def test_one_step_moves_each_layer_by_its_rate():
    model = Detector(MODELS.build(VIT))
    cfg = dict(
        optimizer=dict(type='SGD', lr=1.0, weight_decay=0.0),
        constructor='BackboneLayerDecayConstructor',
        paramwise_cfg=dict(layer_decay_rate=0.5),
    )
    optim_wrapper = build_optim_wrapper(model, cfg)
    weights = [model.backbone.layers[i].attn.qkv.weight for i in range(3)]
    before = [weight.detach().clone() for weight in weights]
    optim_wrapper.update_params(sum(weight.sum() for weight in weights))
    for i, (weight, old) in enumerate(zip(weights, before)):
        torch.testing.assert_close(old - weight.detach(), torch.full_like(old, 0.5 ** (3 - i)))


def test_a_model_that_is_not_sharded_is_refused_with_the_ways_out():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    wrapper = OPTIM_WRAPPERS.build(dict(type='FSDPOptimWrapper', optimizer=optimizer, clip_grad=dict(max_norm=1.0)))
    message = r"Linear is not sharded.*FSDP2Strategy.*optim_wrapper\.type='OptimWrapper'"
    with pytest.raises(TypeError, match=message), wrapper.optim_context(model):
        pass
