"""Loader defaults, the check of data roots, and the hooks that a config is given."""

import re

import pytest
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS

from mergemix_mm.engine.launch import (
    LaunchError,
    check_data_roots,
    check_resume,
    read_config,
    set_loader_defaults,
    use_own_hooks,
)


def test_loaders_get_the_defaults_they_lack_and_flags_switch_off():
    cfg = Config(dict(train_dataloader=dict(pin_memory=False), val_dataloader=None, test_dataloader=dict()))
    set_loader_defaults(cfg, 'train', 'val')
    filled = dict(pin_memory=False, persistent_workers=True, collate_fn=dict(type='default_collate'))
    assert cfg.train_dataloader == filled and cfg.val_dataloader is None and cfg.test_dataloader == {}
    set_loader_defaults(cfg, 'test', pin_memory=False, persistent_workers=False)
    assert not cfg.test_dataloader.pin_memory and not cfg.test_dataloader.persistent_workers


@pytest.mark.parametrize(
    ('model', 'mean'),
    [('dict()', 79.7), ('dict(data_preprocessor=dict(mean=1))', 1)],
    ids=['of the config', 'of the model'],
)
def test_the_data_preprocessor_of_a_config_is_that_of_its_model_as_in_the_runner(tmp_path, model, mean):
    (tmp_path / 'config.py').write_text(f'model = {model}\ndata_preprocessor = dict(mean=79.7)\n')
    assert read_config(tmp_path / 'config.py').model.data_preprocessor.mean == mean


def wrapped(kind):
    return dict(type='RepeatDataset', times=2, dataset=dict(type='ConcatDataset', datasets=[dict(type=kind)]))


@pytest.mark.parametrize(
    ('scope', 'model', 'dataset', 'collate'),
    [
        ('mmpretrain', 'ImageClassifier', 'CIFAR10', 'default_collate'),
        ('mmpretrain', 'MixupClassifier', 'DigitsDataset', 'default_collate'),
        ('mmpretrain', 'VLMTuner', 'ConversationDataset', 'default_collate'),
        ('mmdet', 'mmpretrain.ImageClassifier', 'mmpretrain.CIFAR10', 'default_collate'),
        ('mmdet', 'mmpretrain.ImageClassifier', 'CocoDataset', 'default_collate'),
        ('mmdet', None, 'mmpretrain.CIFAR10', 'default_collate'),
        ('mmdet', 'MaskRCNN', 'CocoDataset', None),
        ('mmdet', 'MaskRCNN', 'ShapesCocoDataset', None),
        ('mmpretrain', 'mmdet.MaskRCNN', 'mmdet.CocoDataset', None),
        ('mmpretrain', 'mmdet.DETR', 'ShapesCocoDataset', None),
        ('mmpretrain', None, 'mmdet.CocoDataset', None),
        ('mmpretrain', 'mmseg.EncoderDecoder', 'mmseg.ADE20KDataset', None),  # Not installed here.
        ('mmseg', 'EncoderDecoder', 'ADE20KDataset', None),
        ('mmdet', 'ModelOfSomebody', 'DatasetOfSomebody', None),
    ],
)
@pytest.mark.parametrize('nested', [False, True])
def test_each_library_keeps_its_own_way_to_make_a_batch(scope, model, dataset, collate, nested):
    pytest.importorskip('mmdet')
    loader = dict(dataset=wrapped(dataset) if nested else dict(type=dataset, pipeline=[dict(type='mmdet.Resize')]))
    cfg = Config(dict(default_scope=scope, model=dict(type=model), train_dataloader=loader, test_dataloader=loader))
    set_loader_defaults(cfg, 'train', 'val', 'test')
    for key in ('train_dataloader', 'test_dataloader'):
        assert cfg[key].get('collate_fn') == (collate and dict(type=collate))
        assert cfg[key].pin_memory and cfg[key].persistent_workers


@pytest.mark.parametrize('nested', [False, True])
def test_the_scope_that_a_part_says_for_itself_counts(nested):
    pytest.importorskip('mmdet')
    loader = dict(dataset=dict(type='CocoDataset', _scope_='mmdet'))
    if nested:
        loader['dataset'] = dict(type='RepeatDataset', _scope_='mmdet', times=2, dataset=dict(type='CocoDataset'))
    model = dict(model=dict(type='MaskRCNN', _scope_='mmdet'))
    for rest in (model, {}, dict(model, default_scope='mmpretrain')):
        cfg = Config(dict(rest, train_dataloader=dict(loader)))
        set_loader_defaults(cfg, 'train')
        assert 'collate_fn' not in cfg.train_dataloader


def test_a_class_in_the_place_of_a_name_is_understood():
    from mmdet.models import DETR

    class Detector(DETR):
        """Somebody's own."""

    cfg = Config(dict(default_scope='mmpretrain', train_dataloader=dict(dataset=dict(type='ShapesCocoDataset'))))
    cfg.model = dict(type=Detector)
    set_loader_defaults(cfg, 'train')
    assert 'collate_fn' not in cfg.train_dataloader


def test_what_a_loader_says_stays_and_the_loaders_of_several_benchmarks_are_told_apart():
    own = dict(collate_fn=dict(type='ConversationCollate'), dataset=dict(type='ConversationDataset'))
    boxes, images = dict(dataset=dict(type='mmdet.CocoDataset')), dict(dataset=dict(type='CIFAR10'))
    cfg = Config(dict(default_scope='mmpretrain', test_dataloader=dict(own=own, boxes=boxes, images=images)))
    set_loader_defaults(cfg, 'test')
    found = {name: loader.get('collate_fn', {}).get('type') for name, loader in cfg.test_dataloader.items()}
    assert found == dict(own='ConversationCollate', boxes=None, images='default_collate')


def with_dataset(**dataset):
    return Config(dict(default_scope='mmpretrain', train_dataloader=dict(dataset=dataset)))


@pytest.mark.parametrize(
    'key, nest',
    [
        ('dataset', lambda there, part: part),
        (
            'dataset.dataset.datasets.1',
            lambda there, part: dict(type='RepeatDataset', dataset=dict(type='ConcatDataset', datasets=[there, part])),
        ),
        ('dataset.gen', lambda there, part: dict(type='UnifiedDataset', gen=part, und=there)),
        ('dataset.und', lambda there, part: dict(type='UnifiedDataset', gen=there, und=part)),
        (
            'dataset.tasks.b.dataset',
            lambda there, part: dict(type='TaskMixDataset', tasks=dict(a=dict(dataset=there), b=dict(dataset=part))),
        ),
    ],
)
def test_a_missing_data_root_is_named_by_its_key_however_deep(tmp_path, key, nest):
    there = dict(type='CUB', data_root=str(tmp_path))
    check_data_roots(with_dataset(**nest(there, there)), 'train')
    with pytest.raises(LaunchError, match=rf"train_dataloader\.{re.escape(key)}\.data_root='nowhere'"):
        check_data_roots(with_dataset(**nest(there, dict(there, data_root='nowhere'))), 'train')


def test_a_dataset_that_downloads_itself_may_start_without_its_data():
    check_data_roots(with_dataset(type='CIFAR100', data_root='nowhere'), 'train')
    with pytest.raises(LaunchError, match='nowhere'):
        check_data_roots(with_dataset(type='CIFAR100', data_root='nowhere', download=False), 'train')


def hooks_of(**cfg):
    cfg = Config({'default_scope': 'mmpretrain', **cfg})
    use_own_hooks(cfg)
    return cfg


class OwnHook(CheckpointHook):
    """A user's."""


@pytest.mark.parametrize(
    'name', ['CheckpointHook', 'mmengine.CheckpointHook', 'mmengine.hooks.CheckpointHook', CheckpointHook]
)
@pytest.mark.parametrize('scope', ['mmpretrain', 'mmdet', None])
def test_the_plain_checkpoint_hook_is_replaced_however_it_is_named(name, scope):
    hook = dict(type=name, interval=3, save_best='auto')
    custom = [dict(hook), dict(type='EMAHook')]
    cfg = hooks_of(default_scope=scope, default_hooks=dict(checkpoint=hook), custom_hooks=custom)
    assert cfg.default_hooks.checkpoint == dict(type='AtomicCheckpointHook', interval=3, save_best='auto')
    assert [hook.type for hook in cfg.custom_hooks] == ['AtomicCheckpointHook', 'EMAHook']
    built = HOOKS.build(cfg.default_hooks.checkpoint)
    assert built.interval == 3


def test_a_hook_that_nobody_names_is_added_and_one_that_is_left_out_stays_out():
    assert hooks_of().default_hooks.to_dict() == dict(
        checkpoint=dict(type='AtomicCheckpointHook', interval=1), finite_loss=dict(type='NonFiniteLossHook')
    )
    assert hooks_of(default_hooks=dict(checkpoint=None, finite_loss=None)).default_hooks.to_dict() == dict(
        checkpoint=None
    )
    finite_loss = dict(type='NonFiniteLossHook', patience=9)
    kept = hooks_of(default_hooks=dict(checkpoint=dict(type=OwnHook), finite_loss=finite_loss))
    assert kept.default_hooks.checkpoint.type is OwnHook and kept.default_hooks.finite_loss.patience == 9


def test_the_patience_of_the_command_line_needs_no_type():
    kept = hooks_of(default_hooks=dict(finite_loss=dict(patience=9)))
    assert kept.default_hooks.finite_loss.to_dict() == dict(type='NonFiniteLossHook', patience=9)


def test_a_checkpoint_that_resume_names_has_to_be_there(tmp_path):
    with pytest.raises(LaunchError, match='--resume .*none.pth: there is no such file'):
        check_resume(Config(dict(resume=True, load_from=str(tmp_path / 'none.pth'))))
    check_resume(Config(dict(resume=True, load_from=None)))
    check_resume(Config(dict(resume=True, load_from='https://host/a.pth')))
