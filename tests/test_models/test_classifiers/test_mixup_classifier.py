"""MixupClassifier: mixing inside loss(), with every kind of augment, label and head."""

import warnings
from copy import deepcopy

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.optim import OptimWrapper
from mmpretrain.registry import BATCH_AUGMENTS, MODELS
from mmpretrain.structures import DataSample
from tiny_classifier import HEAD, batch, classifier, soft_cross_entropy
from tiny_vit import VIT

from mergemix_mm.models.batch_augments import Mixer, MixResult

RESNET = dict(
    backbone=dict(type='ResNet', depth=18),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=5, in_channels=512),
)


@pytest.mark.parametrize('name', ['MergeMix', 'Mixup', 'CutMix', 'ResizeMix'])
def test_loss_is_that_of_the_mixed_images_and_labels(name):
    augment = dict(type=name) if name == 'MergeMix' else dict(type=name, alpha=1.0)
    model, (images, samples) = classifier(train_cfg=dict(augments=augment)), batch()
    before = images.clone()
    losses = model.loss(images, samples)
    result = model.mix_result
    expected = soft_cross_entropy(model, result.images, result.mix_scores(torch.eye(5)[:4]))
    torch.testing.assert_close(losses['loss'], expected)
    torch.testing.assert_close(losses['ratio_mean'], result.ratio.mean())
    assert torch.equal(images, before)
    assert not any('gt_score' in sample for sample in samples)
    assert not torch.equal(result.images, images)


def test_a_mixer_that_the_classifier_does_not_know_scores_with_its_backbone():
    @BATCH_AUGMENTS.register_module(force=True)
    class ScoredMixup(Mixer):
        needs_encoder = True

        def mix(self, images, encoder=None, generator=None, partner=None):
            partner = torch.arange(len(images)).roll(1)
            ratio = encoder(images)[0].mean(1).sigmoid()
            weight = ratio.view(-1, 1, 1, 1)
            return MixResult(weight * images + (1 - weight) * images[partner], partner, ratio, clean=images)

    model, (images, samples) = classifier(train_cfg=dict(augments=dict(type='ScoredMixup'))), batch()
    losses, result = model.loss(images, samples), model.mix_result
    torch.testing.assert_close(result.ratio, model.backbone(images)[0].mean(1).sigmoid())
    assert not result.ratio.requires_grad and len(result.ratio.unique()) == 4
    expected = soft_cross_entropy(model, result.images, result.mix_scores(torch.eye(5)[:4]))
    torch.testing.assert_close(losses['loss'], expected)


def test_logged_loss_is_the_heads_loss_alone():
    model = classifier()
    total, log = model.parse_losses(model.loss(*batch()))
    torch.testing.assert_close(total, log['loss'])
    assert 0 <= log['ratio_mean'] <= 1
    total.backward()


def test_base_augment_adds_the_loss_of_a_second_batch():
    model = classifier(base_augment=dict(type='Mixup', alpha=0.8))
    losses = model.loss(*batch())
    assert set(losses) == {'loss', 'base_loss', 'ratio_mean'}
    assert not torch.equal(losses['loss'], losses['base_loss'])
    total, _ = model.parse_losses(losses)
    torch.testing.assert_close(total, losses['loss'] + losses['base_loss'])


def test_the_draw_follows_the_probabilities_and_the_rest_stays_unmixed():
    augments = [dict(type='MergeMix'), dict(type='CutMix', alpha=1.0)]
    model, (images, samples) = classifier(train_cfg=dict(augments=augments, probs=[0.4, 0.3])), batch()
    kinds = []
    for _ in range(200):
        result = model.mix(images)
        kinds.append('none' if result is None else 'cutmix' if result.mask is None else 'mergemix')
    shares = [kinds.count(kind) / 200 for kind in ('mergemix', 'cutmix', 'none')]
    assert shares == pytest.approx([0.4, 0.3, 0.3], abs=0.1)

    unmixed = classifier(train_cfg=dict(augments=augments, probs=[0.0, 0.0]))
    losses = unmixed.loss(images, samples)
    assert unmixed.mix_result is None
    assert losses['ratio_mean'] == 1
    torch.testing.assert_close(losses['loss'], soft_cross_entropy(unmixed, images, torch.eye(5)[:4]))


def test_a_batch_of_one_trains_unmixed():
    model = classifier(base_augment=dict(type='Mixup', alpha=0.8))
    images, samples = batch(1)
    losses = model.loss(images, samples)
    assert model.mix_result is None
    torch.testing.assert_close(losses['loss'], losses['base_loss'])
    torch.testing.assert_close(losses['loss'], soft_cross_entropy(model, images, torch.eye(5)[:1]))


def test_without_augments_it_is_an_image_classifier():
    model, data = classifier(train_cfg=None), batch()
    plain = MODELS.build(dict(type='ImageClassifier', backbone=VIT, head=HEAD))
    plain.load_state_dict(model.state_dict(), strict=True)
    assert model.loss(*data).keys() == plain.loss(*data).keys()
    torch.testing.assert_close(model.loss(*data)['loss'], plain.loss(*data)['loss'])


def test_the_config_is_not_written_to():
    cfg = ConfigDict(
        type='MixupClassifier',
        backbone=VIT,
        head=HEAD,
        train_cfg=dict(augments=[dict(type='MergeMix', encoder=VIT), dict(type='Mixup', alpha=0.8)], probs=[0.5, 0.25]),
        base_augment=dict(type='CutMix', alpha=1.0),
    )
    before = deepcopy(cfg)
    for _ in range(2):
        MODELS.build(cfg).loss(*batch())
    assert cfg == before


HEADS = [
    dict(HEAD, loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')),
    dict(HEAD, loss=dict(type='CrossEntropyLoss', use_soft=True)),
    dict(HEAD, loss=dict(type='CrossEntropyLoss', use_sigmoid=True)),
    dict(type='LinearClsHead', num_classes=5, in_channels=16),
    dict(type='StackedLinearClsHead', num_classes=5, in_channels=16, mid_channels=[8]),
    dict(type='MultiLabelLinearClsHead', num_classes=5, in_channels=16),
    dict(type='CSRAClsHead', num_classes=5, in_channels=16, num_heads=1, lam=0.1),
    dict(type='ArcFaceClsHead', num_classes=5, in_channels=16),
    dict(type='EfficientFormerClsHead', num_classes=5, in_channels=16, distillation=False),
    dict(type='LeViTClsHead', num_classes=5, in_channels=16, distillation=False),
]


@pytest.mark.parametrize('head', HEADS, ids=lambda head: head['type'] + head.get('loss', {}).get('type', ''))
def test_every_head_that_takes_soft_labels_trains(head):
    backbone = dict(VIT, out_type='featmap') if head['type'] == 'CSRAClsHead' else VIT
    model = classifier(head=head, backbone=backbone, data_preprocessor=dict(num_classes=5))
    total, _ = model.parse_losses(model.loss(*batch()))
    total.backward()
    assert total.isfinite()
    assert all(parameter.grad is not None for parameter in model.head.parameters())


def test_distilled_deit_with_its_head_trains():
    model = classifier(backbone=dict(VIT, type='DistilledVisionTransformer'), head=dict(HEAD, type='DeiTClsHead'))
    assert model.loss(*batch())['loss'].isfinite()


def test_multi_hot_scores_are_mixed_too():
    head = dict(type='MultiLabelLinearClsHead', num_classes=5, in_channels=16)
    scores = torch.tensor([[1.0, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 1, 1]])
    samples = [DataSample().set_gt_score(score) for score in scores]
    model, images = classifier(head=head), torch.randn(3, 3, 32, 32)
    losses = model.loss(images, samples)
    mixed = model.mix_result.mix_scores(scores)
    logits = model(model.mix_result.images, mode='tensor')
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, mixed, reduction='none').sum() / 3
    torch.testing.assert_close(losses['loss'] / expected, torch.tensor(1.0), atol=1e-4, rtol=1e-4)
    assert all(torch.equal(sample.gt_score, score) for sample, score in zip(samples, scores, strict=True))
    listed = [DataSample().set_gt_label(labels) for labels in ([0, 1], [1, 2], [3, 4])]
    assert torch.equal(model._scores(listed, images.device), scores)


def scored(*scores):
    return [DataSample().set_gt_score(torch.as_tensor(score)) for score in scores]


ONE = [1.0, 0, 0, 0, 0]
UNUSABLE = {
    'too large': ([0, 7], r'in \[0, 7\], but num_classes=5 .*model.head and data_preprocessor'),
    'negative': ([0, -1], 'batch is -1, .*without a label'),
    'very negative': ([-100, 4], 'batch is -100, .*without a label'),
    'negative score': (scored(ONE, [0, 1, -1.0, 0, 0]), 'gt_score of this batch has -1, .*without a label'),
    'not a number': (scored(ONE, [0, 1, torch.nan, 0, 0]), 'gt_score of this batch has nan, .*without a label'),
    'too wide': (
        scored(*torch.eye(7)[:2]),
        r'gt_score has 7 classes, but num_classes=5: .*model.head and data_preproc',
    ),
    'missing': ([DataSample().set_gt_label(1), DataSample()], '1 of 2 images of this batch have no gt_label'),
}


@pytest.mark.parametrize('name', UNUSABLE)
def test_labels_that_cannot_be_mixed_are_refused(name):
    labels, message = UNUSABLE[name]
    samples = [label if isinstance(label, DataSample) else DataSample().set_gt_label(label) for label in labels]
    with pytest.raises(ValueError, match=message) as caught:
        classifier().loss(torch.randn(2, 3, 32, 32), samples)
    # A wrong number of classes is not the reason for a negative label.
    assert ('num_classes' in str(caught.value)) == name.startswith('too') and '\n' not in str(caught.value)


def test_a_head_that_keeps_no_number_of_classes_is_told_where_it_belongs():
    head = dict(type='CSRAClsHead', num_classes=5, in_channels=16, num_heads=1, lam=0.1)
    with pytest.raises(
        ValueError, match=r'CSRAClsHead does not keep: set data_preprocessor=dict\(num_classes'
    ) as caught:
        classifier(head=head, backbone=dict(VIT, out_type='featmap')).loss(*batch(2))
    assert 'model.head and' not in str(caught.value)


def test_a_head_of_several_tasks_is_refused_at_building_unless_nothing_is_mixed():
    task = dict(type='LinearClsHead', num_classes=5, in_channels=16)
    head = dict(type='MultiTaskHead', task_heads=dict(colour=task, shape=task))
    with pytest.raises(ValueError, match=r"model.head=MultiTaskHead has labels for each of \['colour', 'shape'\]"):
        classifier(head=head)
    with pytest.raises(ValueError, match='MultiTaskHead'):
        classifier(head=head, train_cfg=None, base_augment=dict(type='Mixup', alpha=0.8))
    classifier(head=head, train_cfg=None)


def test_a_multi_label_batch_without_labels_trains():
    head = dict(type='MultiLabelLinearClsHead', num_classes=5, in_channels=16)
    samples = [DataSample().set_gt_label([]) for _ in range(2)]
    assert classifier(head=head).loss(torch.randn(2, 3, 32, 32), samples)['loss'].isfinite()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(train_cfg=dict(foo=1)), 'model.train_cfg=.* must hold augments'),
        (dict(train_cfg=dict(augments=[])), 'model.train_cfg=.* must hold augments'),
        (dict(train_cfg=dict(augments=dict(type='MergeMix'), prob=0.5)), 'model.train_cfg=.* must hold augments'),
        (dict(data_preprocessor=dict(batch_augments=dict(augments=dict(type='Mixup', alpha=0.8)))), 'would mix'),
    ],
)
def test_augments_that_are_missing_or_would_mix_twice_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        classifier(**options)


def test_it_compiles():
    """MMEngine's `compile=True`; mixing itself runs outside of the graphs."""
    shallow = dict(VIT, arch=dict(VIT['arch'], num_layers=2))  # Tracing takes its time.
    model = classifier(
        backbone=shallow, train_cfg=dict(augments=[dict(type='MergeMix'), dict(type='Mixup', alpha=0.8)])
    )
    compiled, (images, samples) = torch.compile(model.forward, backend='eager'), batch()
    for step in range(2):
        losses = []
        for forward in (model.forward, compiled):
            torch.manual_seed(step)
            np.random.seed(step)
            losses.append(forward(images, samples, mode='loss')['loss'])
        torch.testing.assert_close(*losses)


def test_head_and_preprocessor_must_agree_on_the_number_of_classes():
    model = classifier(data_preprocessor=dict(num_classes=1000))
    with pytest.raises(ValueError, match=r"'model.head.num_classes': 5, 'data_preprocessor.num_classes': 1000"):
        model.loss(*batch())


def test_a_lora_model_scores_with_its_adapters_and_only_they_learn():
    lora = dict(type='LoRAModel', module=VIT, rank=2, targets=[dict(type='.*qkv')])
    model = classifier(backbone=lora)
    model.loss(*batch())['loss'].backward()
    learned = {name for name, parameter in model.backbone.named_parameters() if parameter.grad is not None}
    assert learned and all('.lora_' in name for name in learned)
    assert model.mix_result.saliency.shape == (4, 16)


def test_a_backbone_with_rotary_positions_trains_without_merging_and_one_warning_says_so():
    backbone = dict(VIT, type='ViTEVA02', out_type='avg_featmap')
    model = classifier(backbone=backbone, head=dict(type='LinearClsHead', num_classes=5, in_channels=16))
    optim = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    before = deepcopy(model.backbone.layers[-1].attn.qkv.weight)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('default')
        for _ in range(2):
            losses = model.loss(*batch())
            optim.update_params(losses['loss'])
    assert [str(one.message) for one in caught if 'merge' in str(one.message)] == [
        'tokens of `ViTEVA02` cannot merge (rotary positions), so MergeMix scores without merging; num_merge=0 says '
        'the same without this warning'
    ]
    assert losses['loss'].isfinite()
    assert model.mix_result.saliency.shape == (4, 16)
    assert not torch.equal(before, model.backbone.layers[-1].attn.qkv.weight)


def test_a_backbone_that_cannot_score_is_refused_by_name():
    model = classifier(**RESNET)
    with pytest.raises(TypeError, match='`ResNet` cannot score'):
        model.loss(*batch())


def test_a_backbone_that_cannot_score_trains_with_an_encoder_of_mergemix():
    model = classifier(**RESNET, train_cfg=dict(augments=[dict(type='MergeMix', encoder=VIT)]))
    assert model.loss(*batch())['loss'].isfinite()


def test_checkpoints_are_those_of_an_image_classifier():
    plain = MODELS.build(dict(type='ImageClassifier', backbone=VIT, head=HEAD))
    model = classifier(train_cfg=dict(augments=[dict(type='MergeMix', encoder=VIT)]))
    assert model.state_dict().keys() == plain.state_dict().keys()


def test_prediction_does_not_mix():
    model = classifier()
    model.eval()
    images, samples = batch(2)
    predicted = model.predict(images, samples)
    expected = model(images, mode='tensor').softmax(1)
    torch.testing.assert_close(torch.stack([sample.pred_score for sample in predicted]), expected)
