"""Visual recognition: the weights of a SPHINX in a classifier, classes as conversations, and the configs."""

import numpy as np
import pytest
import tiny_sphinx
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from PIL import Image
from repository_configs import ROOT, parametrize, quick_mmengine, runner_of_two_steps  # noqa: F401
from safetensors.torch import load_file, save_file
from torch import nn

from mergemix_mm.datasets import ClassificationTask, RecordError
from mergemix_mm.models.vlms import SphinxModel
from mergemix_mm.toy import ShapesTaskDataset
from mergemix_mm.toy.scenes import COLORS, SHAPES
from projects.visual_recognition import run
from projects.visual_recognition.models.class_record_dataset import ClassRecordDataset
from projects.visual_recognition.models.shapes_classes import ShapesToClasses
from projects.visual_recognition.models.sphinx_vision import load_sphinx_vision

FOLDER = ROOT / 'projects' / 'visual_recognition' / 'configs'
LINEAR, CLASSIFY = (next(FOLDER.glob(f'tiny-*{kind}*.py')) for kind in ('linear', 'classify'))
FULL = sorted(FOLDER.glob('*_in1k.py'))


@pytest.fixture(scope='module')
def shapes_folder(tmp_path_factory):
    """The tiny SPHINX of drawn shapes, untrained, as a folder."""
    torch.manual_seed(0)
    cfg = Config.fromfile(ROOT / 'configs/_base_/models/tiny-sphinx_shapes.py')
    folder = tmp_path_factory.mktemp('shapes') / 'pretrained'
    vlm = MODELS.build(cfg.model.vlm)
    vlm.init_weights()
    vlm.save_pretrained(folder)
    return folder


def classifier(**neck):
    """The neck and the encoder of `tiny_sphinx`, as its folder has them."""
    arch = dict(embed_dims=8, num_layers=1, num_heads=2, feedforward_channels=16)
    vit = dict(type='mmpretrain.VisionTransformer', arch=arch, img_size=28, patch_size=14, out_type='raw')
    mix = dict(type='EmbeddingMixNeck', in_channels=[8], out_channels=tiny_sphinx.WIDTH, grid=2, class_token=True)
    return MODELS.build(
        dict(
            type='mmpretrain.ImageClassifier',
            backbone=dict(type='MultiBackbone', encoders=[dict(encoder=vit, input_size=28)]),
            neck=[dict(mix, **neck), dict(type='TokenMean')],
            head=dict(type='mmpretrain.LinearClsHead', num_classes=3, in_channels=tiny_sphinx.WIDTH),
        )
    )


# Weights.


@torch.no_grad()
def test_a_classifier_sees_what_the_language_model_sees(sphinx_folder):
    torch.manual_seed(1)
    model, vlm = classifier().eval(), SphinxModel(pretrained=str(sphinx_folder)).eval()
    images = torch.randn(2, 3, 28, 28)
    tokens = vlm.encode_images(images).unflatten(0, (2, -1))
    (before,) = model.extract_feat(images)
    assert not torch.allclose(before, tokens.mean(1), atol=1e-3)
    assert load_sphinx_vision(model, sphinx_folder) == []
    (after,) = model.extract_feat(images)
    torch.testing.assert_close(after, tokens.mean(1))


def test_encoders_that_were_frozen_keep_their_weights(sphinx_folder, tmp_path):
    stored = load_file(sphinx_folder / 'vision.safetensors')
    kept = {name: value for name, value in stored.items() if not name.startswith('vision.backbone.')}
    save_file(kept, tmp_path / 'vision.safetensors')
    model = classifier()
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    assert load_sphinx_vision(model, tmp_path) == [0]
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.state_dict().items())
    assert torch.equal(model.neck[0].projection[0].weight, stored['vision.neck.projection.0.weight'])


def test_every_weight_that_does_not_fit_is_named_and_none_is_loaded(sphinx_folder, tmp_path):
    stored = load_file(sphinx_folder / 'vision.safetensors')
    stored['vision.neck.projection.1.weight'] = torch.ones(7)
    stored['vision.other'] = torch.ones(1)
    lost = stored.pop('vision.backbone.branches.0.encoder.cls_token')
    save_file(stored, tmp_path / 'vision.safetensors')
    model = classifier()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError) as error:
        load_sphinx_vision(model, tmp_path)
    lines = str(error.value).split('\n')[1:-1]
    assert lines == [
        'vision.neck.projection.1.weight: [7] in the file, [16] in the model',
        'vision.backbone.branches.0.encoder.cls_token: only in the model',
        'vision.other: only in the file',
    ]
    assert lost.numel() == 8
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_or_a_folder_of_another_kind_is_named(sphinx_folder, tmp_path):
    with pytest.raises(ValueError, match='the model has 0 MultiBackbone; it must have one'):
        load_sphinx_vision(nn.Linear(2, 2), sphinx_folder)
    with pytest.raises(OSError, match=r'has no vision\.safetensors'):
        load_sphinx_vision(classifier(), tmp_path)


# Data.


def test_drawn_shapes_become_images_in_bgr_with_the_number_of_their_pair():
    dataset, labels = ShapesTaskDataset('classification', length=60), set()
    for record in map(dataset.__getitem__, range(60)):
        found = ShapesToClasses()(record)
        assert np.array_equal(found['img'][..., ::-1], np.asarray(record['images'][0]))
        color, shape = divmod(found['gt_label'], len(SHAPES))
        assert f'{COLORS[color]} {SHAPES[shape]}' == record['label']
        labels.add(found['gt_label'])
    assert 12 < len(labels) <= 24


@pytest.fixture
def imagenet(tmp_path):
    """Two images of the classes 0 and 1 of ImageNet."""
    for name in ('n01440764', 'n01443537'):
        (tmp_path / 'train' / name).mkdir(parents=True)
        Image.new('RGB', (8, 6), (len(name), 0, 0)).save(tmp_path / 'train' / name / '1.JPEG')
    return dict(type='mmpretrain.CustomDataset', data_root=str(tmp_path), data_prefix='train')


@pytest.mark.parametrize(
    ('names', 'label'),
    [(None, 'n01440764'), (['fish', 'bird'], 'fish')],
)
def test_images_of_a_classification_dataset_become_sentences(imagenet, names, label):
    dataset = ClassRecordDataset(imagenet, names, pipeline=[ClassificationTask()])
    assert len(dataset) == 2
    sample = dataset[0]
    assert [message['content'][-1]['text'] for message in sample['messages']] == [
        'Classify the image.',
        f'This is a {label}',
    ]
    assert sample['images'][0].size == (8, 6)


def test_short_names_of_imagenet_and_mistakes(imagenet, tmp_path):
    (tmp_path / 'train.txt').write_text('n01440764/1.JPEG 0\nn01443537/1.JPEG 1\n')
    full = dict(type='mmpretrain.ImageNet', data_root=str(tmp_path), split='train', ann_file='train.txt')
    dataset = ClassRecordDataset(full, 'IMAGENET_SIMPLE_CATEGORIES')
    assert len(dataset.class_names) == 1000 and dataset[1]['label'] == 'goldfish'
    with pytest.raises(ValueError, match='1 class_names for the 2 classes of CustomDataset'):
        ClassRecordDataset(imagenet, ['fish'])
    with pytest.raises(ValueError, match=r"class_names='IMAGENET' is none of \[.*'IMAGENET_SIMPLE_CATEGORIES'"):
        ClassRecordDataset(imagenet, 'IMAGENET')
    (tmp_path / 'train/n01443537/1.JPEG').write_bytes(b'')
    with pytest.raises(RecordError, match=r'CustomDataset\[1\]: image .*1\.JPEG cannot be read'):
        ClassRecordDataset(imagenet)[1]


# Configs.


def test_the_linear_probe_moves_neck_and_head_alone(shapes_folder, tmp_path, monkeypatch):
    cfg = Config.fromfile(LINEAR)
    cfg.train_dataloader.batch_size, cfg.train_dataloader.dataset.length = 4, 8
    cfg.val_dataloader.batch_size = cfg.val_dataloader.dataset.length = 4
    cfg.test_dataloader = cfg.val_dataloader
    cfg.custom_hooks[1].pretrained = str(shapes_folder)
    cfg.train_cfg = dict(by_epoch=True, max_epochs=1, val_interval=1)
    runner = runner_of_two_steps(cfg, tmp_path, monkeypatch)
    runner.train()
    assert runner.iter == 2
    stored = load_file(shapes_folder / 'vision.safetensors')
    moved = {
        name.split('.')[1]
        for name, value in stored.items()
        if name.startswith('vision.') and not torch.equal(value, runner.model.state_dict()[_in_classifier(name)])
    }
    assert moved == {'neck'}
    assert set(runner.test()) == {'accuracy/top1'}


def _in_classifier(name):
    return name.removeprefix('vision.').replace('neck.', 'neck.0.', 1)


def test_the_conversational_config_starts_from_its_folder_and_trains(shapes_folder, tmp_path, monkeypatch):
    torch.manual_seed(0)
    cfg = Config.fromfile(CLASSIFY)
    cfg.train_dataloader.batch_size = 4
    cfg.val_dataloader.batch_size = cfg.val_dataloader.dataset.length = 4
    cfg.test_dataloader = cfg.val_dataloader
    cfg.model.vlm.pretrained = str(shapes_folder)
    runner = runner_of_two_steps(cfg, tmp_path, monkeypatch)
    stored = load_file(shapes_folder / 'vision.safetensors')
    model = runner.model.vlm.family.model.state_dict()
    assert all(torch.equal(model[name], value) for name, value in stored.items())
    runner.train()
    assert runner.iter == 2
    assert set(runner.test()) == {'answer/accuracy'}


@parametrize(FULL)
def test_full_size_configs_keep_sphinx_as_it_is(path):
    cfg, sphinx = Config.fromfile(path), Config.fromfile(ROOT / 'configs/_base_/models/sphinx-7b.py')
    if cfg.model.type == 'ImageClassifier':
        neck, mean = cfg.model.neck[0], cfg.data_preprocessor.mean
        assert cfg.model.backbone == sphinx.model.vlm.backbone and neck == sphinx.model.vlm.neck
        assert cfg.model.head.in_channels == neck.out_channels
        assert mean == pytest.approx([255 * value for value in sphinx.clip_mean])
    else:
        assert cfg.model.vlm.backbone == sphinx.model.vlm.backbone
        splits = [loader.dataset.dataset.split for loader in (cfg.train_dataloader, cfg.val_dataloader)]
        assert splits == ['train', 'val']
        assert set(cfg.train_dataloader.dataset) == {'type', 'dataset', 'class_names', 'pipeline'}


def test_the_program_trains_the_tiny_sphinx_first_where_it_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(run, 'ROOT', tmp_path)
    ways = [f'projects/visual_recognition/configs/{path.name}' for path in (LINEAR, CLASSIFY)]
    configs = [command[1] for command in run.commands() if command[0] == 'tools/train.py']
    assert configs[3:] == ways and all((ROOT / config).is_file() for config in configs)
    folder = tmp_path / 'work_dirs' / 'tiny-sphinx_1xb16-tasks-coslr-600i_shapes' / 'pretrained'
    assert str(folder).endswith(Config.fromfile(CLASSIFY).model.vlm.pretrained)
    folder.mkdir(parents=True)
    assert [command[1] for command in run.commands() if command[0] == 'tools/train.py'] == ways
