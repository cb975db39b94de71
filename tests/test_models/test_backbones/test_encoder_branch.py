"""A branch shows its encoder the images in its own size, normalisation and precision, and keeps it frozen."""

import pytest
import torch
from mmengine.model import BaseModule
from torch import nn

from mergemix_mm.models.backbones.encoder_branch import EncoderBranch

CLIP = dict(type='transformers.CLIPVisionModel')
CLIP_CONFIG = dict(
    model_type='clip_vision_model',
    hidden_size=8,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    image_size=28,
    patch_size=7,
)


class Seen(nn.Module):
    """Gives the images back as the map, and remembers them."""

    def forward(self, images):
        self.images = images
        return images


class WithBatchNorm(nn.Module):
    """Has statistics that change in every pass of train mode."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 4, stride=4), nn.BatchNorm2d(4), nn.Dropout(0.5))

    def forward(self, images):
        return (self.layers(images),)


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_equal_states(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_images_of_another_size_are_resized():
    images = torch.randn(2, 3, 20, 30)
    encoder = Seen()
    EncoderBranch(encoder, input_size=16)(images)
    expected = nn.functional.interpolate(images, size=(16, 16), mode='bilinear', antialias=True)
    assert torch.equal(encoder.images, expected)


def test_images_of_the_encoders_size_are_not_touched():
    images, encoder = torch.randn(2, 3, 16, 16), Seen()
    EncoderBranch(encoder, input_size=16)(images)
    assert encoder.images is images


@pytest.mark.parametrize('scale', [1, 255])
def test_images_are_normalised_as_if_by_the_encoders_own_mean_and_std(scale):
    pixels = torch.rand(2, 3, 8, 8) * scale
    common, own = ([[0.48, 0.46, 0.41], [0.27, 0.26, 0.28]], [[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    (common_mean, common_std), (mean, std) = (
        [[v * scale for v in values] for values in stats] for stats in (common, own)
    )
    encoder = Seen()
    branch = EncoderBranch(encoder, mean=mean, std=std, common_mean=common_mean, common_std=common_std)
    column = lambda values: torch.tensor(values).view(3, 1, 1)  # noqa: E731
    branch((pixels - column(common_mean)) / column(common_std))
    torch.testing.assert_close(encoder.images, (pixels - column(mean)) / column(std), atol=1e-5, rtol=1e-5)
    assert branch.renormalises
    assert not branch.state_dict()


@pytest.mark.parametrize('own', [{}, dict(mean=[0.5] * 3, std=[0.2] * 3)])
def test_images_in_the_encoders_normalisation_are_not_touched(own):
    images, encoder = torch.randn(2, 3, 8, 8), Seen()
    branch = EncoderBranch(encoder, **own, common_mean=[0.5] * 3, common_std=[0.2] * 3)
    branch(images)
    assert encoder.images is images and not branch.renormalises


def test_a_frozen_encoder_never_changes():
    branch = EncoderBranch(WithBatchNorm())
    before = state(branch)
    for mode in (True, False, True):
        branch.train(mode)
        assert branch.training == mode and not any(m.training for m in branch.encoder.modules())
        found = branch(torch.randn(4, 3, 8, 8, requires_grad=True))
        assert not found.features.requires_grad
    assert not any(p.requires_grad for p in branch.parameters())
    assert_equal_states(state(branch), before)


def test_an_encoder_that_is_not_frozen_trains():
    branch = EncoderBranch(WithBatchNorm(), frozen=False)
    before = state(branch)
    branch(torch.randn(4, 3, 8, 8)).features.sum().backward()
    assert all(p.grad is not None for p in branch.parameters())
    assert not torch.equal(before['encoder.layers.1.running_mean'], branch.encoder.layers[1].running_mean)
    branch.eval()
    assert not branch.encoder.training


def test_an_encoder_that_is_not_frozen_leaves_no_grad_to_its_caller():
    branch = EncoderBranch(WithBatchNorm(), frozen=False)
    with torch.no_grad():
        assert not branch(torch.randn(4, 3, 8, 8)).features.requires_grad


def test_an_encoder_in_bfloat16_gets_its_inputs_so_and_gives_the_dtype_of_the_images():
    encoder = WithBatchNorm()
    expected = EncoderBranch(encoder)(images := torch.randn(2, 3, 8, 8)).features
    seen = []
    encoder.to(torch.bfloat16).layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    found = EncoderBranch(encoder)(images).features
    assert seen == [torch.bfloat16] and found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0.02)


def test_under_autocast_outputs_have_the_dtype_of_the_images():
    branch = EncoderBranch(WithBatchNorm(), frozen=False)
    with torch.autocast('cpu', torch.bfloat16):
        found = branch(torch.randn(2, 3, 8, 8)).features
    assert found.dtype == torch.float32
    found.sum().backward()
    assert branch.encoder.layers[0].weight.grad.abs().sum() > 0


def test_a_config_of_transformers_may_be_a_dict():
    pytest.importorskip('transformers')
    branch = EncoderBranch(CLIP | dict(config=CLIP_CONFIG), input_size=28)
    features, class_token = branch(torch.randn(2, 3, 40, 40))
    assert features.shape == (2, 8, 4, 4) and class_token.shape == (2, 8)


def test_pretrained_encoders_of_transformers_come_from_their_folder(tmp_path):
    pytest.importorskip('transformers')
    saved = EncoderBranch(CLIP | dict(config=CLIP_CONFIG))
    saved.encoder.save_pretrained(tmp_path)
    cfg = dict(type='transformers.CLIPVisionModel.from_pretrained', pretrained_model_name_or_path=str(tmp_path))
    loaded = EncoderBranch(cfg)
    loaded.init_weights()
    assert_equal_states(state(loaded), state(saved))
    images = torch.randn(1, 3, 28, 28)
    assert torch.equal(loaded(images).features, saved(images).features)


@pytest.mark.parametrize('given_as', ['dict', 'module'])
def test_only_encoders_of_openmmlab_that_are_built_here_are_initialised(given_as, tmp_path):
    from mmpretrain.registry import MODELS

    cfg = dict(type='ResNet', depth=18, base_channels=2)
    trained = MODELS.build(cfg)
    torch.save(dict(state_dict=trained.state_dict()), tmp_path / 'resnet.pth')
    cfg['init_cfg'] = dict(type='Pretrained', checkpoint=str(tmp_path / 'resnet.pth'))
    branch = EncoderBranch(cfg if given_as == 'dict' else MODELS.build(cfg))
    before = state(branch.encoder)
    branch.init_weights()
    assert_equal_states(state(branch.encoder), trained.state_dict() if given_as == 'dict' else before)
    assert not torch.equal(before['conv1.weight'], trained.conv1.weight)


@pytest.mark.parametrize('library', ['transformers', 'timm', 'mmpretrain'])
def test_the_init_cfg_of_a_model_leaves_loaded_encoders_alone(library, tmp_path):
    pytest.importorskip('timm' if library == 'mmpretrain' else library)
    cfg = CLIP | dict(config=CLIP_CONFIG)
    if library != 'transformers':
        import timm

        cfg = dict(model_name='vit_tiny_patch16_224', embed_dim=8, depth=1, num_heads=2)
        torch.save(timm.create_model(**cfg).state_dict(), tmp_path / 'vit.pth')
        cfg['checkpoint_path'] = str(tmp_path / 'vit.pth')
        cfg['type'] = 'TIMMBackbone' if library == 'mmpretrain' else 'timm.create_model'
    model = BaseModule(init_cfg=dict(type='Constant', layer='Linear', val=7.0))
    model.branch, model.head = EncoderBranch(cfg), nn.Linear(2, 2)
    before = state(model.branch)
    model.init_weights()
    assert_equal_states(state(model.branch), before)
    assert (model.head.weight == 7).all()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(input_size=0), 'input_size=0'),
        (dict(input_size=(224, 224)), r'input_size=\(224, 224\)'),
        (dict(mean=[0.5] * 3, std=[0.5] * 3), 'need mean and std of MultiBackbone'),
        (dict(input_size=True), 'input_size=True must be an integer >= 1'),
        (
            dict(mean=[float('nan')] * 3, std=[0.5] * 3, common_mean=[0] * 3, common_std=[1] * 3),
            r'mean=\[nan, .* three',
        ),
        (dict(mean=[0.5] * 3, common_mean=[0] * 3, common_std=[1] * 3), 'std=None must be three numbers'),
        (dict(mean=[0.5], std=[0.5] * 3, common_mean=[0] * 3, common_std=[1] * 3), r'mean=\[0.5\] must be three'),
        (dict(mean=[0] * 3, std=[0] * 3, common_mean=[0] * 3, common_std=[1] * 3), r'std=\[0, 0, 0\].*above 0'),
    ],
)
def test_arguments_that_cannot_be_used_are_errors(options, message):
    with pytest.raises(ValueError, match=rf'encoders\[1\]: .*{message}|encoders\[1\]: {message}'):
        EncoderBranch(Seen(), **options, name='encoders[1]')
