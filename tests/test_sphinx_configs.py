"""Every config of SPHINX: its name, its views and tokens, its parts, its schedule, two training steps, and the stages.

The encoders and language models become tiny ones of the same kinds, in folders that `from_pretrained` reads, and the
data small files in the layouts of the official ones; all else, the tokens of an image included, is as the config says.
"""

import ast
import inspect
import math
import re
import runpy
import shutil
from copy import deepcopy
from functools import cache
from itertools import islice
from pathlib import Path

import pytest
import small_data
import timm
import tiny_sphinx
import torch
from mmengine.hooks import Hook
from mmengine.registry import FUNCTIONS, MODEL_WRAPPERS, MODELS, PARAM_SCHEDULERS, STRATEGIES, TRANSFORMS
from repository_configs import (  # noqa: F401
    CONFIGS,
    ROOT,
    config_files,
    load,
    parametrize,
    quick_mmengine,
    runner_of_two_steps,
    without_strategy,
)

from mergemix_mm.models.vlms import wrap_decoder_layers

FILES = config_files('sphinx')
FULL = [path for path in FILES if not path.stem.endswith('_shapes')]

# {model}_{batch size}-{stage}-{schedule}-{steps}[-{strategy}]_{dataset}
NAME = re.compile(
    r'(?P<model>[a-z0-9-]+)_(?P<gpus>\d+)xb(?P<batch>\d+)-(?P<stage>align|align-frozen|projector|grounding|tasks)'
    r'-coslr-(?P<steps>\d+)i(?:-(?P<strategy>fsdp))?_(?P<dataset>[a-z0-9-]+)'
)
# Model -> crops per side, side of the square in pixels, tokens of a square image.
MODELS_OF_NAMES = {
    'sphinx-7b': (1, 224, 291),
    'sphinx-1k-7b': (2, 448, 1455),
    'sphinx-1k-pool-7b': (2, 448, 687),
    'sphinx-2k-7b': (3, 672, 2910),
    'sphinx-light-7b': (1, 512, 259),
    'sphinx-light-1k-tinyllama': (2, 1024, 1295),
}
# Stage -> parts that train, first and last rate, tasks.
TASKS = {
    'conversation',
    'vqa',
    'multiple_choice',
    'grounding',
    'grounding_plus',
    'grounding_g',
    'region_caption',
    'caption',
    'detection',
    'pose',
    'layout',
}
STAGES = {
    'align': (['language_model', 'projector'], 5e-5, 5e-6, {'caption', 'text'}),
    'align-frozen': (['projector'], 5e-5, 5e-6, {'caption'}),
    'projector': (['projector'], 5e-5, 5e-6, {'caption'}),
    'tasks': (['language_model', 'projector'], 2e-5, 0, TASKS),
}
# Language model -> tokens that its tokenizer has, tokens that it reads at once.
LANGUAGE_MODELS = {
    'meta-llama/Llama-2-7b-hf': (32000, 4096),
    'TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T': (32000, 2048),
}
# The first stage, but for its data.
ALIGN = 'sphinx-7b_32xb8-align-coslr-20000i-fsdp'
BATCH = 2

config_file = parametrize(FILES)
full_config_file = parametrize(FULL)


def name_of(path):
    return NAME.fullmatch(path.stem)


def find(node, kind):
    """All dicts of a type inside a config."""
    if isinstance(node, dict):
        found = [node] if node.get('type') == kind else []
        return found + [one for value in node.values() for one in find(value, kind)]
    return [one for value in node for one in find(value, kind)] if isinstance(node, list | tuple) else []


def used(cfg):
    """What a run builds: not the variables from which a config puts itself together."""
    loaders = [cfg[key] for key in ('train_dataloader', 'val_dataloader', 'test_dataloader') if cfg.get(key)]
    return [cfg.model, *loaders]


# What the names promise.


def test_there_are_configs_of_every_kind():
    names = [name_of(path) for path in FILES]
    assert all(names), [path.name for path, name in zip(FILES, names) if not name]
    assert {name['model'] for name in names} >= set(MODELS_OF_NAMES)
    assert {name['stage'] for name in names} == {*STAGES, 'grounding'}
    assert {name['strategy'] for name in names} == {None, 'fsdp'}


@config_file
def test_name_tells_the_batch_size_and_the_length_of_training(path):
    cfg, name = load(path), name_of(path)
    loader, batch, steps = cfg.train_dataloader, int(name['batch']), int(name['steps'])
    assert loader.batch_size == loader.sampler.batch_size == batch
    assert (loader.sampler.type, loader.dataset.type) == ('TaskMixSampler', 'TaskMixDataset')
    assert not cfg.train_cfg.by_epoch and cfg.train_cfg.max_iters == steps
    warmup, annealing = cfg.param_scheduler
    assert warmup.type == 'LinearLR' and annealing.type == 'CosineAnnealingLR'
    assert not (warmup.by_epoch or annealing.by_epoch)
    assert warmup.begin == 0 and annealing.begin == warmup.end and annealing.end == steps
    if path in FULL:
        assert cfg.auto_scale_lr.base_batch_size == batch * int(name['gpus'])
    assert (cfg.get('strategy') or {}).get('type') == ('FSDPStrategy' if name['strategy'] else None)


@full_config_file
def test_name_tells_what_trains_on_which_tasks(path):
    cfg, name = load(path), name_of(path)
    parts, _, _, tasks = STAGES[name['stage']]
    dataset, encoders = cfg.train_dataloader.dataset, cfg.model.vlm.backbone.encoders
    assert cfg.model.head.type == 'SFTHead' and cfg.model.vlm.trainable == parts
    assert not any('frozen' in encoder for encoder in encoders)  # The default.
    assert set(dataset.tasks) == tasks
    # Captions and texts are learnt as they are, tasks as conversations.
    (encode,) = dataset.pipeline
    assert encode.get('chat_template') == (None if name['stage'] == 'tasks' else 'plain')
    if name['stage'] != 'tasks':
        assert dataset.tasks.caption.dataset.data_root == f'data/{name["dataset"]}'
    frozen = 'language_model' not in parts
    if frozen:
        assert cfg.model.vlm.language_model.dtype == 'bfloat16'
    assert cfg.model.vlm.gradient_checkpointing == (not frozen)


@cache
def rates(schedulers, rate, steps):
    """The learning rates of all steps."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)
    built = [PARAM_SCHEDULERS.build(dict(one, optimizer=optimizer)) for one in ast.literal_eval(schedulers)]
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in built:
            scheduler.step()
    return found


@full_config_file
def test_rates_are_those_of_the_stage(path):
    cfg, (_, first, last, _) = load(path), STAGES[name_of(path)['stage']]
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, tuple(optimizer.betas)) == ('AdamW', first, (0.9, 0.95))
    schedulers = repr([one.to_dict() for one in cfg.param_scheduler])
    found = rates(schedulers, optimizer.lr, cfg.train_cfg.max_iters)
    assert found[0] == pytest.approx(first / 1000) and max(found) == pytest.approx(first)
    assert found.index(max(found)) == pytest.approx(0.03 * len(found), abs=1)
    assert found[-1] == pytest.approx(last, abs=first / 1e6)


# Views and tokens.


@config_file
def test_data_and_model_share_one_processor(path):
    cfg = load(path)
    processors = find(used(cfg), 'SphinxProcessor')
    assert len(processors) >= 2 and all(processor == cfg.model.processor for processor in processors)
    assert cfg.encode.type == 'EncodeConversation' and cfg.encode.processor == cfg.model.processor
    if path in FULL:
        language_model = cfg.model.vlm.get('language_model') or {}
        assert language_model.get('pretrained', cfg.model.processor.tokenizer) == cfg.model.processor.tokenizer
        assert cfg.model.vlm.image_token_id == LANGUAGE_MODELS[cfg.model.processor.tokenizer][0]


@config_file
def test_processor_writes_as_many_tokens_as_the_model_makes(path):
    cfg = load(path)
    vlm, processor = cfg.model.vlm, cfg.model.processor
    grid, queries = vlm.get('grid', 1), tiny_sphinx.QUERIES * len(vlm.neck.get('sequence_channels', ()))
    prefix, patches = queries + bool(vlm.neck.get('class_token')), vlm.neck.grid**2
    assert processor.get('grid', 1) == grid
    assert processor.view_tokens == prefix + patches
    pool = vlm.get('crop_pool')
    assert processor.get('crop_tokens') == (None if pool is None else prefix + patches // pool**2)
    sizes = [encoder.get('input_size') for encoder in vlm.backbone.encoders]
    if path not in FULL:
        assert set(sizes) == {None}
        return
    expected_grid, side, tokens = MODELS_OF_NAMES[name_of(path)['model']]
    assert (grid, processor.image_size) == (expected_grid, side)
    # Crops are cut from pixels that some encoder sees as they are.
    assert processor.image_size / grid in sizes
    built = TRANSFORMS.build(dict(processor, tokenizer=tiny_sphinx.tokenizer()))
    assert len(built.tokens_of(9, 9)) == tokens
    _, context = LANGUAGE_MODELS[processor.tokenizer]
    assert tokens + 500 < cfg.encode.max_length <= context
    assert tokens + cfg.model.generation.max_new_tokens + 100 < context


def test_docstrings_name_these_tokens():
    named = {}
    for path in (*FULL, *(CONFIGS / '_base_/models').glob('sphinx-*.py')):
        text = ' '.join(ast.get_docstring(ast.parse(path.read_text())).split())
        model = name_of(path)['model'] if path in FULL else path.stem
        numbers = re.findall(r'([\d,]+) tokens an image', text)
        named.setdefault(model, set()).update(int(number.replace(',', '')) for number in numbers)
    assert named == {model: {tokens} for model, (_, _, tokens) in MODELS_OF_NAMES.items()}


@parametrize([path for path in FILES if name_of(path) and name_of(path)['strategy']])
def test_sharded_configs_hand_over_keys_that_exist(path):
    cfg = load(path)
    wrapper = cfg.strategy.model_wrapper
    assert cfg.runner_type == 'FlexibleRunner' and cfg.strategy.state_dict_cfg == 'full'
    assert set(cfg.strategy) - {'type'} <= set(inspect.signature(STRATEGIES.get(cfg.strategy.type)).parameters)
    assert set(wrapper) - {'type'} <= set(inspect.signature(MODEL_WRAPPERS.get(wrapper.type)).parameters)
    assert FUNCTIONS.get(wrapper.auto_wrap_policy) is wrap_decoder_layers
    # No autocast beside the wrapper's own casts, and no folder from a process that has a shard.
    assert cfg.optim_wrapper.type == 'FSDPOptimWrapper' and cfg.optim_wrapper.clip_grad.max_norm == 1.0
    assert 'SavePretrainedHook' not in [hook.type for hook in cfg.custom_hooks]


# Tiny models and data.


@pytest.fixture(scope='module', autouse=True)
def home(tmp_path_factory):
    """The folder that the configs' paths begin in, with `data` and, as far as no config trains them, models."""
    folder = tmp_path_factory.mktemp('home')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_data(Path('data'))
        write_encoders(Path('encoders'))
        torch.manual_seed(0)
        language_model = MODELS.build(tiny_sphinx.sphinx_config()).model.language_model
        language_model.save_pretrained('language_model')
        tiny_sphinx.tokenizer().save_pretrained('language_model')
        for name in {load(path).model.vlm.get('pretrained') for path in FILES} - {None}:
            write_start(name)
        yield folder


def write_data(root):
    """A few records of everything that configs/sphinx/README.md lists."""
    for name in ('laion400m', 'laion-coco'):
        small_data.write_captions(root / name, BATCH)
    small_data.write_texts(root / 'refinedweb', BATCH)
    small_data.write_llava(root / 'LLaVA-Tuning/llava_v1_5_mix665k.json', 'coco/{:012d}.jpg', BATCH, BATCH)
    small_data.write_vqav2(root / 'coco', 'train')
    small_data.write_scienceqa(root / 'scienceqa')
    small_data.write_refcoco(root / 'coco')
    small_data.write_coco2017(root / 'coco', 'train')
    small_data.write_publaynet(root / 'publaynet')


def write_start(folder):
    """What a stage leaves for the configs that go on from it, untrained."""
    stem = f'{ALIGN}_laion400m' if folder.endswith('-mixed') else Path(folder).parent.name
    vlm = shrink(CONFIGS / 'sphinx' / f'{stem}.py').model.vlm
    if vlm.get('pretrained') is not None:
        write_start(vlm.pretrained)
    MODELS.build(vlm).save_pretrained(folder)


def write_encoders(root):
    for name in ('clip', 'dinov2', 'qformer'):
        getattr(tiny_sphinx, name)().save_pretrained(root / name)
    torch.save(timm.create_model('convnext_xxlarge', num_classes=0, **CONVNEXT).state_dict(), root / 'convnext.pth')


CONVNEXT = dict(depths=(1, 1, 1, 1), dims=(8, 8, 8, 24))
# Type of an encoder -> what makes a tiny one of it, and its channels.
ENCODERS = {
    'transformers.CLIPVisionModel.from_pretrained': (dict(pretrained_model_name_or_path='encoders/clip'), 8),
    'transformers.Dinov2Model.from_pretrained': (dict(pretrained_model_name_or_path='encoders/dinov2'), 12),
    'transformers.Blip2VisionModelWithProjection.from_pretrained': (
        dict(pretrained_model_name_or_path='encoders/qformer'),
        8,
    ),
    'timm.create_model': (dict(CONVNEXT, pretrained_cfg_overlay=dict(file='encoders/convnext.pth')), 24),
}
SIDES = {224: 32, 256: 64, 512: 64}


def shrink(path):
    """The config with tiny parts, few samples and one process, on a CPU."""
    cfg = load(path)
    for loader in used(cfg)[1:]:
        loader.update(batch_size=BATCH, num_workers=0)
        if 'batch_size' in loader.sampler:
            loader.sampler.batch_size = BATCH
    for drawn in find(used(cfg), 'ShapesTaskDataset'):
        drawn.length = BATCH
    if path in FULL:
        shrink_model(cfg.model.vlm)
        for processor in find(used(cfg), 'SphinxProcessor'):
            processor.image_size = cfg.model.vlm.get('grid', 1) * (64 if 'light' in path.stem else 32)
            processor.tokenizer = 'language_model'
    return without_strategy(cfg)


def shrink_model(vlm):
    neck, maps = vlm.neck, []
    for entry in vlm.backbone.encoders:
        options, channels = ENCODERS[entry.encoder.type]
        entry.encoder.update(options)
        entry.input_size = SIDES[entry.input_size]
        maps += [] if 'Blip2' in entry.encoder.type else [channels]
    sequences = [tiny_sphinx.SEQUENCE_CHANNELS[0] for _ in neck.get('sequence_channels', ())]
    neck.update(in_channels=maps, sequence_channels=sequences, out_channels=tiny_sphinx.WIDTH)
    vlm.image_token_id = tiny_sphinx.VOCAB_SIZE
    if vlm.get('language_model'):
        vlm.language_model.pretrained = 'language_model'


class KeepStart(Hook):
    """Keeps weights and buffers as they are behind `init_weights`, as `runner.before`."""

    def before_train(self, runner):
        runner.before = {name: value.clone() for name, value in runner.model.state_dict().items()}


def build(cfg, folder, monkeypatch):
    """A Runner of two steps, one of images and one of text where the config has both."""
    runner = runner_of_two_steps(cfg, folder, monkeypatch)
    loader = runner.train_loop.dataloader
    groups, sampler = loader.dataset.groups, loader.sampler
    while len({groups[index] for index in islice(sampler, 2 * BATCH)}) < len(set(groups)):
        sampler.seed += 1
    return runner


@pytest.fixture(scope='module', params=FILES, ids=lambda path: path.stem)
def trained(request, tmp_path_factory):
    """A Runner of the shrunk config after two steps, with its `path`, and its weights and buffers of `before`."""
    with pytest.MonkeyPatch.context() as patch:
        runner = build(shrink(request.param), tmp_path_factory.mktemp('run'), patch)
        runner.path = request.param
        runner.register_hook(KeepStart())
        runner.train()
        yield runner


@config_file
def test_building_leaves_the_config_as_it_is(path):
    cfg = shrink(path)
    given = deepcopy(cfg.model)
    MODELS.build(cfg.model)
    assert cfg.model == given


def test_parts_of_the_stage_learn_and_all_else_stays(trained):
    losses = trained.message_hub.get_scalar('train/loss_sft').data[0]
    assert trained.iter == len(losses) == 2 and all(map(math.isfinite, losses))
    after = trained.model.state_dict()
    assert all(torch.isfinite(value).all() for value in after.values())
    moved = {name for name, value in after.items() if not torch.equal(value, trained.before[name])}
    trainable = {name: p for name, p in trained.model.named_parameters() if p.requires_grad}
    assert moved == set(trainable)
    # Steps of 1e-5 would be lost in the 8 bits of bfloat16.
    assert {p.dtype for p in trainable.values()} == {torch.float32}
    places = dict(language_model=('language_model.',), projector=('vision.neck.', 'markers.'))
    places['vision_tower'] = ('vision.backbone.',)
    parts = {part for name in moved for part in places if name.removeprefix('vlm.model.').startswith(places[part])}
    assert parts == set(trained.cfg.model.vlm.trainable)
    # Of an encoder that trains, some weights may be fixed.
    whole = tuple(f'vlm.model.{place}' for part in parts - {'vision_tower'} for place in places[part])
    assert {name for name in after if name.startswith(whole)} <= moved
    if trained.path in FULL:
        branches = trained.model.vlm.model.vision.backbone.branches
        assert not any(module.training for branch in branches for module in branch.encoder.modules())


@pytest.mark.parametrize('trained', FULL, ids=lambda path: path.stem, indirect=True)
def test_biases_and_norms_do_not_decay_and_the_matrices_do(trained):
    modules = dict(trained.model.named_modules())
    decays = {
        id(p): group['weight_decay'] for group in trained.optim_wrapper.optimizer.param_groups for p in group['params']
    }
    found = {True: set(), False: set()}
    for name, parameter in trained.model.named_parameters():
        if parameter.requires_grad:
            module, leaf = name.rsplit('.', 1)
            plain = leaf == 'bias' or 'Norm' in type(modules[module]).__name__
            found[plain].add(decays[id(parameter)])
    assert found == {True: {0.0}, False: {trained.cfg.optim_wrapper.optimizer.weight_decay}}


def test_folder_for_the_next_stage_is_left_unless_the_weights_are_shards(trained):
    folder = Path(trained.work_dir, 'pretrained')
    assert folder.is_dir() == (name_of(trained.path)['strategy'] is None)
    if folder.is_dir():
        model = MODELS.build(dict(type='SphinxModel', pretrained=str(folder))).model
        for name, value in trained.model.vlm.model.state_dict().items():
            assert torch.equal(model.state_dict()[name].to(value.dtype), value), name


def test_every_task_reaches_the_model(trained):
    dataset = trained.train_dataloader.dataset
    for index in range(len(dataset)):
        inputs = dataset[index]['inputs']
        assert (inputs['labels'] != -100).any()
        assert ('pixel_values' in inputs) == bool(dataset.groups[index] == dataset.groups.max())


def test_stages_follow_each_other(home, tmp_path, monkeypatch):
    """Alignment on real captions, then on synthetic ones, the mix of both, and the tasks, as the README has it."""
    monkeypatch.chdir(tmp_path)
    for name in ('data', 'encoders', 'language_model'):
        Path(name).symlink_to(home / name)
    convert = runpy.run_path(str(ROOT / 'tools/model_converters/save_pretrained.py'))['convert']
    mix = runpy.run_path(str(ROOT / 'tools/mix_weights.py'))['main']
    folders, before, after = [], [], []
    for stem in (f'{ALIGN}_laion400m', f'{ALIGN}_laion-coco'):
        path = CONFIGS / 'sphinx' / f'{stem}.py'
        runner = build(shrink(path), Path(stem), monkeypatch)
        before.append(weights(runner))
        runner.train()
        after.append(weights(runner))
        torch.save(dict(state_dict=runner.model.state_dict()), 'iter_2.pth')
        folders.append(f'work_dirs/{stem}/pretrained')
        convert(shrink(path), Path('iter_2.pth'), Path(folders[-1]))
    assert all(torch.equal(value, after[0][name]) for name, value in before[1].items())

    for part in ('language_model', 'vision.safetensors'):
        mix([*(f'{folder}/{part}' for folder in folders), f'work_dirs/sphinx-7b-mixed/{part}', '--beta', '0.25'])
    for file in Path(folders[0]).glob('*.json'):
        shutil.copy(file, 'work_dirs/sphinx-7b-mixed')

    path = CONFIGS / 'sphinx/sphinx-7b_16xb8-tasks-coslr-20000i-fsdp_mix.py'
    runner = build(shrink(path), Path('tasks'), monkeypatch)
    for name, value in weights(runner).items():
        torch.testing.assert_close(value, 0.25 * after[0][name] + 0.75 * after[1][name], msg=name)
    runner.train()
    assert runner.iter == 2 and math.isfinite(runner.message_hub.get_scalar('train/loss_sft').current())


def weights(runner):
    """A copy of those that train."""
    return {name: p.detach().clone() for name, p in runner.model.named_parameters() if p.requires_grad}


@parametrize([path for path in FILES if 'val_dataloader' in load(path)])
def test_validates(path, tmp_path, monkeypatch):
    metrics = build(shrink(path), tmp_path, monkeypatch).val()
    assert metrics and all(map(math.isfinite, metrics.values()))
