"""Several encoders side by side: their order, what is refused, and life inside the models of OpenMMLab."""

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

from mergemix_mm.models import MultiBackbone, TokenMap

VIT = dict(
    type='mmpretrain.VisionTransformer',
    arch=dict(embed_dims=8, num_layers=1, num_heads=2, feedforward_channels=16),
    img_size=32,
    patch_size=8,
    out_type='raw',
)
CONVNEXT = dict(
    type='mmpretrain.ConvNeXt',
    arch=dict(depths=[1, 1, 1, 1], channels=[4, 4, 8, 12]),
    norm_cfg=dict(type='LN2d', eps=1e-6),
    gap_before_final_norm=False,
)
RESNET = dict(type='mmpretrain.ResNet', depth=18, base_channels=2)
STATS = dict(mean=[0.48, 0.46, 0.41], std=[0.27, 0.26, 0.28])


def two_encoders(**second):
    return dict(
        type='MultiBackbone',
        **STATS,
        encoders=[
            dict(encoder=VIT, input_size=32),
            dict(encoder=CONVNEXT, input_size=64, mean=[0.5] * 3, std=[0.5] * 3) | second,
        ],
    )


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_every_encoder_sees_the_images_at_its_size_and_answers_in_its_place():
    backbone = MODELS.build(two_encoders())
    vit, convnext = backbone(torch.randn(2, 3, 48, 48))
    assert isinstance(vit, TokenMap) and isinstance(convnext, TokenMap)
    assert vit.features.shape == (2, 8, 4, 4) and vit.class_token.shape == (2, 8)
    assert convnext.features.shape == (2, 12, 2, 2) and convnext.class_token is None


def test_it_compiles_and_keeps_the_cells():
    backbone, images = MODELS.build(two_encoders()), torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        for found, expected in zip(torch.compile(backbone, backend='eager')(images), backbone(images), strict=True):
            torch.testing.assert_close(found.features, expected.features)
            assert found.cell == expected.cell is not None


def test_a_module_and_a_config_go_together():
    module = MODELS.build(RESNET)
    backbone = MultiBackbone([dict(encoder=module), dict(encoder=VIT)])
    assert backbone.branches[0].encoder is module
    assert [m.features.shape[1] for m in backbone(torch.randn(1, 3, 32, 32))] == [16, 8]


def test_the_config_of_an_encoder_is_left_as_it_is():
    cfg = two_encoders()
    before = repr(cfg)
    MODELS.build(cfg)
    assert repr(cfg) == before


def classifier(**neck):
    neck = dict(type='EmbeddingMixNeck', in_channels=[8, 12], out_channels=16, output='featmap') | neck
    model = MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=two_encoders(),
            neck=[neck, dict(type='GlobalAveragePooling')],
            head=dict(type='LinearClsHead', num_classes=3, in_channels=16),
        )
    )
    model.init_weights()
    return model


def train_steps(model, images, samples, steps=1):
    optimizer = dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=0.1)
    wrapper = build_optim_wrapper(model, dict(type='OptimWrapper', optimizer=optimizer))
    model.train()
    batch = dict(inputs=images, data_samples=samples)
    return [model.train_step(batch, wrapper)['loss'].item() for _ in range(steps)]


def test_a_classifier_trains_on_frozen_encoders_which_do_not_change():
    torch.manual_seed(0)
    model = classifier()
    before = state(model)
    images, samples = torch.randn(6, 3, 48, 48), [DataSample().set_gt_label(i % 3) for i in range(6)]
    losses = train_steps(model, images, samples, steps=10)
    assert losses[-1] < 0.7 * losses[0]
    learnt = {name for name in before if not name.startswith('backbone.')}
    assert changed(before, state(model)) == learnt and learnt
    model.eval()
    predictions = model.predict(images, samples)
    assert len(predictions) == 6 and predictions[0].pred_score.shape == (3,)


def test_frozen_batch_norm_keeps_its_statistics_in_training_and_another_does_not():
    torch.manual_seed(0)
    encoders = [dict(encoder=RESNET), dict(encoder=RESNET | dict(base_channels=4), frozen=False)]
    model = MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='MultiBackbone', encoders=encoders),
            neck=[
                dict(type='EmbeddingMixNeck', in_channels=[16, 32], out_channels=8, output='featmap'),
                dict(type='GlobalAveragePooling'),
            ],
            head=dict(type='LinearClsHead', num_classes=3, in_channels=8),
        )
    )
    before = state(model)
    assert any('running_mean' in name for name in before)
    train_steps(model, torch.randn(4, 3, 64, 64), [DataSample().set_gt_label(0)] * 4)
    assert changed(before, state(model)) == {name for name in before if not name.startswith('backbone.branches.0.')}


def test_encoders_of_mmpretrain_get_the_weights_of_their_init_cfg(tmp_path):
    trained = MODELS.build(RESNET)
    torch.save(dict(state_dict=trained.state_dict()), tmp_path / 'resnet.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'resnet.pth'))
    backbone = MODELS.build(
        dict(type='MultiBackbone', encoders=[dict(encoder=VIT), dict(encoder=RESNET | dict(init_cfg=init_cfg))])
    )
    backbone.init_weights()
    assert not changed(trained.state_dict(), state(backbone.branches[1].encoder))
    assert backbone.branches[0].encoder.pos_embed.std() > 0.01, 'drawn: it is zero when the model is built'


def test_a_checkpoint_of_the_whole_has_the_last_word(tmp_path):
    trained = MODELS.build(two_encoders())
    torch.save(dict(state_dict=trained.state_dict()), tmp_path / 'whole.pth')
    backbone = MODELS.build(
        two_encoders() | dict(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'whole.pth')))
    )
    backbone.init_weights()
    assert not changed(trained.state_dict(), state(backbone))


def test_a_detector_trains_on_several_encoders():
    pytest.importorskip('mmdet')
    from mmdet.registry import MODELS as DETECTORS
    from mmdet.structures import DetDataSample
    from mmdet.utils import register_all_modules
    from mmengine.structures import InstanceData

    register_all_modules(init_default_scope=True)
    torch.manual_seed(0)
    model = DETECTORS.build(
        dict(
            type='FCOS',
            backbone=two_encoders(),
            neck=dict(
                type='EmbeddingMixNeck',
                in_channels=[8, 12],
                out_channels=16,
                output='featmap',
                grid=8,
                scales=(1, 0.5),
            ),
            bbox_head=dict(
                type='FCOSHead',
                num_classes=2,
                in_channels=16,
                feat_channels=16,
                stacked_convs=1,
                strides=[8, 16],
                regress_ranges=((-1, 32), (32, 1e8)),
                norm_cfg=None,
            ),
            train_cfg=None,
            test_cfg=dict(nms_pre=10),
        )
    )
    model.init_weights()
    sample = DetDataSample(metainfo=dict(img_shape=(64, 64)))
    sample.gt_instances = InstanceData(bboxes=torch.tensor([[4.0, 4, 40, 40]]), labels=torch.tensor([1]))
    before = state(model.backbone)
    losses = model(torch.randn(2, 3, 64, 64), [sample, sample], mode='loss')
    sum(losses.values()).backward()
    assert model.neck.projection[0].weight.grad.abs().sum() > 0
    assert not changed(before, state(model.backbone))


@pytest.mark.parametrize(
    ('encoders', 'message'),
    [
        ([], r'encoders=\[\] must be a list of at least one'),
        (dict(encoder=VIT), 'must be a list of at least one'),
        ([VIT], r'encoders\[0\] must be a dict with encoder='),
        ([dict(encoder=VIT), dict(encoder='resnet')], r'encoders\[1\] must be a dict with encoder='),
        ([dict(encoder=VIT, size=224)], r"encoders\[0\] has unknown keys \['size'\]; allowed .*'input_size'"),
        (
            [dict(encoder=VIT), dict(encoder=RESNET), dict(encoder=dict(VIT), frozen=False)],
            r'encoders\[0\] and encoders\[2\] are the same',
        ),
        ([dict(encoder=VIT, input_size=0)], r'encoders\[0\]: input_size=0'),
    ],
)
def test_encoders_that_cannot_be_used_are_errors(encoders, message):
    with pytest.raises(ValueError, match=message):
        MultiBackbone(encoders)


def test_the_same_module_twice_is_an_error_at_any_resolution():
    module = MODELS.build(RESNET)
    with pytest.raises(ValueError, match=r'encoders\[0\] and encoders\[1\] are the same'):
        MultiBackbone([dict(encoder=module, input_size=32), dict(encoder=module, input_size=64)])


def test_one_config_at_two_resolutions_is_two_encoders():
    backbone = MultiBackbone([dict(encoder=VIT, input_size=32), dict(encoder=VIT, input_size=64)])
    assert [m.features.shape[-1] for m in backbone(torch.randn(1, 3, 32, 32))] == [4, 8]


def test_an_error_while_running_names_the_encoder():
    backbone = MultiBackbone([dict(encoder=RESNET), dict(encoder=VIT)])
    with pytest.raises(ValueError, match=r'MultiBackbone: encoders\[1\] \(`VisionTransformer`\): images of 36 x 36'):
        backbone(torch.randn(1, 3, 36, 36))


def test_images_that_do_not_fit_an_error_names_the_padding_that_fits_all_encoders():
    coarse = dict(VIT, patch_size=12, img_size=48)
    backbone = MultiBackbone([dict(encoder=CONVNEXT), dict(encoder=VIT), dict(encoder=coarse)])
    with pytest.raises(ValueError, match=r'encoders\[1\].* 36 x 48 .* 8 x 8 .*data_preprocessor.pad_size_divisor=24'):
        backbone(torch.zeros(1, 3, 36, 48))
    with pytest.raises(ValueError, match=r'encoders\[2\].* 32 x 48 .* 12 x 12 .*data_preprocessor.pad_size_divisor=24'):
        backbone(torch.zeros(1, 3, 32, 48))
    assert [m.features.shape[-2:] for m in backbone(torch.zeros(1, 3, 48, 72))] == [(1, 2), (6, 9), (4, 6)]


def test_the_cells_of_maps_are_known_in_pixels_of_the_images_that_come_in():
    backbone = MultiBackbone(
        [dict(encoder=VIT), dict(encoder=dict(VIT, patch_size=16), input_size=32), dict(encoder=CONVNEXT)]
    )
    # A ConvNeXt rounds down where it halves: its map of 1 x 2 ends before images of 40 x 72 do.
    plain, resized, convnext = backbone(torch.zeros(1, 3, 40, 72))
    assert plain.features.shape[-2:] == (5, 9) and plain.cell == (8, 8)
    assert resized.features.shape[-2:] == (2, 2) and resized.cell == (20, 36)
    assert convnext.features.shape[-2:] == (1, 2) and convnext.cell == (32, 32)
    features, class_token = plain
    assert class_token.shape == (1, 8) and TokenMap(features).cell is None
