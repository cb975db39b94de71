"""Every config of preference tuning: what is trained and how, and two training steps or a test.

The models become tiny ones of the same family, in folders that `from_pretrained` reads, and the data small files in the
layout of the official ones; the rest is as the config says.
"""

import math
import re
from functools import cache

import pytest
import small_data
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

from mergemix_mm.models.vlms import HFVisionLanguageModel

FILES = config_files('simpo')
TRAIN = [path for path in FILES if '-coslr-' in path.stem]
TEST = [path for path in FILES if path not in TRAIN]
# Start of a config's name -> family of tests/tiny_vlms.
FAMILIES = {'llava-v1.5': 'llava', 'qwen2.5-vl': 'qwen2_5_vl', 'tiny-llava': 'llava'}
# Dataset that is tested -> number of questions in the files below (one of ScienceQA's two has an image), metric.
TESTED = {
    'pope': (6, 'pope/accuracy'),
    'scienceqa': (1, 'choice/accuracy'),
    'vqav2': (2, 'vqa/official_accuracy'),
}
# Type and mask of the mixers that are not called as their name in the files.
MIXERS = {
    'blur': ('SalientBlur', None),
    'inverse': ('MergeMix', 'inverse'),
    'random': ('MergeMix', 'random'),
    'swap': ('SwapImages', None),
}
NUM_PATCHES = 16  # Of the tiny LLaVA's tower.
BATCH = 4

on_train_files = parametrize(TRAIN)


def family_of(path):
    return next(family for start, family in FAMILIES.items() if path.stem.startswith(start))


@on_train_files
def test_name_tells_what_is_trained_and_the_recipe_is_llavas(path):
    cfg, words = load(path), words_of(path)
    mixer = cfg.model.get('mixer')
    if words[0] == 'simpo':
        kind, mask = MIXERS.get(words[1], (words[1], None))
        assert (cfg.model.head.type, mixer.type.lower(), mixer.get('mask')) == ('SimPOHead', kind.lower(), mask)
    else:
        assert cfg.model.head.type == 'SFTHead' and mixer is None
    assert ('lora' in cfg.model.vlm) == any(word in words for word in ('lora', 'qlora'))
    assert ('quantization_config' in cfg.model.vlm) == ('qlora' in words)
    if 'shapes' not in path.stem:
        warmup = cfg.param_scheduler[0]
        assert (warmup.begin, warmup.end) == (0, round(0.03 * cfg.train_cfg.max_iters))


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
        for processor in find([cfg.model, *loaders(cfg)], 'processor'):
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


@on_train_files
def test_trains_on_images_and_on_text(path, run, tmp_path):
    if 'qlora' in path.stem:
        pytest.importorskip('bitsandbytes')
    runner = run(path)
    before = {name: parameter.detach().clone() for name, parameter in runner.model.named_parameters()}
    runner.train()
    assert runner.iter == 2

    losses = {key: log.data[0] for key, log in runner.message_hub.log_scalars.items() if key.startswith('train/loss')}
    assert all(map(math.isfinite, [value for values in losses.values() for value in values]))
    assert len(losses['train/loss_sft']) == 2
    # One batch of images, and one of only text where the data have such.
    pairs = 2 if path.stem.endswith('_shapes') else 1
    assert len(losses.get('train/loss_simpo', [])) == pairs * ('-simpo-' in path.stem)

    parameters = dict(runner.model.named_parameters())
    moved = {name for name, parameter in parameters.items() if not torch.equal(parameter, before[name])}
    trainable = {name for name, parameter in parameters.items() if parameter.requires_grad}
    # A LLaVA reads the tower's last layer but one: nothing after that learns.
    after = {
        name for name in trainable if re.search(r'vision_(?:tower|model)\.(encoder\.layers\.3|post_layernorm)\.', name)
    }
    assert moved == trainable - after and moved
    assert len(trainable) < len(parameters) or path.stem.endswith('_shapes')
    assert all(torch.isfinite(parameter).all() for parameter in parameters.values())
    assert (tmp_path / 'work/pretrained').is_dir()


@on_train_files
def test_trains_the_parts_of_its_stage_at_its_rate(path, run):
    if 'qlora' in path.stem:
        pytest.importorskip('bitsandbytes')
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
    lora = 'lora-' in path.stem
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


@parametrize(TEST)
def test_answers_and_scores(path, run):
    runner, (number, metric) = run(path), TESTED[path.stem.split('_')[-1]]
    assert 0 <= runner.test()[metric] <= 100
    assert len(runner.test_dataloader.dataset) == number
    assert runner.cfg.test_dataloader.collate_fn.padding_side == 'left'
