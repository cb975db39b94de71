"""Every config of SPHINX: its stage, its views and tokens, two training steps, and the chain of stages.

The encoders and language models become tiny ones of the same kinds, in folders that `from_pretrained` reads, and the
data small files in the layouts of the official ones; the rest, the tokens of an image included, is as the config says.
"""

import math
import runpy
import shutil
from itertools import islice
from pathlib import Path

import pytest
import small_data
import timm
import tiny_sphinx
import torch
from mmengine.hooks import Hook
from mmengine.registry import MODELS, TRANSFORMS
from repository_configs import (  # noqa: F401
    CONFIGS,
    ROOT,
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

FILES = config_files('sphinx')
FULL = [path for path in FILES if not path.stem.endswith('_shapes')]
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
# The first stage, without its data.
ALIGN = 'sphinx-7b_32xb8-align-coslr-20000i-fsdp'
BATCH = 2

full_config_file = parametrize(FULL)


def stage_of(path):
    return '-'.join(words_of(path)[: words_of(path).index('coslr')])


@full_config_file
def test_name_tells_what_trains_on_which_tasks_at_which_rates(path):
    cfg, stage = load(path), stage_of(path)
    parts, first, last, tasks = STAGES[stage]
    dataset, vlm = cfg.train_dataloader.dataset, cfg.model.vlm
    assert (cfg.model.head.type, vlm.trainable, set(dataset.tasks)) == ('SFTHead', parts, tasks)
    assert not any('frozen' in encoder for encoder in vlm.backbone.encoders)  # The default.
    # Captions and texts are learned as they are, tasks as conversations.
    (encode,) = dataset.pipeline
    assert encode.get('chat_template') == (None if stage == 'tasks' else 'plain')
    if stage != 'tasks':
        assert dataset.tasks.caption.dataset.data_root == f'data/{path.stem.split("_")[-1]}'
    frozen = 'language_model' not in parts
    assert vlm.gradient_checkpointing != frozen
    assert (vlm.get('language_model') or {}).get('dtype') == ('bfloat16' if frozen else None)
    optimizer, (warmup, annealing) = cfg.optim_wrapper.optimizer, cfg.param_scheduler
    assert (optimizer.type, optimizer.lr, tuple(optimizer.betas)) == ('AdamW', first, (0.9, 0.95))
    assert (warmup.start_factor, warmup.end, annealing.get('eta_min', 0)) == (1e-3, 600, last)  # 3% of the steps.


@parametrize(FILES)
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
    expected_grid, side, tokens = MODELS_OF_NAMES[path.stem.split('_')[0]]
    assert (grid, processor.image_size) == (expected_grid, side)
    # Crops are cut from pixels that some encoder sees as they are.
    assert processor.image_size / grid in sizes
    built = TRANSFORMS.build(dict(processor, tokenizer=tiny_sphinx.tokenizer()))
    assert len(built.tokens_of(9, 9)) == tokens
    vocabulary, context = LANGUAGE_MODELS[processor.tokenizer]
    assert vlm.image_token_id == vocabulary
    assert tokens + 500 < cfg.encode.max_length <= context
    assert tokens + cfg.model.generation.max_new_tokens + 100 < context


# Tiny models and data.


@pytest.fixture(scope='module', autouse=True)
def home(tmp_path_factory):
    """The folder that the configs' paths begin in, with `data` and the models that no config trains."""
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
    for loader in loaders(cfg):
        loader.update(batch_size=BATCH, num_workers=0)
        if 'batch_size' in loader.sampler:
            loader.sampler.batch_size = BATCH
    for dataset in find(loaders(cfg), 'dataset'):
        if dataset.type == 'ShapesTaskDataset':
            dataset.length = BATCH
    if path in FULL:
        shrink_model(cfg.model.vlm)
        for processor in find([cfg.model, *loaders(cfg)], 'processor'):
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
    """Keeps weights and buffers as they are after `init_weights`, as `runner.before`."""

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


def test_a_folder_for_the_next_stage_is_left(trained):
    model = MODELS.build(dict(type='SphinxModel', pretrained=str(Path(trained.work_dir, 'pretrained')))).model
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
