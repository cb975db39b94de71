"""Every config: its place in the tables. Those of classifiers: name, parts, one training step and a validation."""

import inspect
import re
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from mmcv.image import imwrite
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.hooks import Hook
from mmengine.registry import MODEL_WRAPPERS, STRATEGIES
from mmengine.runner import Runner
from mmpretrain.models import VisionTransformer
from mmpretrain.registry import DATASETS, MODELS
from mmpretrain.structures import DataSample
from repository_configs import CONFIGS, FOLDERS, ROOT, config_files, load, parametrize, quick_mmengine  # noqa: F401
from torch.utils.data import DataLoader, Dataset

import mergemix_mm
from mergemix_mm.engine.launch import LaunchError, check_data_roots, explain_corrupt_images
from mergemix_mm.moved import CONFIGS as MOVED

FILES = config_files('mergemix')
DEMO = CONFIGS / 'mergemix/vit-tiny_1xb32-mergemix-coslr-30e_digits.py'

# {backbone}_{batch size}[-{mixer}-{schedule}-{epochs}]_{dataset}
NAME = re.compile(
    r'(?P<backbone>[a-z0-9-]+)_(?P<gpus>\d+)xb(?P<batch>\d+)(?P<middle>(?:-[a-z0-9]+)*)_(?P<dataset>[a-z0-9-]+)'
)
DATASET_OF_NAME = {
    'cifar100': 'CIFAR100',
    'cub': 'CUB',
    'cluttered-digits': 'DigitsDataset',
    'digits': 'DigitsDataset',
    'fgvcaircraft': 'FGVCAircraft',
    'in1k': 'ImageNet',
    'stanfordcars': 'StanfordCars',
}
SMALL = dict(embed_dims=16, num_layers=4, num_heads=2, feedforward_channels=32)
SMALL_SIZE, SMALL_PATCH = 32, 8
SMALL_PATCHES = (SMALL_SIZE // SMALL_PATCH) ** 2

config_file = parametrize(FILES)


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


class StopAfterOneEpoch(Hook):
    """Stops training early without touching max_epochs, so that the schedules keep their true length."""

    def after_train_epoch(self, runner) -> None:
        runner.train_loop.stop_training = True


def shrink(cfg: Config) -> Config:
    """The config with a shallow, narrow model, random images and one process: layers and merges scaled along."""
    backbone = cfg.model.backbone
    plain = VisionTransformer.arch_zoo[backbone.arch] if isinstance(backbone.arch, str) else backbone.arch
    depth, patches = plain['num_layers'], (backbone.img_size // backbone.patch_size) ** 2
    backbone.update(arch=SMALL, img_size=SMALL_SIZE, patch_size=SMALL_PATCH)
    if (backbone.get('init_cfg') or {}).get('type') == 'Pretrained':
        backbone.init_cfg = None
    cfg.model.head.in_channels = SMALL['embed_dims']
    for part in [backbone, *(cfg.model.train_cfg or {}).get('augments', [])]:
        if part.get('num_merge') is not None:
            part.num_merge = part.num_merge * SMALL_PATCHES // patches
        if part.get('layer') is not None:
            part.layer = part.layer * SMALL['num_layers'] // depth

    images = dict(type='RandomImages', size=SMALL_SIZE, num_classes=cfg.model.head.num_classes)
    for split in ('train', 'val'):
        sampler = cfg[f'{split}_dataloader'].sampler
        cfg[f'{split}_dataloader'] = dict(batch_size=4, num_workers=0, dataset=images, sampler=sampler)
    cfg.train_cfg.val_interval = cfg.train_cfg.max_epochs  # the validation has a test of its own
    cfg.test_dataloader = cfg.test_cfg = cfg.test_evaluator = None
    cfg.load_from = None
    # FSDP and DeepSpeed need GPUs: their configs run here without a strategy.
    if 'strategy' in cfg:
        cfg.pop('strategy')
        cfg.pop('runner_type')
        cfg.optim_wrapper.type = 'OptimWrapper'
    return cfg


def build_runner(cfg: Config, work_dir: Path) -> Runner:
    cfg.work_dir = str(work_dir)
    cfg.experiment_name = work_dir.name
    runner = Runner.from_cfg(cfg)
    runner.register_hook(StopAfterOneEpoch())
    return runner


def test_there_are_configs_to_test():
    assert len(FILES) >= 20
    assert DEMO in FILES


@config_file
def test_name_tells_what_the_config_does(path):
    name = NAME.fullmatch(path.stem)
    assert name, f'{path.name} does not follow the naming rule'
    cfg = load(path)

    assert cfg.train_dataloader.batch_size == int(name['batch'])
    assert cfg.train_dataloader.dataset.type == DATASET_OF_NAME[name['dataset']]
    words = name['middle'].split('-')
    if epochs := [word for word in words if re.fullmatch(r'\d+e', word)]:
        assert f'{cfg.train_cfg.max_epochs}e' == epochs[0]
        augments = [augment.type.lower() for augment in cfg.model.train_cfg.augments]
        mixers = words[1 : words.index('coslr')]
        assert augments == mixers[: len(augments)]
    base_batch = (cfg.get('auto_scale_lr') or {}).get('base_batch_size')
    if 'digits' not in name['dataset']:
        assert base_batch == int(name['gpus']) * int(name['batch'])


@config_file
def test_number_of_classes_is_that_of_the_dataset(path):
    cfg = load(path)
    classes = DATASETS.get(cfg.train_dataloader.dataset.type).METAINFO['classes']
    assert cfg.model.head.num_classes == cfg.data_preprocessor.num_classes == len(classes)
    for split in ('val', 'test'):
        assert cfg[f'{split}_dataloader'].dataset.type == cfg.train_dataloader.dataset.type
        assert cfg[f'{split}_dataloader'].dataset.split != cfg.train_dataloader.dataset.split


@pytest.fixture(scope='module', params=FILES, ids=lambda path: path.stem)
def trained(request, tmp_path_factory) -> Runner:
    """A Runner after one training step, and the head's bias before it."""
    runner = build_runner(shrink(load(request.param)), tmp_path_factory.mktemp('configs'))
    runner.initial_bias = runner.model.head.layers.head.bias.detach().clone()
    runner.train()
    return runner


def test_trains_a_step(trained):
    assert trained.iter == 1
    losses = trained.message_hub.get_scalar('train/loss').data[0]
    assert np.isfinite(losses).all() and (losses > 0).all()
    assert all(torch.isfinite(value).all() for value in trained.model.state_dict().values())
    # Even the smallest rate of the warm-up moves a bias that has a gradient.
    assert not torch.equal(trained.initial_bias, trained.model.head.layers.head.bias)


def test_schedule_warms_up_and_anneals(trained):
    # The first epoch is done; each epoch is one iteration here.
    rates = []
    for _ in range(trained.max_epochs - 1):
        for scheduler in trained.param_schedulers:
            scheduler.step()
        rates.append(trained.optim_wrapper.param_groups[0]['lr'])
    peak = trained.cfg.optim_wrapper.optimizer.lr
    assert trained.message_hub.get_scalar('train/lr').data[0][0] < peak / 100
    assert max(rates) == pytest.approx(peak, rel=0.05)
    assert rates[-1] < peak / 50


def test_bias_and_norm_do_not_decay_and_the_matrices_do(trained):
    optimizer = trained.optim_wrapper.optimizer
    decay = {id(p): group['weight_decay'] for group in optimizer.param_groups for p in group['params']}
    decays = {name: decay[id(parameter)] for name, parameter in trained.model.named_parameters()}
    plain = ('bias', 'cls_token', 'pos_embed', 'ln1.weight', 'ln2.weight')
    assert {value for name, value in decays.items() if name.endswith(plain)} == {0.0}
    assert {value for name, value in decays.items() if not name.endswith(plain)} == {0.05}


def test_validates(trained):
    metrics = trained.val()
    assert 0 <= metrics['accuracy/top1'] <= 100


@config_file
def test_pipelines_give_images_of_the_size_the_backbone_expects(path, tmp_path):
    cfg = load(path)
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


@config_file
def test_building_leaves_the_config_as_it_is(path):
    cfg = shrink(load(path))
    # MMPretrain's own classifier puts defaults into its preprocessor's dictionary; the keys of this project stay.
    given = deepcopy(cfg.model)
    MODELS.build(cfg.model)
    assert cfg.model == given


def test_sharding_leaves_the_scoring_backbone_whole():
    sharded = {path.stem: load(path) for path in FILES if 'strategy' in load(path)}
    assert sorted(cfg.strategy.type for cfg in sharded.values()) == ['DeepSpeedStrategy', 'FSDPStrategy']
    for cfg in sharded.values():
        assert cfg.runner_type == 'FlexibleRunner'
        accepted = inspect.signature(STRATEGIES.get(cfg.strategy.type)).parameters
        assert set(cfg.strategy) - {'type'} <= set(accepted)
        if cfg.strategy.type == 'FSDPStrategy':
            wrapper = inspect.signature(MODEL_WRAPPERS.get(cfg.strategy.model_wrapper.type)).parameters
            assert set(cfg.strategy.model_wrapper) - {'type'} <= set(wrapper)
            assert cfg.strategy.state_dict_cfg == 'full'
            assert 'auto_wrap_policy' not in cfg.strategy.model_wrapper
            assert cfg.optim_wrapper.type == 'FSDPOptimWrapper'
        else:
            # DeepSpeed clips by itself, and its optimizer wrapper refuses any further key.
            assert set(cfg.optim_wrapper) == {'type', 'optimizer', 'paramwise_cfg'}
            assert cfg.strategy.gradient_clipping == 5.0
            assert cfg.strategy.zero_optimization.stage == 2


@pytest.mark.parametrize('folder', FOLDERS, ids=lambda folder: folder.name)
def test_tables_of_a_folder_list_all_its_configs(folder):
    names = {path.name for path in folder.glob('*.py')}
    metafile = yaml.safe_load((folder / 'metafile.yml').read_text())
    collections = {collection['Name'] for collection in metafile['Collections']}
    listed = [model['Config'] for model in metafile['Models']]
    assert listed == sorted(f'configs/{folder.name}/{name}' for name in names)
    for model in metafile['Models']:
        assert model['Name'] == Path(model['Config']).stem
        assert model['In Collection'] in collections
    readme = (folder / 'README.md').read_text()
    assert set(re.findall(r'\]\(\./([^)]+\.py)\)', readme)) == names


def test_model_index_imports_every_metafile():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    assert sorted(index['Import']) == sorted(str(path.relative_to(ROOT)) for path in CONFIGS.rglob('metafile.yml'))


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
    with pytest.warns(FutureWarning) as warned:
        found = Config.fromfile(mine).to_dict()
    assert found == Config.fromfile(CONFIGS / new).to_dict()
    assert len(warned) == 1 and old in str(warned[0].message) and new in str(warned[0].message)


@pytest.mark.parametrize('folder', FOLDERS, ids=lambda folder: folder.name)
def test_a_whole_config_can_be_inherited_from_outside(folder, tmp_path):
    if folder.name == 'transfer':
        pytest.importorskip('mmdet', reason="needs MMDetection: pip install -e '.[detection]'")
    theirs, mine = next(folder.glob('*.py')), tmp_path / 'mine.py'
    mine.write_text(f"_base_ = __import__('mergemix_mm').config_path('{folder.name}/{theirs.name}')\n")
    assert Config.fromfile(mine).model == load(theirs).model
    assert Path(mergemix_mm.config_path(f'{folder.name}/{theirs.name}')) == theirs


def test_missing_data_root_names_the_key_and_the_way_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = load(CONFIGS / 'mergemix/deit-small_1xb16-mergemix-coslr-200e_cub.py')
    with pytest.raises(LaunchError, match=r"train_dataloader\.dataset\.data_root='data/CUB_200_2011'.*--cfg-options"):
        check_data_roots(cfg, 'train', 'val')


def test_labels_beyond_num_classes_name_both_keys(tmp_path):
    cfg = shrink(load(DEMO))
    cfg.model.head.num_classes = cfg.data_preprocessor.num_classes = 5
    with pytest.raises(ValueError, match=r'labels of this batch.*num_classes=5.*model\.head and data_preprocessor'):
        build_runner(cfg, tmp_path).train()


def test_head_and_preprocessor_that_disagree_name_both_keys(tmp_path):
    cfg = shrink(load(DEMO))
    cfg.model.head.num_classes = 12
    with pytest.raises(ValueError, match=r"model\.head\.num_classes': 12.*data_preprocessor\.num_classes': 10"):
        build_runner(cfg, tmp_path).train()


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
