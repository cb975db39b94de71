"""Every config of preference tuning: its name, its parts, its schedule, and two training steps or a test.

The models become tiny ones of the same family, in folders that `from_pretrained` reads, and the data small files in the
layout of the official ones; all else is as the config says.
"""

import inspect
import math
import re
from copy import deepcopy
from functools import cache

import pytest
import small_data
import tiny_vlms
import torch
from mmengine.registry import FUNCTIONS, MODEL_WRAPPERS, MODELS, STRATEGIES
from repository_configs import config_files, load, parametrize, quick_mmengine, runner_of_two_steps, without_strategy  # noqa: F401

from mergemix_mm.models.vlms import HFVisionLanguageModel

FILES = config_files('simpo')
TRAIN = [path for path in FILES if '-coslr-' in path.stem]
TEST = [path for path in FILES if path not in TRAIN]

# {model}_{batch size}[-{stage and mixer}[-lora]-{schedule}-{epochs}[-{strategy}]]_{dataset}
NAME = re.compile(
    r'(?P<model>[a-z0-9.-]+)_(?P<gpus>\d+)xb(?P<batch>\d+)'
    r'(?:-(?P<stage>sft|projector|simpo-(?P<mixer>[a-z]+))(?P<lora>-lora)?'
    r'-coslr-(?:1e|(?P<steps>\d+)i)(?:-(?P<strategy>fsdp|zero2))?)?'
    r'_(?P<dataset>[a-z0-9-]+)'
)
# Start of a config's name -> family of tests/tiny_vlms.
FAMILIES = {'llava-v1.5': 'llava', 'qwen2.5-vl': 'qwen2_5_vl', 'tiny-llava': 'llava'}
RECORDS = {'llava-mix665k': 665_298, 'llava-pretrain558k': 558_128}
TEST_DATASETS = {'pope': 'POPEDataset', 'scienceqa': 'ScienceQADataset', 'vqav2': 'VQAv2Dataset'}
# Questions in the files below: two for each kind of POPE, and one of ScienceQA's two has an image.
NUM_TESTED = {'pope': 6, 'scienceqa': 1, 'vqav2': 2}
METRICS = {'pope': 'pope/accuracy', 'scienceqa': 'choice/accuracy', 'vqav2': 'vqa/official_accuracy'}
STRATEGY_OF_NAME = {None: None, 'fsdp': 'FSDPStrategy', 'zero2': 'DeepSpeedStrategy'}
# Type and mask of the mixers that are not called as their name in the files.
MIXERS = {
    'blur': ('SalientBlur', None),
    'inverse': ('MergeMix', 'inverse'),
    'mergemix': ('MergeMix', None),
    'random': ('MergeMix', 'random'),
    'swap': ('SwapImages', None),
    'topk': ('MergeMix', 'topk'),
}
NUM_PATCHES = 16  # Of the tiny LLaVA's tower.
BATCH = 4

config_file = parametrize(FILES)
on_train_files = parametrize(TRAIN)
on_test_files = parametrize(TEST)


def family_of(path):
    return next(family for start, family in FAMILIES.items() if path.stem.startswith(start))


def loaders(cfg):
    return [cfg[key] for key in ('train_dataloader', 'val_dataloader', 'test_dataloader') if cfg.get(key)]


def processors(cfg):
    """Every processor that a config names: the tuner's and those of the pipelines."""
    return [cfg.model.processor, *(step.processor for loader in loaders(cfg) for step in loader.dataset.pipeline)]


# What the names promise.


def test_there_are_configs_of_every_kind():
    names = [NAME.fullmatch(path.stem) for path in FILES]
    assert all(names), [path.name for path, name in zip(FILES, names) if not name]
    assert {name['dataset'] for name in names} >= {*RECORDS, *TEST_DATASETS}
    assert {name['strategy'] for name in names} == set(STRATEGY_OF_NAME)
    assert {name['mixer'] for name in names} >= {'blur', 'inverse', 'mergemix', 'mixup', 'random', 'swap'}


@on_train_files
def test_name_tells_what_is_trained_and_how(path):
    cfg, name = load(path), NAME.fullmatch(path.stem)
    head, mixer = cfg.model.head, cfg.model.get('mixer')
    if name['mixer'] is None:
        assert head.type == 'SFTHead' and mixer is None
    else:
        kind, mask = MIXERS.get(name['mixer'], (name['mixer'], None))
        assert head.type == 'SimPOHead'
        assert mixer.type.lower() == kind.lower() and mixer.get('mask') == mask
    if name['dataset'] != 'shapes':  # Those start from random weights.
        parts = ['projector', 'language_model']
        assert cfg.model.vlm.trainable == (parts[:1] if name['stage'] == 'projector' else parts)
    assert ('lora' in cfg.model.vlm) == bool(name['lora'])
    assert (cfg.get('strategy') or {}).get('type') == STRATEGY_OF_NAME[name['strategy']]


@on_train_files
def test_name_tells_the_batch_size_and_the_length_of_training(path):
    cfg, name = load(path), NAME.fullmatch(path.stem)
    loader, batch = cfg.train_dataloader, int(name['batch'])
    assert loader.batch_size == loader.sampler.get('batch_size', batch) == batch
    total = batch * int(name['gpus'])
    steps = int(name['steps'] or math.ceil(RECORDS[name['dataset']] / total))
    assert not cfg.train_cfg.by_epoch and cfg.train_cfg.max_iters == steps
    warmup, annealing = cfg.param_scheduler
    assert warmup.type == 'LinearLR' and annealing.type == 'CosineAnnealingLR'
    assert not (warmup.by_epoch or annealing.by_epoch)
    assert warmup.begin == 0 and annealing.begin == warmup.end and annealing.end == steps
    if name['steps'] is None:  # LLaVA-v1.5's schedule.
        assert warmup.end == round(0.03 * steps)
        assert cfg.auto_scale_lr.base_batch_size == total


@on_test_files
def test_name_tells_the_dataset_that_is_tested(path):
    cfg, name = load(path), NAME.fullmatch(path.stem)
    assert cfg.test_dataloader.dataset.type == TEST_DATASETS[name['dataset']]
    assert cfg.test_dataloader.batch_size == int(name['batch'])
    assert cfg.test_dataloader.collate_fn.padding_side == 'left'
    assert [step.generate for step in cfg.test_dataloader.dataset.pipeline] == [True]


@config_file
def test_data_and_model_share_one_processor(path):
    cfg = load(path)
    assert all(processor == cfg.model.processor for processor in processors(cfg))
    if 'pretrained' in cfg.model.vlm:
        assert cfg.model.processor.pretrained_model_name_or_path == cfg.model.vlm.pretrained


def test_sharded_configs_hand_over_keys_that_exist():
    sharded = [load(path) for path in FILES if 'strategy' in load(path)]
    assert sorted(cfg.strategy.type for cfg in sharded) == ['DeepSpeedStrategy', 'FSDPStrategy']
    for cfg in sharded:
        assert cfg.runner_type == 'FlexibleRunner'
        assert set(cfg.strategy) - {'type'} <= set(inspect.signature(STRATEGIES.get(cfg.strategy.type)).parameters)
        if cfg.strategy.type == 'FSDPStrategy':
            wrapper = cfg.strategy.model_wrapper
            assert set(wrapper) - {'type'} <= set(inspect.signature(MODEL_WRAPPERS.get(wrapper.type)).parameters)
            assert cfg.strategy.state_dict_cfg == 'full'
            assert callable(FUNCTIONS.get(wrapper.auto_wrap_policy))
            # No autocast beside the wrapper's own casts, and no folder from a process that has a shard.
            assert cfg.optim_wrapper.type == 'FSDPOptimWrapper'
            assert 'SavePretrainedHook' not in [hook.type for hook in cfg.custom_hooks]
        else:
            # DeepSpeed clips by itself, and its optimizer wrapper refuses any further key.
            assert set(cfg.optim_wrapper) == {'type', 'optimizer'}
            assert cfg.strategy.gradient_clipping == 1.0
            assert cfg.strategy.zero_optimization.stage == 2


# Tiny models and data.


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory):
    """pretrained(family) -> a folder with a tiny model of the family and its processor, or with a tiny CLIP."""

    @cache
    def save(family):
        from transformers import CLIPVisionConfig, CLIPVisionModel

        folder = tmp_path_factory.mktemp(family)
        torch.manual_seed(0)
        if family == 'clip':
            config = tiny_vlms.tiny_config('llava')['vision_config']
            CLIPVisionModel(CLIPVisionConfig(**config)).save_pretrained(folder)
        else:
            HFVisionLanguageModel(config=tiny_vlms.tiny_config(family)).save_pretrained(folder)
            tiny_vlms.tiny_processor(family).save_pretrained(folder)
        return str(folder)

    return save


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """The folder `data` as configs/simpo/README.md lays it out, with a few records of every dataset."""
    root = tmp_path_factory.mktemp('data')
    small_data.write_llava(root / 'LLaVA-Tuning/llava_v1_5_mix665k.json', 'coco/train2017/{:012d}.jpg', BATCH, BATCH)
    small_data.write_llava(root / 'LLaVA-Pretrain/blip_laion_cc_sbu_558k.json', '00000/{:09d}.jpg', 2 * BATCH)
    small_data.write_pope(root / 'coco')
    small_data.write_vqav2(root / 'coco', 'val')
    small_data.write_scienceqa(root / 'scienceqa')
    return root


def shrink(path, pretrained, data):
    """The config with a tiny model, small data and one process, on a CPU."""
    cfg = load(path)
    for loader in loaders(cfg):
        loader.update(batch_size=BATCH, num_workers=0)
        if 'length' in loader.dataset:
            loader.dataset.length = 2 * BATCH
        if 'batch_size' in loader.sampler:
            loader.sampler.batch_size = BATCH
    if 'pretrained' in cfg.model.vlm:
        folder = cfg.model.vlm.pretrained = pretrained(family_of(path))
        for processor in processors(cfg):
            processor.pretrained_model_name_or_path = folder
        for loader in loaders(cfg):
            assert loader.dataset.data_root.startswith('data/')
            loader.dataset.data_root = str(data / loader.dataset.data_root.removeprefix('data/'))
        mixer = cfg.model.get('mixer') or {}
        if 'encoder' in mixer:
            mixer.encoder.pretrained_model_name_or_path = pretrained('clip')
        if mixer.get('num_merge') is not None:
            mixer.num_merge = mixer.num_merge * NUM_PATCHES // 576
    return without_strategy(cfg)


@pytest.fixture
def run(pretrained, data, tmp_path, monkeypatch):
    """run(path) -> a Runner of the shrunk config, ready to train or to test."""
    return lambda path: runner_of_two_steps(shrink(path, pretrained, data), tmp_path, monkeypatch)


@config_file
def test_building_leaves_the_config_as_it_is(path, pretrained, data):
    cfg = shrink(path, pretrained, data)
    given = deepcopy(cfg.model)
    MODELS.build(cfg.model)
    assert cfg.model == given


@on_train_files
def test_trains_on_images_and_on_text(path, run, tmp_path):
    runner = run(path)
    before = {name: parameter.detach().clone() for name, parameter in runner.model.named_parameters()}
    runner.train()
    assert runner.iter == 2

    losses = {key: log.data[0] for key, log in runner.message_hub.log_scalars.items() if key.startswith('train/loss')}
    assert all(map(math.isfinite, [value for values in losses.values() for value in values]))
    assert len(losses['train/loss_sft']) == 2
    # One batch of images, and one of text alone where the data have such.
    pairs = 2 if path.stem.endswith('_shapes') else 1
    assert len(losses.get('train/loss_simpo', [])) == pairs * ('-simpo-' in path.stem)

    parameters = dict(runner.model.named_parameters())
    moved = {name for name, parameter in parameters.items() if not torch.equal(parameter, before[name])}
    trainable = {name for name, parameter in parameters.items() if parameter.requires_grad}
    # A LLaVA reads the tower's last layer but one: nothing behind that learns.
    behind = {
        name for name in trainable if re.search(r'vision_(?:tower|model)\.(encoder\.layers\.3|post_layernorm)\.', name)
    }
    assert moved == trainable - behind and moved
    assert len(trainable) < len(parameters) or path.stem.endswith('_shapes')
    assert all(torch.isfinite(parameter).all() for parameter in parameters.values())
    # The folder for `from_pretrained`, but for FSDP, whose processes have shards.
    assert (tmp_path / 'work/pretrained').is_dir() == ('-fsdp_' not in path.stem)


@on_train_files
def test_trains_the_parts_of_its_stage_at_its_rate(path, run):
    runner = run(path)
    trainable = {name: p for name, p in runner.model.named_parameters() if p.requires_grad}
    parts = {'multi_modal_projector' if family_of(path) == 'llava' else 'merger'}
    if '-projector-' not in path.stem:
        parts |= {'language_model'}
    if path.stem.endswith('_shapes'):  # From random weights.
        parts |= {'vision_tower'}
    found = {part for part in parts for name in trainable if part in name}
    assert found == parts
    assert all(any(part in name for part in parts | {'lm_head'}) for name in trainable)
    optimizer = runner.build_optim_wrapper(runner.optim_wrapper).optimizer
    rates = {id(p): group['lr'] for group in optimizer.param_groups for p in group['params']}
    factors = {name: rates[id(p)] / runner.cfg.optim_wrapper.optimizer.lr for name, p in trainable.items()}
    lora = '-lora-' in path.stem
    assert all(('lora_' in name) == lora for name in trainable if 'language_model' in name)
    for name, factor in factors.items():
        assert factor == pytest.approx(0.1 if lora and 'projector' in name else 1.0), name
    # Steps of 1e-5 would be lost in the 8 bits of bfloat16.
    assert {p.dtype for p in trainable.values()} == {torch.float32}


@parametrize([path for path in TRAIN if 'val_dataloader' in load(path)])
def test_validates(path, run):
    metrics = run(path).val()
    assert 0 <= metrics['answer/accuracy'] <= 100
    assert 0 <= metrics['calibration/ece'] <= 100


@on_test_files
def test_answers_and_scores(path, run):
    name = NAME.fullmatch(path.stem)
    runner = run(path)
    metrics = runner.test()
    assert 0 <= metrics[METRICS[name['dataset']]] <= 100
    assert len(runner.test_dataloader.dataset) == NUM_TESTED[name['dataset']]
