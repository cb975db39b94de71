"""Which classifiers are measured, how many tokens they merge, and what is refused in one line."""

import argparse

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmpretrain.models import VisionTransformer

from mergemix_mm.engine.launch import LaunchError
from mergemix_mm.engine.measuring import add_arguments, load_classifiers

CONFIG = """
custom_imports = dict(imports=['mergemix_mm'])
data_preprocessor = dict(num_classes=10, mean=[80] * 3, std=[90] * 3)
model = dict(
    type='MixupClassifier',
    backbone=dict(
        type='VisionTransformer',
        arch=dict(embed_dims=8, num_layers=2, num_heads=2, feedforward_channels=8),
        img_size=32,
        patch_size=8,
    ),
    head=dict(type='VisionTransformerClsHead', num_classes=10, in_channels=8),
    train_cfg=dict(augments=[dict(type='MergeMix')]),
)
test_dataloader = dict(
    batch_size=10,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='DigitsDataset', split='test', test_ratio=0.01, pipeline=[dict(type='PackInputs')]),
)
"""


@pytest.fixture
def load(tmp_path):
    """Load config and checkpoint with further flags; `change` replaces texts of the config."""
    (tmp_path / 'tiny.py').write_text(CONFIG)
    torch.manual_seed(0)
    model = MODELS.build({**Config.fromfile(tmp_path / 'tiny.py').model, '_scope_': 'mmpretrain'})
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'tiny.pth')

    def load(*flags, pairs=('tiny.py', 'tiny.pth'), change=()):
        text = CONFIG
        for old, new in change:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / 'tiny.py').write_text(text)
        parser = argparse.ArgumentParser()
        add_arguments(parser, str(tmp_path / 'out'))
        return load_classifiers(parser.parse_args([*(str(tmp_path / path) for path in pairs), '--device=cpu', *flags]))

    return load


@pytest.mark.parametrize(
    ('change', 'flags', 'merged'),
    [
        ((), (), 8),
        ((), ('--num-merge', '5'), 5),
        ((), ('--num-merge', '0.25'), 4),
        ((("'VisionTransformer'", "'ToMeVisionTransformer', num_merge=3, merge_in=('train',)"),), (), 3),
        ((("'VisionTransformer'", "'ToMeVisionTransformer'"),), (), 8),
    ],
    ids=['half of the patches', 'tokens', 'share', 'of the config', 'a config that merges none'],
)
def test_as_many_tokens_merge_as_the_flag_or_the_config_says(load, change, flags, merged):
    (classifier,) = load(*flags, change=change)
    classifier.image_size = (32, 32)
    assert classifier.modes == (False, True) and classifier.name == 'tiny'
    assert [classifier.merged_tokens(merge) for merge in (False, True)] == [0, merged]


def test_the_same_weights_run_with_and_without_merging_on_normalised_images(load):
    (classifier,) = load()
    images, labels = next(classifier.batches())
    assert images.shape == (10, 3, 32, 32) and labels.shape == (10,) and classifier.image_size == (32, 32)
    assert images.min() == pytest.approx(-80 / 90)  # The data preprocessor stands at the top of the config.
    own = ('arch', 'img_size', 'patch_size')
    plain = VisionTransformer(**{key: classifier.cfg.model.backbone[key] for key in own})
    plain.load_state_dict(classifier.model.backbone.state_dict())
    plain.eval()
    with torch.no_grad():
        expected = classifier.model.head(plain(images))
        with classifier.merging(False):
            torch.testing.assert_close(classifier.logits(images), expected)
        with classifier.merging(True):
            assert not torch.allclose(classifier.logits(images), expected)


def test_without_merging_any_image_classifier_is_measured(load):
    (classifier,) = load('--num-merge', '0')
    assert classifier.modes == (False,) and type(classifier.model.backbone).__name__ == 'VisionTransformer'


@pytest.mark.parametrize(
    ('options', 'match'),
    [
        (dict(pairs=('tiny.py', 'tiny.pth', 'tiny.py')), 'found 3 paths, which are not pairs'),
        (dict(flags=('--names', 'a', 'b')), '--names: a, b must be 1 different names'),
        (dict(pairs=('tiny.py', 'missing.pth')), 'no file .*missing.pth'),
        (
            dict(change=[('embed_dims=8', 'embed_dims=16')]),
            'tiny.pth is not of the model of .*tiny.py: .*size mismatch',
        ),
        (dict(change=[('test_dataloader', 'some_dataloader')]), 'tiny.py has no test_dataloader'),
        (dict(change=[("'VisionTransformer'", "'DistilledVisionTransformer'")]), 'cannot merge .*--num-merge 0'),
    ],
)
def test_what_cannot_be_measured_is_named_in_one_line(load, options, match):
    with pytest.raises(LaunchError, match=match) as found:
        load(*options.pop('flags', ()), **options)
    assert '\n' not in str(found.value)


def test_too_many_merged_tokens_and_a_head_without_scores_are_named(load):
    images = torch.zeros(1, 3, 32, 32)
    (classifier,) = load('--num-merge', '16')
    with classifier.merging(True), pytest.raises(LaunchError, match='^--num-merge: tiny: .*num_merge=16'):
        classifier.logits(images)
    classifier.model.head = None
    with pytest.raises(LaunchError, match='CONFIG of tiny: model.head gives tuple'):
        classifier.logits(images)


@pytest.mark.parametrize('value', ['-1', '1.5', 'half'])
def test_a_number_of_tokens_is_an_integer_or_a_share(load, value, capsys):
    with pytest.raises(SystemExit):
        load('--num-merge', value)
    assert f'{value} must be an integer >= 0' in capsys.readouterr().err


def test_a_config_with_several_checkpoints_is_named_with_them(load, tmp_path):
    (tmp_path / 'other.pth').write_bytes((tmp_path / 'tiny.pth').read_bytes())
    classifiers = load(pairs=('tiny.py', 'tiny.pth', 'tiny.py', 'other.pth'))
    assert [one.name for one in classifiers] == [f'tiny {tmp_path.name}/{name}' for name in ('tiny', 'other')]
