"""Memory plans: peaks against measured ones of real steps, and what DDP and FSDP2 make of them."""

import copy
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import mmpretrain.models  # noqa: F401
import pytest
import tiny_vlms
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, MODELS, init_default_scope
from repository_configs import frozen_encoders, load

from mergemix_mm.engine.planning import (
    RESERVED,
    PlanError,
    UnknownBatchError,
    build_weightless,
    plan_memory,
    step_peaks,
    training_batches,
)
from mergemix_mm.engine.planning.plan import low_precision, planned_units
from mergemix_mm.engine.planning.weightless import HubConfigError
from mergemix_mm.models.vlms.wrap_policy import exact_parameters

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / 'configs'
LLAVA = CONFIGS / 'simpo/tiny-llava_1xb64-simpo-mergemix-coslr-300i_shapes.py'
JANUS = CONFIGS / 'aia/tiny-janus_1xb32-aia-coslr-400i_shapes.py'
DIGITS = CONFIGS / 'mergemix/vit-tiny_1xb32-mergemix-coslr-30e_digits.py'
MIB = 2**20


@pytest.fixture(scope='module', autouse=True)
def scope():
    init_default_scope('mmpretrain')


@pytest.fixture
def peak_memory(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools/benchmarks'))
    from lib.measure import peak_memory

    return peak_memory


class RealTensors:
    """Makes what `StepMemory.empty` makes, with content."""

    def empty(self, *shape, dtype=torch.float32):
        return torch.rand(shape) if dtype.is_floating_point else torch.randint(0, 255, shape, dtype=dtype)


def classifier(arch='deit-tiny', size=112, batch=8):
    cfg = load(DIGITS)
    cfg.train_dataloader.update(batch_size=batch)
    cfg.train_dataloader.dataset.pipeline = [dict(type='Resize', scale=size)]
    cfg.model.backbone.update(arch=arch, img_size=size, patch_size=16)
    cfg.model.head.in_channels = 192
    return cfg


def llava(checkpointing, batch=4):
    cfg = load(LLAVA)
    cfg.train_dataloader.batch_size = batch
    cfg.model.vlm.gradient_checkpointing = checkpointing
    return cfg


def janus(checkpointing, batch=4):
    cfg = load(JANUS)
    cfg.train_dataloader.batch_size = batch
    cfg.model.vlm.gradient_checkpointing = checkpointing
    return cfg


def measured(cfg, peak_memory, autocast=None, text_tokens=None):
    """Peaks of a real step of each task, in bytes: forward and backward, and the optimizer's update."""
    torch.manual_seed(0)
    model = MODELS.build({key: value for key, value in copy.deepcopy(cfg.model).items() if key != 'processor'})
    model.init_weights()
    model.train()
    for hook in cfg.get('custom_hooks') or ():
        if hook.type == 'AIAHook':
            HOOKS.build(copy.deepcopy(hook)).before_train(SimpleNamespace(model=model))
    wrapper = build_optim_wrapper(model, dict(type='OptimWrapper', optimizer=cfg.optim_wrapper.optimizer))
    losses, updates = {}, []

    def loss_of(make):
        batch = make()
        with torch.autocast('cpu', dtype=autocast) if autocast else nullcontext():
            values = model(**batch)
        loss, _ = model.parse_losses(values)
        loss.backward()

    for task, make in training_batches(cfg, model, RealTensors(), text_tokens).items():
        losses[task] = peak_memory(lambda make=make: loss_of(make)) * MIB
        gradients = sum(one.grad.numel() * 4 for one in model.parameters() if one.grad is not None)
        wrapper.step()
        updates.append(peak_memory(wrapper.step) * MIB + gradients)
        model.zero_grad(set_to_none=True)
    return losses, max(updates)


BF16 = torch.bfloat16
STEPS = {
    'a classifier with MergeMix': (classifier, None, None),
    'a classifier with MergeMix under autocast': (classifier, BF16, None),
    'LLaVA with SimPO': (lambda: llava(False), None, 80),
    'LLaVA with SimPO, checkpointed': (lambda: llava(True), None, 80),
    'LLaVA with SimPO, checkpointed under autocast': (lambda: llava(True), BF16, 80),
    'Janus with AIA': (lambda: janus(False), None, 60),
    'Janus with AIA, checkpointed': (lambda: janus(True), None, 60),
    'Janus with AIA under autocast': (lambda: janus(False), BF16, 60),
}


@pytest.mark.parametrize('name', STEPS)
def test_the_peak_of_a_step_is_within_15_percent_of_the_measured_one(name, peak_memory):
    make, autocast, text = STEPS[name]
    cfg = make()
    planned = step_peaks(cfg, text_tokens=text, autocast=autocast, foreach=False)
    losses, update = measured(cfg, peak_memory, autocast, text)
    assert planned.loss == pytest.approx(max(losses.values()), rel=0.15), losses
    # One parameter at a time, on a CPU.
    assert planned.update == pytest.approx(update, rel=0.15)


@pytest.mark.parametrize('family', tiny_vlms.ALL_FAMILIES)
def test_so_is_that_of_every_family(family, peak_memory):
    cfg = llava(False, batch=2)
    cfg.model.vlm.config = tiny_vlms.tiny_config(family)
    cfg.model.vlm.trainable = ['language_model']
    cfg.model.head, cfg.model.mixer = dict(type='SFTHead'), None
    cfg.model.processor = dict(type=family, **tiny_vlms.LARGEST_IMAGE[family][1])
    planned = step_peaks(cfg, text_tokens=100, foreach=False)
    losses, _ = measured(cfg, peak_memory, text_tokens=100)
    assert planned.loss == pytest.approx(losses['und'], rel=0.15)


def test_states_of_the_optimizer_are_those_of_its_kind():
    cfg = llava(True)
    adam = step_peaks(cfg, text_tokens=8)
    assert adam.optimizer == pytest.approx(2 * adam.gradients, rel=1e-3)
    # All parameters at once: the square root of the second moments is as large as they are.
    assert adam.update == pytest.approx(2 * adam.gradients, rel=0.1)  # One layer of the tower gets no gradient.
    cfg.optim_wrapper.optimizer = dict(type='SGD', lr=0.1, momentum=0.9)
    assert step_peaks(cfg, text_tokens=8).optimizer == adam.gradients
    cfg.optim_wrapper.optimizer = dict(type='SGD', lr=0.1)
    assert step_peaks(cfg, text_tokens=8).optimizer == 0


def test_only_what_trains_has_gradients_and_states():
    cfg = llava(False)
    cfg.model.vlm.trainable = ['projector']
    found = step_peaks(cfg, text_tokens=8)
    projector = 96 * 128 + 128 + 128 * 128 + 128
    assert found.gradients == 4 * projector and found.optimizer == pytest.approx(8 * projector, abs=64)
    cfg.model.vlm.update(lora=dict(r=4), dtype='bfloat16', trainable=['language_model'])
    adapters = 3 * 4 * (4 * 2 * 128 + 3 * (128 + 256))
    assert step_peaks(cfg, text_tokens=8).gradients == 4 * adapters


def test_a_generation_batch_has_prompts_and_codes():
    assert step_peaks(janus(True), text_tokens=10).batches == {'und': [4, 74], 'gen': [4, 74]}


def test_the_encoder_that_scores_beside_the_model_counts_whole_on_each_gpu():
    cfg = llava(True)
    scorer = dict(type='mmpretrain.VisionTransformer', arch='deit-tiny', img_size=48, patch_size=8)
    cfg.model.mixer = dict(type='MergeMix', encoder=scorer)
    plain, beside = (plan_memory(one, 4, text_tokens=8).ways for one in (llava(True), cfg))
    size = 4 * sum(one.numel() for one in MODELS.build(scorer).parameters())
    for before, after in zip(plain, beside, strict=True):
        assert after.weights - before.weights == size


def test_gradients_of_an_accumulating_training_stay_through_the_next_forward():
    cfg = llava(False, 4)
    once = step_peaks(cfg, text_tokens=8).loss
    cfg.optim_wrapper.accumulative_counts = 4
    found = step_peaks(cfg, text_tokens=8)
    assert found.loss > once + 0.5 * found.gradients


# DDP and FSDP2.


def test_ddp_has_buckets_and_one_gpu_has_none():
    cfg = llava(True)
    (one, *_), (eight, *_) = (plan_memory(cfg, gpus, text_tokens=8).ways for gpus in (1, 8))
    assert (one.name, eight.name) == ('one GPU', 'DDP')
    assert eight.gradients == 2 * one.gradients and eight.weights == one.weights
    assert eight.total == eight.weights + eight.gradients + eight.optimizer + eight.step + RESERVED


def test_fsdp2_divides_the_states_and_gathers_two_layers():
    cfg = llava(True)
    two, eight = (plan_memory(cfg, gpus, text_tokens=8).ways[1] for gpus in (2, 8))
    for part in ('weights', 'gradients', 'optimizer'):
        assert getattr(two, part) == pytest.approx(4 * getattr(eight, part), rel=0.01)
    root, *layers = planned_units(build_weightless(cfg.model), None)
    layer = 4 * 128 * 128 + 3 * 128 * 256 + 2 * 128
    assert [one.trained for one in layers] == [layer] * 3
    # Gathered in float32, as the config has no other precision.
    assert all(one.gathered == one.trained_bytes == 4 * layer for one in layers)
    assert eight.step > root.gathered + 2 * 4 * layer


def test_whole_gradients_stay_on_each_gpu_with_accumulation():
    cfg = llava(True)
    once = plan_memory(cfg, 8, text_tokens=8).ways
    cfg.optim_wrapper.accumulative_counts = 4
    gradients = once[0].gradients // 2
    for before, after in zip(once[1:], plan_memory(cfg, 8, text_tokens=8).ways[1:], strict=True):
        assert after.total - before.total == gradients


def test_frozen_encoders_are_gathered_in_their_own_dtype_and_exact_modules_are_whole():
    cfg = frozen_encoders()
    _, *units = planned_units(build_weightless(cfg.model), torch.bfloat16)
    encoders = [one for one in units if not one.trained]
    layers = [one for one in units if one.trained]
    assert len(encoders) == len(cfg.model.vlm.backbone.encoders) and layers
    assert all(one.gathered == 2 * one.trained for one in layers)
    model = build_weightless(cfg.model)
    for one in encoders:
        assert one.gathered == sum(4 * weight.numel() for weight in model.get_submodule(one.name).parameters())
    cfg = janus(False)
    model = build_weightless(cfg.model)
    exact = exact_parameters(model)
    assert {id(one) for one in exact} == {id(one) for one in model.vlm.family.model.model.vqmodel.parameters()}
    held = sum(4 * one.numel() for one in exact)
    whole, _, offloaded = plan_memory(cfg, 4, text_tokens=8).ways
    rest = sum(one.gathered for one in planned_units(model, None))
    assert rest + held == pytest.approx(whole.weights, rel=1e-3)  # Without buffers.
    assert offloaded.weights == held > 0


def test_offload_leaves_the_step_on_the_gpu_and_all_else_in_the_machine():
    _, sharded, offloaded = plan_memory(llava(True), 4, text_tokens=8).ways
    assert (offloaded.weights, offloaded.gradients, offloaded.optimizer) == (0, 0, 0)
    assert offloaded.host >= sharded.weights + sharded.gradients + sharded.optimizer
    assert offloaded.total < sharded.total


@pytest.mark.parametrize(
    'wrapper, expected',
    [
        (dict(type='OptimWrapper'), None),
        (dict(type='AmpOptimWrapper', dtype='bfloat16'), torch.bfloat16),
        (dict(type='AmpOptimWrapper'), torch.float16),
    ],
)
def test_the_precision_is_that_of_the_wrapper(wrapper, expected):
    assert low_precision(Config(dict(optim_wrapper=wrapper))) == expected


def test_low_precision_halves_what_is_kept():
    cfg = llava(False, 16)
    full = step_peaks(cfg, text_tokens=80, release=True).loss
    assert step_peaks(cfg, text_tokens=80, compute=torch.bfloat16, release=True).loss < 0.65 * full


def test_a_copy_of_the_weights_for_averaging_counts():
    cfg = classifier()
    before = plan_memory(cfg, 1).ways[0].weights
    cfg.custom_hooks = [dict(type='EMAHook')]
    assert plan_memory(cfg, 1).ways[0].weights == 2 * before


# What cannot be planned.


@pytest.mark.parametrize('key', ['model', 'train_dataloader', 'optim_wrapper'])
def test_a_config_that_does_not_train_is_refused(key):
    cfg = classifier()
    cfg[key] = None
    with pytest.raises(PlanError, match=f'no {key}'):
        plan_memory(cfg, 1)


def test_a_text_longer_than_the_pipeline_allows_is_refused():
    cfg = llava(True)
    for part in cfg.train_dataloader.dataset.pipeline:
        part.max_length = 60
    with pytest.raises(UnknownBatchError, match='--text-tokens 30.* 36 of the image.*max_length=60'):
        plan_memory(cfg, 1, text_tokens=30)
    assert step_peaks(cfg).batches == {'und': [4, 60]}


def test_a_model_without_batches_is_refused():
    cfg = classifier()
    cfg.model = dict(type='MultiBackbone', encoders=[dict(encoder=dict(type='mmpretrain.ConvNeXt', arch='tiny'))])
    cfg.model.encoders[0].encoder.gap_before_final_norm = False
    with pytest.raises(UnknownBatchError, match="model.type='MultiBackbone'.*VLMTuner"):
        plan_memory(cfg, 1)


def test_a_hub_model_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    cfg = llava(True)
    cfg.model.vlm.pop('config')
    cfg.model.vlm.pretrained = 'nobody/nothing'
    with pytest.raises(HubConfigError, match='nobody/nothing=FILE.json'):
        plan_memory(cfg, 1)
