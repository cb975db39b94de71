"""Every config of AIA: what is aligned, the recipe, and a training step of each task.

The models become tiny ones of the same family, in folders that `from_pretrained` reads, and the data small files in the
layout that the README describes; the rest is as the config says.
"""

import json
import math
from functools import cache

import pytest
import tiny_vlms
import torch
from repository_configs import (  # noqa: F401
    config_files,
    find,
    load,
    loaders,
    parametrize,
    quick_mmengine,
    runner_of_two_steps,
    without_strategy,
    words_of,
)

from mergemix_mm.models.losses import AIALoss
from mergemix_mm.models.vlms import HFVisionLanguageModel

FILES = config_files('aia')
TINY = [path for path in FILES if path.stem.endswith('_shapes')]
# Start of a config's name -> family of tests/tiny_vlms, number of layers, targets, parts that train.
MODELS_OF_NAMES = {
    'janus-pro-1b': ('janus', 24, 'janus_pro', ['projector', 'language_model', 'generation']),
    'janus-pro-7b': ('janus', 30, 'janus_pro', ['projector', 'language_model', 'generation']),
    'emu3-8b': ('emu3', 32, 'emu3', ['language_model']),
    'tiny-janus': ('janus', 4, 'janus_pro', ['vision_tower', 'projector', 'language_model', 'generation']),
}
# Variant in a config's name -> what it changes of the ratio of tasks, the weight and the targets.
VARIANTS = {
    'gen1-und2': dict(ratio=dict(gen=1, und=2)),
    'gen2-und1': dict(ratio=dict(gen=2, und=1)),
    'gen4-und1': dict(ratio=dict(gen=4, und=1)),
    'weight40': dict(weight=40),
    **{f'ratio{ratio}': dict(weight=dict(type='ratio', ntp_over_aia=ratio)) for ratio in (1, 10, 50, 100)},
    'layerwise': dict(preset='data/interaction/teachers.json'),
    'qlora': {},
}
BATCH = 2

config_file = parametrize(FILES)


def model_of(path):
    return MODELS_OF_NAMES[path.stem.split('_')[0]]


def hook_of(cfg):
    """The config's AIAHook, if it has one."""
    return next((hook for hook in cfg.custom_hooks if hook.type == 'AIAHook'), None)


def datasets(cfg):
    """Every dataset with a pipeline that a config names."""
    found = [cfg.train_dataloader.dataset[task] for task in ('gen', 'und')]
    return found + [loader.dataset for loader in loaders(cfg)[1:]]


@config_file
def test_name_tells_what_is_aligned_and_the_recipe_is_the_papers(path):
    cfg, words = load(path), words_of(path)
    _, depth, preset, parts = model_of(path)
    hook, variant = hook_of(cfg), '-'.join(words[1 : words.index('coslr')])
    assert (cfg.model.type, cfg.model.drop_prompt, cfg.model.vlm.trainable) == ('UnifiedTuner', 0.1, parts)
    assert cfg.find_unused_parameters  # The tasks use different parameters.
    expected = dict(ratio=dict(gen=1, und=1), weight=None, preset=preset) | VARIANTS.get(variant, {})
    assert cfg.train_dataloader.dataset.ratio == expected['ratio']
    assert (hook is not None) == (words[0] == 'aia')
    if hook is not None:
        assert hook.get('weight') == expected['weight']
        if variant == 'l2':
            curves, paper = AIALoss(hook.preset, None), AIALoss(preset, None)
            for task in ('gen', 'und'):
                assert curves.curve(task, depth) == (paper.curve(task, depth)[0], [1.0] * depth)
        else:
            assert hook.preset == expected['preset'] and variant in ('', *VARIANTS)
    if path not in TINY:
        assert cfg.optim_wrapper.optimizer == dict(
            type='AdamW', lr=2e-5, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.05
        )
        assert cfg.param_scheduler[0].end == pytest.approx(0.1 * cfg.train_cfg.max_iters, abs=1)


# Tiny models and data.


def tiny_config(family):
    """As tests/tiny_vlms has it, with what only the processors of the released models have."""
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
    for loader in loaders(cfg):
        loader.update(batch_size=BATCH, num_workers=0)
    cfg.train_dataloader.sampler.batch_size = BATCH
    cfg.train_dataloader.dataset.ratio = dict(gen=1, und=1)  # A step of each.
    for dataset in datasets(cfg):
        if 'length' in dataset:
            dataset.length = BATCH
    if 'pretrained' in cfg.model.vlm:
        folder = cfg.model.vlm.pretrained = pretrained(model_of(path)[0])
        for processor in find([cfg.model, *loaders(cfg)], 'processor'):
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
                stage.depth = [layer / MODELS_OF_NAMES['janus-pro-7b'][1] for layer in stage.pop('layers')]
    return without_strategy(cfg)


@pytest.fixture
def run(pretrained, data, tmp_path, monkeypatch):
    """run(path) -> a Runner of the shrunk config, ready to train or to test."""
    return lambda path: runner_of_two_steps(shrink(path, pretrained, data), tmp_path, monkeypatch)


@config_file
def test_takes_a_step_of_each_task(path, run, tmp_path):
    if 'qlora' in path.stem:
        pytest.importorskip('bitsandbytes')
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
    assert (tmp_path / 'work/pretrained').is_dir()


@parametrize(TINY)
def test_answers_and_draws(path, run):
    runner = run(path)
    assert 0 <= runner.val()['answer/accuracy'] <= 100
    assert 0 <= runner.test()['generation/both'] <= 100
