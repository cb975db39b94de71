"""Every config of transfer: its parts, a training and an inference step, shallow and narrow.

Drawn shapes in COCO's format take the place of COCO: images of different sizes, with a crowd, a grayscale file and one
that shows nothing among them, at an eighth of the sizes in the pipelines. What needs compiled ops is skipped where
onedl-mmcv has none.
"""

import math
import runpy
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from limits import HANGS
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from repository_configs import (  # noqa: F401
    CONFIGS,
    ROOT,
    StopAfterOneEpoch,
    config_files,
    load,
    parametrize,
    quick_mmengine,
)

from mergemix_mm.engine.launch import build_runner, set_loader_defaults
from mergemix_mm.missing_ops import INSTALL, has_ops
from mergemix_mm.toy import write_shapes_coco
from mergemix_mm.toy.scenes import SHAPES

pytest.importorskip('mmdet', reason="MMDetection is missing: pip install -e '.[detection]'")

FILES = config_files('transfer')
TINY = [path for path in FILES if path.stem.startswith('tiny-')]
FULL = [path for path in FILES if path not in TINY]
MASK_RCNN = next(path for path in TINY if path.stem.startswith('tiny-mask-rcnn-vit_'))
TYPE_OF_NAME = {
    'mask-rcnn': 'MaskRCNN',
    'dab-detr': 'DABDETR',
    'detr': 'DETR',
    'maskformer': 'MaskFormer',
    'retinanet': 'RetinaNet',
}
NEED_OPS = {'MaskRCNN', 'RetinaNet'}  # RoIAlign and non-maximum suppression.
SMALL = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)
SMALL_CONVNEXT = dict(depths=[1, 1, 1, 1], channels=[8, 8, 8, 24])
SHRINK = 8  # Of the pixels in the pipelines; patches keep their size.
NUMBERS = dict(num_train=4, num_val=4)
NARROW = {256: 32, 1024: 64, 2048: 64, 384: 16, 768: 24}  # Widths of heads and of what comes into the necks.

config_file = parametrize(FILES)


def skip_without_ops(cfg):
    if cfg.model.type in NEED_OPS and not has_ops():
        pytest.skip(f'{cfg.model.type} needs the compiled ops of onedl-mmcv, built in about 20 minutes: {INSTALL}')


def inner(dataset):
    """The dataset itself, and how often it is repeated in an epoch."""
    return (dataset.dataset, dataset.times) if dataset.type == 'RepeatDataset' else (dataset, 1)


def vits(cfg):
    """Every vision transformer in the backbone."""
    backbone = cfg.model.backbone
    encoders = [entry.encoder for entry in backbone.get('encoders', [])] or [backbone]
    return [encoder for encoder in encoders if 'VisionTransformer' in encoder.type]


def test_there_is_a_tiny_config_for_the_parts_of_every_full_one():
    def parts(path):
        cfg = load(path)
        necks = cfg.model.neck if isinstance(cfg.model.neck, list) else [cfg.model.neck]
        levels = [len(neck.get('scales', [])) for neck in necks]
        return cfg.model.type.removeprefix('DAB'), cfg.model.backbone.type, [neck.type for neck in necks], levels

    assert {str(parts(path)) for path in FULL} <= {str(parts(path)) for path in TINY}


@parametrize([path for path in FILES if 'retinanet' in path.stem])
def test_the_levels_of_a_config_are_those_of_its_anchors(path):
    model = load(path).model
    anchors, patch = model.bbox_head.anchor_generator, model.backbone.encoders[0].encoder.patch_size
    assert [patch / scale for scale in model.neck.scales] == anchors.strides
    assert anchors.center_offset == 0.5
    assert model.data_preprocessor.pad_size_divisor % patch == 0


@config_file
def test_name_tells_the_detector_its_backbone_and_where_that_starts(path):
    name, cfg = path.stem.removeprefix('tiny-'), load(path)
    assert cfg.model.type == next(kind for start, kind in TYPE_OF_NAME.items() if name.startswith(start))
    assert ('tome-' in name) == (cfg.model.backbone.type == 'ToMeVisionTransformer')
    assert ('convnext' in name) == (cfg.model.backbone.type == 'MultiBackbone')
    assert [bool(vit.get('init_cfg')) for vit in vits(cfg)] == ['-mergemix-' in name]
    assert path in FULL or '-scratch-' in name


@config_file
def test_custom_imports_are_all_that_mmdetection_needs(path):
    cfg = load(path)
    assert cfg.default_scope == 'mmdet'
    without_ops = [] if cfg.model.type in NEED_OPS else ['mergemix_mm.missing_ops']
    assert cfg.custom_imports.imports == ['mergemix_mm', *without_ops]
    assert 'StepSeedHook' in [hook.type for hook in cfg.custom_hooks]


@parametrize(FULL)
def test_a_backbone_that_learns_learns_layer_by_layer(path):
    cfg = load(path)
    if cfg.model.backbone.type == 'MultiBackbone':  # Frozen.
        assert not any(entry.get('frozen') is False for entry in cfg.model.backbone.encoders)
        return
    assert cfg.optim_wrapper.constructor == 'BackboneLayerDecayConstructor'
    assert cfg.optim_wrapper.paramwise_cfg == dict(layer_decay_rate=0.7)


def test_the_classifier_of_the_imagenet_config_is_the_backbone_of_the_detectors(tmp_path):
    # Both as in the configs, except depth and width: the converter takes every weight.
    convert = runpy.run_path(str(ROOT / 'tools/model_converters/classifier_to_backbone.py'))['convert']
    classifier = load(CONFIGS / 'mergemix/deit-small_4xb256-mergemix-coslr-300e_in1k.py').model
    detector = load(next(path for path in FULL if path.stem.startswith('detr-')))
    assert classifier.backbone.arch == detector.model.backbone.arch == 'deit-small'
    assert detector.model.backbone.init_cfg.checkpoint.startswith(
        'work_dirs/deit-small_4xb256-mergemix-coslr-300e_in1k/'
    )
    classifier.backbone.arch = detector.model.backbone.arch = SMALL
    classifier.backbone.img_size, detector.model.backbone.img_size = 64, 128
    init_default_scope('mmpretrain')
    weights = MODELS.build(classifier.backbone).state_dict()
    torch.save(dict(state_dict={f'backbone.{name}': weight for name, weight in weights.items()}), tmp_path / 'in.pth')
    init_default_scope('mmdet')
    convert(detector, tmp_path / 'in.pth', tmp_path / 'out.pth')
    detector.model.backbone.init_cfg.checkpoint = str(tmp_path / 'out.pth')
    backbone = MODELS.build(detector.model.backbone)
    backbone.init_weights()
    assert torch.equal(backbone.layers[1].ffn.layers[1].weight, weights['layers.1.ffn.layers.1.weight'])
    assert backbone.pos_embed.shape == (1, 65, 16) and backbone.pos_embed[0, 0].equal(weights['pos_embed'][0, 0])


# Small models and data.


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    """A folder with drawn shapes, four images of each split: of one thing or more, a crowd, grayscale, of nothing."""
    folder = tmp_path_factory.mktemp('data') / 'shapes'
    write_shapes_coco(folder, **NUMBERS, image_size=96)
    return folder


def narrow(part):
    """The heads' config with an eighth of the width and one layer where there are several."""
    if isinstance(part, dict):
        for key, value in part.items():
            if key == 'num_layers':
                part[key] = 1
            elif key == 'num_feats':
                part[key] = value // 8
            elif key.endswith(('channels', 'embed_dims')):
                part[key] = [NARROW.get(v, v) for v in value] if isinstance(value, list) else NARROW.get(value, value)
            else:
                narrow(value)
    elif isinstance(part, list):
        for entry in part:
            narrow(entry)


def shrink_pixels(part):
    """Every size in a pipeline, in place."""

    def small(value):
        return value // SHRINK if isinstance(value, int) else type(value)(small(v) for v in value)

    for key, value in part.items() if isinstance(part, dict) else []:
        if key in ('scale', 'scales', 'crop_size', 'size'):
            part[key] = small(value)
    for value in part.values() if isinstance(part, dict) else part if isinstance(part, list) else []:
        shrink_pixels(value)


def small_coco(dataset, shapes, split):
    """A dataset of COCO on the drawn shapes."""
    dataset.update(data_root=str(shapes), ann_file=f'annotations/{split}.json', data_prefix=dict(img=split))
    dataset.metainfo = dict(classes=SHAPES)
    if dataset.type == 'CocoPanopticDataset':  # The panoptic transforms need panopticapi, which is not on PyPI.
        dataset.type = 'CocoDataset'
        for step in dataset.pipeline:
            if step.type == 'LoadPanopticAnnotations':
                step.clear()
                step.update(type='LoadAnnotations', with_bbox=True, with_mask=True)
    shrink_pixels(dataset.pipeline)


def shrink(path, shapes):
    """The config with a small model, small data and one process; schedules and all else as it says."""
    cfg = load(path)
    for key, split in (('train_dataloader', 'train'), ('val_dataloader', 'val'), ('test_dataloader', 'val')):
        cfg[key].update(batch_size=2, num_workers=0, persistent_workers=False)
        if path in TINY:
            cfg[key].dataset.update(folder=str(shapes), **NUMBERS)
        else:
            if cfg[key].dataset.type == 'RepeatDataset':
                cfg[key].dataset.times = 1
            small_coco(inner(cfg[key].dataset)[0], shapes, split)
    for key in ('val_evaluator', 'test_evaluator'):
        metric = 'bbox' if cfg.model.type in ('DETR', 'DABDETR', 'RetinaNet') else ['bbox', 'segm']
        cfg[key] = dict(type='CocoMetric', ann_file=str(shapes / 'annotations/val.json'), metric=metric)
    if path in FULL:
        for part in (cfg.model.get('neck'), *(v for k, v in cfg.model.items() if k not in ('backbone', 'neck'))):
            narrow(part)
        shrink_pixels(cfg.model.data_preprocessor)
        for vit in vits(cfg):
            vit.update(arch=SMALL, img_size=64, init_cfg=None)
        for entry in cfg.model.backbone.get('encoders', [])[1:]:
            entry.encoder.update(arch=SMALL_CONVNEXT, init_cfg=None)
    cfg.param_scheduler = None  # A step of the warm-up would be lost in rounding.
    cfg.train_cfg.val_interval = cfg.train_cfg.max_epochs + 1
    return cfg


def runner_of(cfg, folder):
    cfg.work_dir, cfg.experiment_name, cfg.launcher = str(folder), f'{folder.parent.name}-{folder.name}', 'none'
    return build_runner(cfg)


@config_file
def test_takes_a_training_and_an_inference_step(path, shapes, tmp_path):
    cfg = shrink(path, shapes)
    skip_without_ops(cfg)
    given = deepcopy(cfg.model)  # MMDetection's detectors write into the configs of their heads.
    runner = runner_of(cfg, tmp_path / 'run')
    assert (cfg.model.backbone, cfg.model.neck) == (given.backbone, given.neck)
    runner.register_hook(StopAfterOneEpoch())
    runner.model.init_weights()
    before = {name: parameter.detach().clone() for name, parameter in runner.model.named_parameters()}
    frozen = {name for name, parameter in runner.model.named_parameters() if not parameter.requires_grad}
    runner.train()
    assert runner.iter == 2
    logged = runner.message_hub.get_scalar('train/loss').data[0]
    assert all(map(math.isfinite, logged)) and min(logged) > 0
    after = dict(runner.model.named_parameters())
    still = {name for name in after if torch.equal(after[name], before[name])}
    assert frozen <= still
    # Parts that a small batch may leave without gradient: levels without a box, a class token that nothing reads.
    assert len(still - frozen) < 0.2 * len(after)
    assert any('backbone' in name for name in after.keys() - still) == (not any('branches' in name for name in frozen))
    assert any('head' in name for name in after.keys() - still)

    runner.model.eval()
    with torch.no_grad():
        samples = runner.model.test_step(next(iter(runner.val_loop.dataloader)))
    assert len(samples) == 2 and samples[0].ori_shape != samples[1].ori_shape
    for sample in samples:
        if cfg.model.type == 'MaskFormer':
            assert sample.pred_panoptic_seg.sem_seg.shape == (1, *sample.ori_shape)
        else:
            height, width = sample.ori_shape
            boxes = sample.pred_instances.bboxes
            assert boxes.shape == (len(sample.pred_instances.labels), 4)
            assert (boxes >= 0).all() and (boxes <= torch.tensor([width, height] * 2)).all()


@parametrize(TINY)
def test_a_resumed_run_of_a_tiny_config_equals_an_uninterrupted_one(path, shapes, tmp_path):
    cfg = shrink(path, shapes)
    skip_without_ops(cfg)
    cfg.param_scheduler = load(path).param_scheduler
    cfg.train_cfg.update(max_epochs=2, val_interval=2)
    if 'score_thr' in cfg.model.test_cfg:
        cfg.model.test_cfg.score_thr = 0.0  # Four steps make no confident RetinaNet.

    def train(folder, **kwargs):
        settings = Config({**deepcopy(cfg), **kwargs})
        set_loader_defaults(settings, 'train', 'val')  # As tools/train.py does.
        runner = runner_of(settings, tmp_path / folder)
        if kwargs.pop('stop', False):
            runner.register_hook(StopAfterOneEpoch())
        runner.train()
        return runner

    whole = train('whole')
    train('parts', stop=True)
    assert not (tmp_path / 'parts/epoch_2.pth').exists()
    resumed = train('parts', resume=True, experiment_name='resumed')
    assert resumed.iter == whole.iter == 4
    expected, found = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    metrics = whole.val()
    assert metrics == resumed.val() and 'coco/bbox_mAP' in metrics


def test_the_tiny_mask_rcnn_learns_to_find_the_shapes_of_a_few_images(shapes, tmp_path):
    cfg = shrink(MASK_RCNN, shapes)
    skip_without_ops(cfg)
    cfg.train_cfg.max_epochs = 25
    cfg.val_dataloader.dataset.split = 'train'
    cfg.val_evaluator.ann_file = str(shapes / 'annotations/train.json')
    cfg.default_hooks.checkpoint.interval = 25
    runner = runner_of(cfg, tmp_path / 'run')
    runner.train()
    metrics = runner.val()
    assert metrics['coco/bbox_mAP_50'] > 0.5 and metrics['coco/segm_mAP_50'] > 0.5


def test_detrs_need_no_compiled_ops_and_the_others_are_skipped_with_the_command():
    # As with a plain `pip install onedl-mmcv`: the same tests in a process that cannot import the ops.
    code = "import pytest, sys; sys.modules['mmcv._ext'] = None; sys.exit(pytest.main(sys.argv[1:]))"
    tests = [__file__, '-q', '-rs', '-k', 'takes_a_training and tiny-', '-p', 'no:cacheprovider']
    done = subprocess.run([sys.executable, '-c', code, *tests], capture_output=True, text=True, cwd=ROOT, timeout=HANGS)
    assert '2 passed, 4 skipped' in done.stdout, done.stdout + done.stderr
    assert 'MaskRCNN needs the compiled ops of onedl-mmcv' in done.stdout and INSTALL in done.stdout


def test_an_op_that_is_missing_names_itself_and_the_command_when_it_is_called():
    code = (
        "import sys; sys.modules['mmcv._ext'] = None; import mergemix_mm.missing_ops, torch; from mmcv.ops import nms; "
        'nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, timeout=HANGS)
    assert 'ImportError: nms is a compiled op' in done.stderr and INSTALL in done.stderr


def test_ops_that_are_there_stay():
    import mmcv

    if not has_ops():
        pytest.skip('there are none')
    assert sys.modules['mmcv._ext'].__file__.startswith(str(Path(mmcv.__file__).parent))
