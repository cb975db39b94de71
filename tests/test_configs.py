"""Every config: its name, its bases, its place in the tables, its strategy.

Those of classifiers also take a training step and a validation, shallow and narrow.
"""

import inspect
import math
import re
from copy import deepcopy
from importlib.util import find_spec

import mergemix_tables
import numpy as np
import pytest
import torch
import yaml
from mmcv.image import imwrite
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.runner import Runner
from mmpretrain.models import VisionTransformer
from mmpretrain.registry import DATASETS, MODELS
from mmpretrain.structures import DataSample
from repository_configs import (  # noqa: F401
    CONFIGS,
    FOLDERS,
    NAME,
    ROOT,
    StopAfterOneEpoch,
    config_files,
    find,
    load,
    loaders,
    parametrize,
    quick_mmengine,
    without_strategy,
    words_of,
)
from test_full_sizes import CLASSIFIERS, VLMS
from torch.utils.data import DataLoader, Dataset

import mergemix_mm
from mergemix_mm.engine.launch import LaunchError, check_data_roots, explain_corrupt_images
from mergemix_mm.moved import CONFIGS as MOVED

# The configs of transfer inherit MMDetection's.
ALL = [
    path for folder in FOLDERS if folder.name != 'transfer' or find_spec('mmdet') for path in config_files(folder.name)
]
TUNERS = [path for folder in ('aia', 'simpo', 'sphinx') for path in config_files(folder)]
SHARDED = [path for path in ALL if words_of(path)[-1] == 'fsdp']
FILES = config_files('mergemix')
DEMO = CONFIGS / 'mergemix/vit-tiny_1xb32-mergemix-coslr-30e_digits.py'

DATASETS_OF_NAMES = {
    'cifar100': 'CIFAR100',
    'cluttered-digits': 'DigitsDataset',
    'coco': 'CocoDataset',
    'coco-panoptic': 'CocoPanopticDataset',
    'cub': 'CUB',
    'digits': 'DigitsDataset',
    'fgvcaircraft': 'FGVCAircraft',
    'in1k': 'ImageNet',
    'laion-coco': 'TaskMixDataset',
    'laion400m': 'TaskMixDataset',
    'llava-mix665k': 'ConversationDataset',
    'llava-mix665k-t2i': 'UnifiedDataset',
    'llava-pretrain558k': 'ConversationDataset',
    'mix': 'TaskMixDataset',
    'pope': 'POPEDataset',
    'scienceqa': 'ScienceQADataset',
    'stanfordcars': 'StanfordCars',
    'vqav2': 'VQAv2Dataset',
}
SHAPES_OF_FOLDERS = {
    'aia': 'UnifiedDataset',
    'simpo': 'ShapesConversationDataset',
    'sphinx': 'TaskMixDataset',
    'transfer': 'ShapesCocoDataset',
}
# Records of an epoch that is counted in iterations.
RECORDS = {'llava-mix665k': 665_298, 'llava-pretrain558k': 558_128, 'llava-mix665k-t2i': 665_298}
SCHEDULES = {'coslr': 'CosineAnnealingLR', 'step': 'MultiStepLR', 'lsj': 'MultiStepLR'}
STRATEGY_OF_NAME = {'fsdp': 'FSDP2Strategy'}

SMALL = dict(embed_dims=16, num_layers=4, num_heads=2, feedforward_channels=32)
SMALL_SIZE, SMALL_PATCH = 32, 8
SMALL_PATCHES = (SMALL_SIZE // SMALL_PATCH) ** 2


def schedules_of(cfg):
    return cfg.param_scheduler if isinstance(cfg.param_scheduler, list) else [cfg.param_scheduler]


# What the names promise.


@parametrize(ALL)
def test_name_tells_the_data_the_batch_the_length_and_the_strategy(path):
    name, cfg, words = NAME.fullmatch(path.stem), load(path), words_of(path)
    batch, total = int(name['batch']), int(name['batch']) * int(name['gpus'])
    loader = loaders(cfg)[0]
    dataset, times = (loader.dataset, 1)
    if dataset.type == 'RepeatDataset':
        dataset, times = dataset.dataset, dataset.times
    assert dataset.type == (DATASETS_OF_NAMES.get(name['dataset']) or SHAPES_OF_FOLDERS[path.parent.name])
    assert loader.batch_size == loader.sampler.get('batch_size', batch) == batch
    assert (cfg.get('auto_scale_lr') or dict(base_batch_size=total))['base_batch_size'] == total
    assert (cfg.get('strategy') or {}).get('type') == STRATEGY_OF_NAME.get(words[-1])
    for word in words:
        if length := re.fullmatch(r'(\d+)([ei])', word):
            steps, found = int(length[1]), cfg.train_cfg.get('max_epochs', 0) * times or cfg.train_cfg.max_iters
            if length[2] == 'e' and 'max_iters' in cfg.train_cfg:
                # AIA takes as many steps of the other task.
                steps *= math.ceil(RECORDS[name['dataset']] / total) * (1 + (path.parent.name == 'aia'))
            assert found == steps
    if kinds := [SCHEDULES[word] for word in words if word in SCHEDULES]:
        parts = schedules_of(cfg)
        assert parts[-1].type == kinds[0]
        if kinds[0] == 'CosineAnnealingLR':
            warmup, annealing = parts
            assert warmup.type == 'LinearLR' and warmup.end == annealing.begin
            assert annealing.get('end', found) == found and annealing.by_epoch == ('max_epochs' in cfg.train_cfg)


@parametrize(SHARDED)
def test_sharded_configs_compute_and_save_as_others_do(path):
    cfg = load(path)
    assert cfg.runner_type == 'FlexibleRunner' and cfg.strategy == dict(type='FSDP2Strategy')
    wrapper = cfg.optim_wrapper
    assert wrapper.clip_grad.max_norm == (10.0 if path in FILES else 1.0)
    if path in TUNERS:  # The weights are gathered in bfloat16.
        assert (wrapper.type, wrapper.dtype) == ('AmpOptimWrapper', 'bfloat16')
        assert 'SavePretrainedHook' in [hook.type for hook in cfg.custom_hooks]
    else:
        assert wrapper.get('type', 'OptimWrapper') == 'OptimWrapper'


@parametrize(TUNERS)
def test_data_and_model_share_one_processor(path):
    cfg = load(path)
    vlm, found = cfg.model.vlm, find([cfg.model, *loaders(cfg)], 'processor')
    assert len(found) >= 2 and all(one == cfg.model.processor for one in found)
    if path.parent.name == 'sphinx':
        assert cfg.encode.processor == cfg.model.processor
        language_model = vlm.get('language_model') or {}
        assert language_model.get('pretrained', cfg.model.processor.tokenizer) == cfg.model.processor.tokenizer
    elif 'pretrained' in vlm:
        assert cfg.model.processor.pretrained_model_name_or_path == vlm.pretrained


# Tables and bases.


def statuses(table):
    """Name and status of each config that a table of a README links to: statuses are a column, or the last row."""
    head, _, *rows = ([cell.strip() for cell in line.strip('|').split('|')] for line in table.splitlines())
    by_row = 'Status' in head
    if not by_row and rows[-1][0] != 'Status':
        return []
    return [
        (stem, row[head.index('Status')] if by_row else rows[-1][column])
        for row in rows
        for column, cell in enumerate(row)
        for stem in re.findall(r'\]\(\./([^/]+)\.py\)', cell)
    ]


@pytest.mark.parametrize('folder', FOLDERS, ids=lambda folder: folder.name)
def test_tables_of_a_folder_list_all_its_configs_and_what_was_done_with_them(folder):
    files = config_files(folder.name)
    metafile = yaml.safe_load((folder / 'metafile.yml').read_text())
    collections = {collection['Name']: collection for collection in metafile['Collections']}
    assert [model['Config'] for model in metafile['Models']] == [str(path.relative_to(ROOT)) for path in files]
    for model, path in zip(metafile['Models'], files):
        assert model['Name'] == path.stem and model['In Collection'] in collections
    assert all((ROOT / collection['Code']['URL']).is_file() for collection in collections.values())
    readme = (folder / 'README.md').read_text()
    rows = [row for table in re.findall(r'(?:^\|.*\n)+', readme, re.MULTILINE) for row in statuses(table)]
    status = dict(rows)
    assert sorted(stem for stem, _ in rows) == [path.stem for path in files]
    results = readme[re.search('## (What was run|Results)', readme).end() :]
    run = re.findall(rf'python tools/train\.py configs/{folder.name}/(\S+)\.py', results)
    for path in files:
        # ViT-S of MMPretrain has no published number.
        counted = path in [*VLMS, *CLASSIFIERS] and not path.stem.startswith('vit-small')
        assert status[path.stem] == ('run' if path.stem in run else 'built, counted' if counted else 'built'), path.stem


@pytest.mark.parametrize('path', mergemix_tables.TABLES, ids=lambda path: path.name)
def test_what_follows_from_the_names_of_the_configs_of_mergemix_is_written(path):
    assert mergemix_tables.written(path) == path.read_text(), 'run PYTHONPATH=. python tests/mergemix_tables.py'


def test_model_index_imports_every_metafile():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    assert sorted(index['Import']) == sorted(str(path.relative_to(ROOT)) for path in CONFIGS.rglob('metafile.yml'))


def test_names_that_configs_take_from_their_bases_are_keys_of_a_run_or_listed_in_the_docs():
    table = re.findall(r'^\| (`\w+`(?:, `\w+`)*) \|', (ROOT / 'docs/configs.md').read_text(), re.MULTILINE)
    listed = {name for cell in table for name in re.findall(r'\w+', cell)}
    texts = [path.read_text() for part in ('configs', 'projects') for path in (ROOT / part).rglob('*.py')]
    used = {name for text in texts for name in re.findall(r'_base_\.(\w+)', text)}
    # `encode_options` is read by tools/evaluate.py.
    assert used - set(inspect.signature(Runner).parameters) == listed - {'encode_options'}


# Classifiers.


@DATASETS.register_module()
class RandomImages(Dataset):
    """Random images, with labels that use the first and the last class."""

    def __init__(self, size: int, num_classes: int) -> None:
        self.metainfo = {}
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(256, (4, 3, size, size), generator=generator, dtype=torch.uint8)
        self.labels = [0, num_classes - 1, 0, num_classes // 2]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        return dict(inputs=self.images[index], data_samples=DataSample().set_gt_label(self.labels[index]))


def shrink(cfg: Config) -> Config:
    """The config with a shallow, narrow model, random images and one process: layers and merges scaled along."""
    backbone = cfg.model.backbone
    plain = VisionTransformer.arch_zoo[backbone.arch] if isinstance(backbone.arch, str) else backbone.arch
    depth, patches = plain['num_layers'], (backbone.img_size // backbone.patch_size) ** 2
    backbone.update(arch=SMALL, img_size=SMALL_SIZE, patch_size=SMALL_PATCH)
    if (backbone.get('init_cfg') or {}).get('type') == 'Pretrained':
        backbone.init_cfg = None
    cfg.model.head.in_channels = SMALL['embed_dims']
    for part in [backbone, *(cfg.model.get('train_cfg') or {}).get('augments', [])]:
        if isinstance(part.get('num_merge'), int):  # A float is a share.
            part.num_merge = part.num_merge * SMALL_PATCHES // patches
        if part.get('layer') is not None:
            part.layer = part.layer * SMALL['num_layers'] // depth

    images = dict(type='RandomImages', size=SMALL_SIZE, num_classes=cfg.model.head.num_classes)
    for split in ('train', 'val'):
        sampler = cfg[f'{split}_dataloader'].sampler
        cfg[f'{split}_dataloader'] = dict(batch_size=4, num_workers=0, dataset=images, sampler=sampler)
    cfg.train_cfg.val_interval = cfg.train_cfg.max_epochs  # the validation comes after the step
    cfg.test_dataloader = cfg.test_cfg = cfg.test_evaluator = None
    cfg.load_from = None
    return without_strategy(cfg)


TESTED = set()


def known_before(*parts):
    """Whether a config with equal parts was tested in this process: equal parts behave alike, so one test is enough."""
    key = repr(parts)
    if key in TESTED:
        return True
    TESTED.add(key)
    return False


def runner_of(cfg, folder):
    cfg.work_dir, cfg.experiment_name = str(folder), folder.name
    runner = Runner.from_cfg(cfg)
    runner.register_hook(StopAfterOneEpoch())
    return runner


@parametrize(FILES)
def test_a_classifier_mixes_as_its_name_says_and_knows_the_classes_of_its_data(path):
    cfg, words = load(path), words_of(path)
    if 'coslr' in words:
        mixing = words[: words.index('coslr')]
        augments = [augment.type.lower() for augment in (cfg.model.get('train_cfg') or {}).get('augments', [])]
        # TransMix, MixPro and TdAttenMix are published with Mixup beside them, which is not in the names.
        assert augments in (mixing[: len(augments)], [*mixing[:1], 'mixup']) and bool(augments) == bool(mixing)
    classes = DATASETS.get(cfg.train_dataloader.dataset.type).METAINFO['classes']
    assert cfg.model.head.num_classes == cfg.data_preprocessor.num_classes == len(classes)
    for split in ('val', 'test'):
        assert cfg[f'{split}_dataloader'].dataset.type == cfg.train_dataloader.dataset.type
        assert cfg[f'{split}_dataloader'].dataset.split != cfg.train_dataloader.dataset.split


# Released settings (OpenMixup): layer that scores, of how many; tokens that merge; ratio; whether the trained passes
# merge too; learning rate and its last value.
RELEASED = {
    'deit-tiny_1xb100-mergemix-coslr-200e_cifar100': (9, 12, 98, 'gaussian', True, 1e-3, 0.0),
    'deit-tiny_1xb100-mergemix-coslr-600e_cifar100': (9, 12, 98, 'gaussian', True, 1e-3, 1e-6),
    'deit-small_1xb100-mergemix-coslr-200e_cifar100': (9, 12, 98, 'gaussian', True, 1e-3, 0.0),
    'deit-base_1xb100-mergemix-coslr-200e_cifar100': (9, 12, 98, 'gaussian', False, 5e-4, 1e-6),
    'vit-base_1xb100-mergemix-coslr-600e_cifar100': (9, 12, 98, 'gaussian', True, 5e-4, 0.0),
    'vit-small_1xb100-mergemix-coslr-200e_cifar100': (6, 8, 98, 'gaussian', True, 5e-4, 1e-6),
    'vit-small_1xb100-mergemix-coslr-600e_cifar100': (6, 8, 98, 'gaussian', True, 5e-4, 1e-6),
    'vit-large_1xb100-mergemix-coslr-200e_cifar100': (18, 24, 98, 'gaussian', False, 2e-4, 1e-6),
    'deit-small_1xb16-mergemix-coslr-200e_cub': (9, 12, 147, 'area', False, 1e-5, 1e-7),
    'vit-base_1xb16-mergemix-coslr-200e_cub': (9, 12, 98, 'gaussian', False, 1e-5, 1e-6),
    'deit-small_1xb16-mergemix-coslr-200e_fgvcaircraft': (12, 12, 98, 'area', False, 1e-5, 5e-6),
    'vit-base_1xb16-mergemix-coslr-200e_fgvcaircraft': (12, 12, 98, 'gaussian', False, 1e-5, 1e-6),
    'deit-small_1xb16-mergemix-coslr-200e_stanfordcars': (12, 12, 98, 'area', False, 1e-5, 1e-6),
    'vit-base_1xb16-mergemix-coslr-200e_stanfordcars': (12, 12, 98, 'area', False, 1e-5, 1e-6),
    'deit-small_4xb256-mergemix-coslr-300e_in1k': (12, 12, 49, 'area', False, 1e-3, 1e-5),
}


@pytest.mark.parametrize('stem', RELEASED)
def test_mergemix_has_the_objective_of_the_paper_and_the_released_settings(stem):
    layer, depth, merged, ratio, trained, rate, last = RELEASED[stem]
    cfg = load(CONFIGS / f'mergemix/{stem}.py')
    backbone, (augment,) = cfg.model.backbone, cfg.model.train_cfg.augments
    assert VisionTransformer.arch_zoo[backbone.arch]['num_layers'] == depth
    assert (cfg.model.clean_weight, cfg.model.get('base_augment')) == (1.0, None)
    assert (augment.get('layer', depth * 3 // 4), augment.ratio) == (layer, ratio)
    assert (backbone.type == 'ToMeVisionTransformer') == trained
    # 196 patches, of which half merge by default.
    assert merged == (int(196 * backbone.num_merge) if trained else augment.get('num_merge', 98))
    assert augment.get('inflection', -0.5) == backbone.get('inflection', -0.5) == -0.5
    assert not trained or not {'num_merge', 'inflection'} & set(augment)
    assert (cfg.optim_wrapper.optimizer.lr, schedules_of(cfg)[-1].eta_min) == (rate, last)
    # One loss is clipped at 5.
    clip = cfg.optim_wrapper.clip_grad.max_norm
    assert clip == 5.0 * (1 + cfg.model.clean_weight) and backbone.drop_path_rate == 0.1


@parametrize(FILES)
def test_a_classifier_takes_a_step_and_a_validation_on_its_schedule(path, tmp_path):
    cfg = shrink(load(path))
    # Made small, many configs differ in nothing but the number of epochs, which the name of each is compared with.
    keys = sorted({*cfg} & {*inspect.signature(Runner).parameters} - {'train_cfg'})
    if known_before({key: cfg[key] for key in keys}):
        return
    # MMPretrain's own classifier puts defaults into its preprocessor's dictionary; the keys of this project stay.
    given = deepcopy(cfg.model)
    MODELS.build(cfg.model)
    assert cfg.model == given
    runner = runner_of(cfg, tmp_path)
    bias = runner.model.head.layers.head.bias.detach().clone()
    runner.train()

    assert runner.iter == 1
    losses = runner.message_hub.get_scalar('train/loss').data[0]
    assert np.isfinite(losses).all() and (losses > 0).all()
    assert all(torch.isfinite(value).all() for value in runner.model.state_dict().values())
    # Even the smallest rate of the warm-up moves a bias that has a gradient.
    assert not torch.equal(bias, runner.model.head.layers.head.bias)
    assert 0 <= runner.val()['accuracy/top1'] <= 100

    decay = {id(p): group['weight_decay'] for group in runner.optim_wrapper.param_groups for p in group['params']}
    decays = {name: decay[id(parameter)] for name, parameter in runner.model.named_parameters()}
    plain = ('bias', 'cls_token', 'pos_embed', 'ln1.weight', 'ln2.weight')
    assert {value for name, value in decays.items() if name.endswith(plain)} == {0.0}
    assert {value for name, value in decays.items() if not name.endswith(plain)} == {0.05}

    # The first epoch is done; each epoch is one iteration here.
    first, peak, rates = runner.message_hub.get_scalar('train/lr').data[0][0], cfg.optim_wrapper.optimizer.lr, []
    for _ in range(runner.max_epochs - 1):
        for scheduler in runner.param_schedulers:
            scheduler.step()
        rates.append(runner.optim_wrapper.param_groups[0]['lr'])
    assert first < peak / 100 and rates[-1] - schedules_of(cfg)[-1].get('eta_min', 0.0) < peak / 50
    assert max(rates) == pytest.approx(peak, rel=0.05)


@parametrize(FILES)
def test_pipelines_give_images_of_the_size_the_backbone_expects(path, tmp_path):
    cfg = load(path)
    if known_before(loaders(cfg), cfg.model.backbone.img_size):
        return
    rng = np.random.default_rng(0)
    image_path = str(tmp_path / 'image.jpg')
    small = 32 if cfg.train_dataloader.dataset.type in ('CIFAR100', 'DigitsDataset') else 300
    image = rng.integers(0, 256, (small, small + (small > 32) * 40, 3), dtype=np.uint8)
    imwrite(image, image_path)
    for split in ('train', 'val', 'test'):
        with DATASETS.switch_scope_and_registry('mmpretrain'):
            pipeline = Compose(cfg[f'{split}_dataloader'].dataset.pipeline)
        for _ in range(3):
            results = pipeline(dict(img=image.copy(), img_path=image_path, gt_label=1))
            assert results['inputs'].shape == (3, cfg.model.backbone.img_size, cfg.model.backbone.img_size)
            assert results['data_samples'].gt_label.tolist() == [1]


# From outside the repository.


@pytest.mark.parametrize(
    'base',
    [
        'mmpretrain::deit/deit-small_4xb256_in1k.py',
        'mmpretrain::vision_transformer/vit-base-p16_64xb64_in1k.py',
        'mmpretrain::deit3/deit3-small-p16_64xb64_in1k.py',
    ],
)
def test_two_lines_add_mergemix_to_a_config_outside_the_repository(base, tmp_path):
    (tmp_path / 'theirs.py').write_text(f"_base_ = '{base}'\n")
    (tmp_path / 'mine.py').write_text(
        f"_base_ = ['{base}', __import__('mergemix_mm').config_path('_base_/plugins/mergemix.py')]\n"
        'model = _base_.mergemix\n'
    )
    theirs, mine = Config.fromfile(tmp_path / 'theirs.py'), Config.fromfile(tmp_path / 'mine.py')
    assert mine.model.type == 'MixupClassifier'
    assert mine.model.train_cfg == dict(augments=[dict(type='MergeMix')], probs=None)
    assert mine.model.backbone == theirs.model.backbone
    assert mine.optim_wrapper == theirs.optim_wrapper


@pytest.mark.parametrize('scheme', ['lean', 'paper', 'released'])
def test_a_plugin_gives_each_scheme_of_mergemix_to_a_config_outside_the_repository(scheme, tmp_path):
    plugin = mergemix_mm.config_path(f'_base_/plugins/mergemix_{scheme}.py')
    (tmp_path / 'mine.py').write_text(
        f"_base_ = ['mmpretrain::deit/deit-small_4xb256_in1k.py', {str(plugin)!r}]\nmodel = _base_.mergemix\n"
    )
    model = Config.fromfile(tmp_path / 'mine.py').model
    model.backbone.update(arch=SMALL, img_size=SMALL_SIZE, patch_size=SMALL_PATCH)
    model.head.in_channels = SMALL['embed_dims']
    model = MODELS.build(model)
    images = torch.randn(4, 3, SMALL_SIZE, SMALL_SIZE, generator=torch.Generator().manual_seed(0))
    losses = model.loss(images, [DataSample().set_gt_label(label) for label in (0, 1, 2, 3)])
    second = dict(lean=[], paper=['clean_loss'], released=['base_loss'])[scheme]
    assert sorted(losses) == sorted(['loss', 'ratio_mean', *second])
    assert getattr(model.backbone, 'num_merge', 0) == (0 if scheme == 'lean' else 0.5)
    assert (model.mix_result.ratio.std() == 0) == (scheme == 'released')


def test_three_lines_without_a_second_base_do_the_same(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(
        "_base_ = 'mmpretrain::deit/deit-small_4xb256_in1k.py'\n"
        "custom_imports = dict(imports=['mergemix_mm'], allow_failed_imports=False)\n"
        "model = dict(type='MixupClassifier', train_cfg=dict(augments=[dict(type='MergeMix')]))\n"
    )
    assert Config.fromfile(path).model.train_cfg == dict(augments=[dict(type='MergeMix')])


@pytest.mark.parametrize(('old', 'new'), MOVED.items())
def test_a_config_that_moved_is_found_under_its_old_path_with_one_warning(old, new, tmp_path):
    if 'detection' in old:
        pytest.importorskip('mmdet', reason="needs MMDetection: pip install -e '.[detection]'")
    mine = tmp_path / 'mine.py'
    mine.write_text(f"_base_ = __import__('mergemix_mm').config_path('{old}')\n")
    with pytest.warns(FutureWarning) as caught:
        found = Config.fromfile(mine).to_dict()
    assert found == Config.fromfile(CONFIGS / new).to_dict()
    # What is imported here for the first time may have warnings of its own.
    (warned,) = (str(one.message) for one in caught if one.category is FutureWarning)
    assert old in warned and new in warned


@pytest.mark.parametrize('folder', FOLDERS, ids=lambda folder: folder.name)
def test_a_whole_config_can_be_inherited_from_outside(folder, tmp_path):
    if folder.name == 'transfer':
        pytest.importorskip('mmdet', reason="needs MMDetection: pip install -e '.[detection]'")
    theirs, mine = config_files(folder.name)[0], tmp_path / 'mine.py'
    mine.write_text(f"_base_ = __import__('mergemix_mm').config_path('{folder.name}/{theirs.name}')\n")
    assert Config.fromfile(mine).model == load(theirs).model
    assert mergemix_mm.config_path(f'{folder.name}/{theirs.name}') == str(theirs)


def test_missing_data_root_names_the_key_and_the_way_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = load(CONFIGS / 'mergemix/deit-small_1xb16-mergemix-coslr-200e_cub.py')
    with pytest.raises(LaunchError, match=r"train_dataloader\.dataset\.data_root='data/CUB_200_2011'.*--cfg-options"):
        check_data_roots(cfg, 'train', 'val')


def test_labels_beyond_num_classes_name_both_keys(tmp_path):
    cfg = shrink(load(DEMO))
    cfg.model.head.num_classes = cfg.data_preprocessor.num_classes = 5
    with pytest.raises(ValueError, match=r'labels of this batch.*num_classes=5.*model\.head and data_preprocessor'):
        runner_of(cfg, tmp_path).train()


def test_head_and_preprocessor_that_disagree_name_both_keys(tmp_path):
    cfg = shrink(load(DEMO))
    cfg.model.head.num_classes = 12
    with pytest.raises(ValueError, match=r"model\.head\.num_classes': 12.*data_preprocessor\.num_classes': 10"):
        runner_of(cfg, tmp_path).train()


def test_corrupt_image_is_named_with_the_remedy(tmp_path):
    image_path = tmp_path / 'corrupt.jpg'
    image_path.write_bytes(b'\xff\xd8\xff not a picture')
    cfg = load(CONFIGS / 'mergemix/deit-small_1xb16-mergemix-coslr-200e_cub.py')
    with DATASETS.switch_scope_and_registry('mmpretrain'):
        pipeline = Compose(cfg.train_dataloader.dataset.pipeline)
    broken = [dict(img_path=str(image_path), gt_label=0)]
    loader = DataLoader(broken, num_workers=1, collate_fn=lambda samples: pipeline(samples[0]))
    remedy = f'{image_path}: .* ignore_empty=True.* train_dataloader.dataset.pipeline'
    with pytest.raises(LaunchError, match=remedy), explain_corrupt_images('train'):
        next(iter(loader))
    with pytest.raises(AssertionError, match='another'), explain_corrupt_images('train'):
        raise AssertionError('another')
