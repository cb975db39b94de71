"""Every config of AIA: its name, its parts, its schedule, and a training step of each task.

The models become tiny ones of the same family, in folders that `from_pretrained` reads, and the data small files in the
layout that the README describes; all else is as the config says.
"""

import inspect
import json
import math
import re
from copy import deepcopy
from functools import cache

import pytest
import tiny_vlms
import torch
from mmengine.registry import FUNCTIONS, MODEL_WRAPPERS, MODELS, STRATEGIES
from repository_configs import config_files, load, parametrize, quick_mmengine, runner_of_two_steps, without_strategy  # noqa: F401

from mergemix_mm.models.losses import AIALoss
from mergemix_mm.models.vlms import HFVisionLanguageModel

FILES = config_files('aia')
TINY = [path for path in FILES if path.stem.endswith('_shapes')]

# {model}_{batch size}-{losses}[-variant]-{schedule}-{epochs}[-{strategy}]_{dataset}
NAME = re.compile(
    r'(?P<model>[a-z0-9.-]+)_(?P<gpus>\d+)xb(?P<batch>\d+)-(?P<losses>ntp|aia)(?:-(?P<variant>[a-z0-9-]+?))?'
    r'-coslr-(?:1e|(?P<steps>\d+)i)(?:-(?P<strategy>fsdp|zero3))?_(?P<dataset>[a-z0-9-]+)'
)
# Start of a config's name -> family of tests/tiny_vlms, model, number of layers, name of the targets.
MODEL_OF_NAME = {
    'janus-pro-1b': ('janus', 'JanusModel', 24, 'janus_pro'),
    'janus-pro-7b': ('janus', 'JanusModel', 30, 'janus_pro'),
    'emu3-8b': ('emu3', 'Emu3Model', 32, 'emu3'),
    'tiny-janus': ('janus', 'JanusModel', 4, 'janus_pro'),
}
STRATEGY_OF_NAME = {None: None, 'fsdp': 'FSDPStrategy', 'zero3': 'DeepSpeedStrategy'}
WRAPPER_OF_NAME = {'fsdp': 'FSDPOptimWrapper', 'zero3': 'DeepSpeedOptimWrapper'}
NUM_CONVERSATIONS = 665_298
BATCH = 2

config_file = parametrize(FILES)


def split_name(path):
    return NAME.fullmatch(path.stem)


def family_of(path):
    return MODEL_OF_NAME[split_name(path)['model']][0]


def datasets(cfg):
    """Every dataset with a pipeline that a config names."""
    found = [cfg.train_dataloader.dataset[task] for task in ('gen', 'und')]
    return found + [cfg[key].dataset for key in ('val_dataloader', 'test_dataloader') if cfg.get(key)]


def processors(cfg):
    """Every processor that a config names: the tuner's and those of the pipelines."""
    return [cfg.model.processor, *(step.processor for dataset in datasets(cfg) for step in dataset.pipeline)]


def hook_of(cfg):
    """The config's AIAHook, if it has one."""
    return next((hook for hook in cfg.custom_hooks if hook.type == 'AIAHook'), None)


# What the names promise.


def test_there_are_configs_of_every_kind():
    names = [split_name(path) for path in FILES]
    assert all(names), [path.name for path, name in zip(FILES, names) if not name]
    for model in MODEL_OF_NAME:
        assert {name['losses'] for name in names if name['model'] == model} == {'ntp', 'aia'}
    for model in ('janus-pro-7b', 'emu3-8b'):
        strategies = {(name['losses'], name['strategy']) for name in names if name['model'] == model}
        assert strategies == {(losses, strategy) for losses in ('ntp', 'aia') for strategy in ('fsdp', 'zero3')}


@config_file
def test_name_tells_the_model_the_batch_and_the_length_of_training(path):
    cfg, name = load(path), split_name(path)
    assert cfg.model.type == 'UnifiedTuner' and cfg.model.drop_prompt == 0.1
    assert cfg.model.vlm.type == MODEL_OF_NAME[name['model']][1]
    if 'pretrained' in cfg.model.vlm:
        assert name['model'].split('-')[-1] in cfg.model.vlm.pretrained.lower() or name['model'] == 'emu3-8b'
        # Vision tower and VQ model are frozen, the rest trains.
        parts = ['projector', 'language_model', 'generation']
        assert cfg.model.vlm.trainable == (['language_model'] if family_of(path) == 'emu3' else parts)
    loader, batch = cfg.train_dataloader, int(name['batch'])
    assert loader.batch_size == loader.sampler.batch_size == batch
    warmup, annealing = cfg.param_scheduler
    assert cfg.train_cfg.max_iters == annealing.end and warmup.end == annealing.begin
    if name['steps'] is None:
        total = batch * int(name['gpus'])
        assert cfg.auto_scale_lr.base_batch_size == total
        epoch = 2 * math.ceil(NUM_CONVERSATIONS / total)  # As many steps of the other task.
        assert cfg.train_cfg.max_iters == epoch and warmup.end == pytest.approx(0.1 * epoch, abs=1)
        assert cfg.optim_wrapper.optimizer == dict(
            type='AdamW', lr=2e-5, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.05
        )
    else:
        assert cfg.train_cfg.max_iters == int(name['steps'])


@config_file
def test_name_tells_what_is_aligned_and_how(path):
    cfg, name = load(path), split_name(path)
    hook, ratio = hook_of(cfg), cfg.train_dataloader.dataset.ratio
    assert (hook is not None) == (name['losses'] == 'aia')
    variant = name['variant'] or ''
    if shares := re.fullmatch(r'gen(\d)-und(\d)', variant):
        assert ratio == dict(gen=int(shares[1]), und=int(shares[2]))
    else:
        assert ratio == dict(gen=1, und=1)
    if hook is None:
        return
    weight = hook.get('weight')
    if number := re.fullmatch(r'weight(\d+)', variant):
        assert weight == int(number[1])
    elif number := re.fullmatch(r'ratio(\d+)', variant):
        assert weight == dict(type='ratio', ntp_over_aia=int(number[1]))
    else:
        assert weight is None  # The released ones.
    if variant == 'layerwise':
        assert hook.preset.endswith('.json')
    elif variant != 'l2':
        assert hook.preset == MODEL_OF_NAME[name['model']][3]


@parametrize([path for path in FILES if '-aia-' in path.stem and '-layerwise-' not in path.stem])
def test_targets_cover_all_layers(path):
    hook, depth = hook_of(load(path)), MODEL_OF_NAME[split_name(path)['model']][2]
    loss = AIALoss(hook.preset, hook.get('weight'))
    for task in ('gen', 'und'):
        target, delta = loss.curve(task, depth)
        paper, thresholds = AIALoss('janus_pro').curve(task, depth)
        variant = split_name(path)['variant']
        if variant == 'l2':
            assert target == paper and set(delta) == {1.0}
        elif family_of(path) == 'janus':
            assert (target, delta) == (paper, thresholds)


@config_file
def test_data_and_model_share_one_processor(path):
    cfg = load(path)
    assert all(processor == cfg.model.processor for processor in processors(cfg))
    if 'pretrained' in cfg.model.vlm:
        assert cfg.model.processor.pretrained_model_name_or_path == cfg.model.vlm.pretrained
    assert cfg.find_unused_parameters  # The tasks use different parameters.


@parametrize([path for path in FILES if split_name(path)['strategy']])
def test_sharded_configs_hand_over_keys_that_exist(path):
    cfg, strategy = load(path), split_name(path)['strategy']
    assert cfg.runner_type == 'FlexibleRunner' and cfg.strategy.type == STRATEGY_OF_NAME[strategy]
    assert set(cfg.strategy) - {'type'} <= set(inspect.signature(STRATEGIES.get(cfg.strategy.type)).parameters)
    assert cfg.optim_wrapper.type == WRAPPER_OF_NAME[strategy]
    # No process has the whole model.
    assert 'SavePretrainedHook' not in [hook.type for hook in cfg.custom_hooks]
    if strategy == 'fsdp':
        wrapper = cfg.strategy.model_wrapper
        assert set(wrapper) - {'type'} <= set(inspect.signature(MODEL_WRAPPERS.get(wrapper.type)).parameters)
        assert callable(FUNCTIONS.get(wrapper.auto_wrap_policy))
        assert cfg.optim_wrapper.clip_grad.max_norm == 1.0 and cfg.strategy.state_dict_cfg == 'full'
    else:
        # DeepSpeed clips by itself, and its optimizer wrapper refuses any further key.
        assert set(cfg.optim_wrapper) == {'type', 'optimizer'}
        assert cfg.strategy.gradient_clipping == 1.0 and cfg.strategy.zero_optimization.stage == 3


# Tiny models and data.


def tiny_config(family):
    """As tests/tiny_vlms has it, with what the classes of the processors only know of the released models."""
    config = tiny_vlms.tiny_config(family)
    if family == 'janus':
        # 576 tokens to read an image, and as many codes to write one.
        config['vision_config'].update(image_size=48, patch_size=2, num_image_tokens=576)
        # A layer in each stage of targets.
        config['text_config']['num_hidden_layers'] = 3
    else:
        config['vq_config']['channel_multiplier'] = [1, 1, 1, 1]  # A code has 8 x 8 pixels.
    return config


def tiny_processor(family):
    processor = tiny_vlms.tiny_processor(family)
    if family == 'janus':
        processor.image_processor.size = dict(height=48, width=48)
        processor.num_image_tokens = 576  # Which transformers 5 saves along.
    else:
        processor.image_processor.spatial_factor = 8
    return processor


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory):
    """pretrained(family) -> a folder with a tiny model of the family and its processor."""

    @cache
    def save(family):
        folder = tmp_path_factory.mktemp(family)
        torch.manual_seed(0)
        HFVisionLanguageModel(config=tiny_config(family)).save_pretrained(folder)
        tiny_processor(family).save_pretrained(folder)
        return str(folder)

    return save


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """The folder `data` as configs/aia/README.md lays it out, with a few records."""
    root = tmp_path_factory.mktemp('data')
    tuning, prompts, curves = (root / name for name in ('LLaVA-Tuning', 'text-to-image', 'interaction'))
    curves.mkdir()
    (curves / 'teachers.json').write_text(
        json.dumps({task: dict(mean=[0.1, 0.2], std=[0.0, 0.1]) for task in ('gen', 'und')})
    )
    for folder in (tuning, prompts / 'images'):
        folder.mkdir(parents=True)
        for i in range(BATCH):
            tiny_vlms.random_image(32, 40, i).save(folder / f'{i}.png')
    turns = [('human', '<image>\nWhat is it?'), ('gpt', 'A cat.'), ('human', 'Where?'), ('gpt', 'Here.')]
    turns = [{'from': role, 'value': text} for role, text in turns]
    records = [dict(id=str(i), image=f'{i}.png', conversations=turns) for i in range(BATCH)]
    (tuning / 'llava_v1_5_mix665k.json').write_text(json.dumps(records))
    lines = [dict(prompt=f'a red ring{"!" * i}', image=f'images/{i}.png') for i in range(BATCH)]
    (prompts / 'train.jsonl').write_text('\n'.join(map(json.dumps, lines)) + '\n')
    return root


def shrink(path, pretrained, data):
    """The config with a tiny model, small data and one process, on a CPU; its targets by relative depth."""
    cfg = load(path)
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if cfg.get(key):
            cfg[key].update(batch_size=BATCH, num_workers=0)
    cfg.train_dataloader.sampler.batch_size = BATCH
    cfg.train_dataloader.dataset.ratio = dict(gen=1, und=1)  # A step of each.
    for dataset in datasets(cfg):
        if 'length' in dataset:
            dataset.length = BATCH
    if 'pretrained' in cfg.model.vlm:
        folder = cfg.model.vlm.pretrained = pretrained(family_of(path))
        for processor in processors(cfg):
            processor.pretrained_model_name_or_path = folder
        for dataset in datasets(cfg):
            assert dataset.data_root.startswith('data/')
            dataset.data_root = str(data / dataset.data_root.removeprefix('data/'))
            for step in dataset.pipeline:
                if 'image_size' in step:
                    step.image_size = 32
        hook = hook_of(cfg)
        if hook is not None and hook.preset == 'data/interaction/teachers.json':
            hook.preset = str(data / 'interaction/teachers.json')
        elif hook is not None and not isinstance(hook.preset, str):
            for stage in [stage for stages in hook.preset.values() for stage in stages]:
                stage.depth = [layer / MODEL_OF_NAME['janus-pro-7b'][2] for layer in stage.pop('layers')]
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


@config_file
def test_takes_a_step_of_each_task(path, run, tmp_path):
    runner = run(path)
    before = {name: parameter.detach().clone() for name, parameter in runner.model.named_parameters()}
    runner.model.init_weights()
    codes = {name: p.detach().clone() for name, p in runner.model.named_parameters() if 'vqmodel' in name}
    runner.train()
    assert runner.iter == 2

    logged = {key.removeprefix('train/'): log.data[0] for key, log in runner.message_hub.log_scalars.items()}
    aligned = '-aia-' in path.stem
    for task in ('gen', 'und'):
        assert len(logged[f'loss_ntp_{task}']) == 1 and math.isfinite(logged[f'loss_ntp_{task}'][0])
        assert len(logged.get(f'loss_aia_{task}', [])) == aligned
        assert all(0 <= value <= 1 for value in logged.get(f'interaction_{task}', []))
    if aligned:
        assert 0 < logged['loss_aia_und'][0] < 100

    parameters = dict(runner.model.named_parameters())
    trainable = {name for name, parameter in parameters.items() if parameter.requires_grad}
    moved = {name for name in trainable if not torch.equal(parameters[name], before[name])}
    assert moved == trainable and 0 < len(trainable) < len(parameters)
    assert all(torch.equal(parameters[name], code) for name, code in codes.items()) and codes
    if 'pretrained' in runner.cfg.model.vlm:
        assert not any('vision_model' in name for name in trainable)
    assert all(parameters[name].dtype == torch.float32 for name in trainable)
    assert runner.model.alignment is None
    # The folder for `from_pretrained`, but for sharded runs, whose processes have a part each.
    assert (tmp_path / 'work/pretrained').is_dir() == (split_name(path)['strategy'] is None)


@parametrize(TINY)
def test_answers_and_draws(path, run):
    runner = run(path)
    assert 0 <= runner.val()['answer/accuracy'] <= 100
    assert 0 <= runner.test()['generation/both'] <= 100
