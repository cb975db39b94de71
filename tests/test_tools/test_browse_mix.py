"""Tests of tools/visualization/browse_mix.py, called in this process."""

from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.slow


CONFIG = """
default_scope = 'mmpretrain'
model = dict(
    type='MixupClassifier',
    backbone=dict(
        type='VisionTransformer',
        arch=dict(embed_dims=16, num_layers=4, num_heads=2, feedforward_channels=32),
        img_size=32,
        patch_size=4,
    ),
    head=dict(type='VisionTransformerClsHead', num_classes=10, in_channels=16),
    data_preprocessor=dict(type='ClsDataPreprocessor', num_classes=10, mean=[80] * 3, std=[60] * 3),
    train_cfg=dict(augments=[dict(type='MergeMix', num_merge=4)]),
)
train_dataloader = dict(
    batch_size=64,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(type='DigitsDataset', clutter=True, train_per_class=3, pipeline=[dict(type='PackInputs')]),
)
"""


@pytest.fixture(scope='module')
def browse_mix(load_tool):
    return load_tool('visualization/browse_mix')


@pytest.fixture
def config(tmp_path):
    path = tmp_path / 'vit-tiny_digits.py'
    path.write_text(CONFIG)
    return path


def test_page_is_written_and_its_place_printed(browse_mix, config, tmp_path, capsys):
    with mock.patch.object(browse_mix, 'draw_mixed_samples', wraps=browse_mix.draw_mixed_samples) as draw:
        path = browse_mix.main([str(config), '--output-dir', str(tmp_path / 'pages'), '--num-images', '14'])
    assert path == tmp_path / 'pages' / 'vit-tiny_digits.png'
    assert capsys.readouterr().out.endswith(f'Mixed samples written to {path}\n')
    assert np.asarray(Image.open(path)).std() > 10
    (results,), options = draw.call_args
    assert [len(result.images) for result in results] == [4, 4, 4, 4]
    assert len({float(result.ratio[0]) for result in results}) > 1
    assert options['max_rows'] == 14 and options['classes'] == tuple('0123456789')
    assert options['mean'].flatten().tolist() == [80] * 3


def test_same_seed_gives_the_same_page_and_another_seed_another(browse_mix, config, tmp_path):
    pages = []
    for number, seed in enumerate((0, 0, 1)):
        path = tmp_path / f'{number}.png'
        browse_mix.main([str(config), '-o', str(path), '--num-images', '2', '--seed', str(seed)])
        pages.append(path.read_bytes())
    assert pages[0] == pages[1] != pages[2]


def test_several_augments_mix_the_same_images_in_a_row_each(browse_mix, config, tmp_path):
    names = ['MergeMix', 'TransMix', 'TokenMix', 'SMMix', 'FMix']
    with mock.patch.object(browse_mix, 'draw_mixed_samples', wraps=browse_mix.draw_mixed_samples) as draw:
        browse_mix.main([str(config), '-o', str(tmp_path), '--num-images', '1', '--augments', *names])
    (results,), options = draw.call_args
    assert options['titles'] == names and options['max_rows'] == 5
    assert all(torch.equal(result.clean, results[0].clean) for result in results)
    # Labels that the mixed pass decides are final.
    assert not torch.allclose(results[1].ratio, results[1].mask.float().mean(1))


def test_weights_come_from_the_checkpoint(browse_mix, config, tmp_path, capsys):
    model = browse_mix.build_model(browse_mix.Config.fromfile(config), None)
    assert 'No --checkpoint given' in capsys.readouterr().out
    torch.nn.init.constant_(model.head.layers.head.weight, 0.125)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'model.pth')
    loaded = browse_mix.build_model(browse_mix.Config.fromfile(config), str(tmp_path / 'model.pth'))
    assert (loaded.head.layers.head.weight == 0.125).all() and not loaded.training


def test_config_options_override(browse_mix, config, tmp_path):
    with mock.patch.object(browse_mix, 'draw_mixed_samples', wraps=browse_mix.draw_mixed_samples) as draw:
        config.write_text(CONFIG.replace("type='MergeMix', num_merge=4", "type='Mixup', alpha=1.0"))
        options = ['train_dataloader.batch_size=3']
        browse_mix.main([str(config), '-o', str(tmp_path), '--cfg-options', *options])
    (results,), _ = draw.call_args
    assert [len(result.images) for result in results] == [3, 3, 3]
    assert all(result.mask is None for result in results)


def test_plain_image_classifier_is_told_the_way_out(browse_mix, config):
    config.write_text(CONFIG.replace("type='MergeMix', num_merge=4", "type='Mixup', alpha=1.0"))
    with pytest.raises(SystemExit, match='model.type=ImageClassifier'):
        browse_mix.main([str(config), '--cfg-options', 'model.type=ImageClassifier'])


def test_config_that_never_mixes_is_refused(browse_mix, config):
    with pytest.raises(SystemExit, match=r'none of 7 batches.*model.train_cfg'):
        browse_mix.main([str(config), '--cfg-options', 'model.train_cfg=None'])


def test_missing_data_are_named_with_their_key(browse_mix, config):
    options = ['train_dataloader.dataset.type=CUB', 'train_dataloader.dataset.data_root=data/no-birds']
    with pytest.raises(SystemExit, match=r"train_dataloader\.dataset\.data_root='data/no-birds'.*--cfg-options"):
        browse_mix.main([str(config), '--cfg-options', *options])


def test_missing_config_is_named_with_its_closest_match(browse_mix, config):
    with pytest.raises(SystemExit, match=r'CONFIG: there is no file .*Close matches.*vit-tiny_digits\.py'):
        browse_mix.main([str(config.with_name('vit-tiny_digit.py'))])


def test_config_without_training_data_is_refused(browse_mix, tmp_path):
    path = tmp_path / 'empty.py'
    path.write_text("model = dict(type='MixupClassifier')\n")
    with pytest.raises(SystemExit, match='train_dataloader'):
        browse_mix.main([str(path)])
