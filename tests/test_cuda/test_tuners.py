"""Tuning steps of vision-language models on a device: every family, every precision, with and without alignment."""

import pytest
import tiny_sphinx
import tiny_vlms
import torch
from mmengine.registry import MODELS
from on_device import PRECISIONS, moved, optim_wrapper, tensors, train_step
from test_models.test_tuners.test_unified_tuner import CLASSES, TASKS, align, batch_of
from test_models.test_tuners.test_unified_tuner import build as build_unified
from test_models.test_tuners.test_vlm_tuner import MIXERS, SIMPO, samples
from test_models.test_tuners.test_vlm_tuner import build as build_tuner

from mergemix_mm.models.attention import InteractionAlignment
from mergemix_mm.models.losses import AIALoss

STAGES = [dict(depth=(0.0, 1.0), target=0.5, delta=0.1)]


def losses_of(model, batch):
    """Losses of a batch, and the gradients of their sum."""
    model.zero_grad()
    losses = model(batch, mode='loss')
    sum(value for name, value in losses.items() if 'loss' in name).backward()
    return losses, {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


def assert_same_step(model, batch, device, tolerance=1e-3):
    """Losses and gradients in float32 are those of the CPU; draws have to be the same."""
    torch.manual_seed(0)
    expected, wanted = moved(losses_of(model, batch), 'cpu')
    wanted = {name: one.clone() for name, one in wanted.items()}
    model.to(device)
    torch.manual_seed(0)
    found, gradients = losses_of(model, moved(batch, device))
    assert found.keys() == expected.keys() and gradients.keys() == wanted.keys()
    for name, value in found.items():
        assert value.device.type == device.type
        assert value.item() == pytest.approx(expected[name].item(), rel=tolerance, abs=tolerance), name
    whole = torch.cat([one.flatten() for one in wanted.values()])
    error = torch.cat([gradients[name].cpu().flatten() for name in wanted]) - whole
    assert error.norm() < 10 * tolerance * whole.norm()


@pytest.mark.parametrize('family', tiny_vlms.ALL_FAMILIES)
def test_supervised_losses_and_gradients_are_those_of_the_cpu(family, device):
    model = build_tuner(family, trainable=('projector', 'language_model'))
    assert_same_step(model, tiny_vlms.tiny_batch(family, samples()), device)


@pytest.mark.parametrize('family', tiny_vlms.FAMILIES)
def test_a_model_trains_on_mixed_images_in_every_precision(family, device, monkeypatch):
    model = build_tuner(family, SIMPO, MIXERS['MergeMix' if family in tiny_vlms.SCORED else 'SwapImages']).to(device)
    batch = tiny_vlms.tiny_batch(family, samples())
    for precision in PRECISIONS:
        losses = train_step(model, dict(inputs=batch), optim_wrapper(model, precision, device, monkeypatch))
        assert losses['loss_simpo'] > 0 and 0 <= losses['ratio_mean'] < 1


@pytest.mark.parametrize('mixer', MIXERS)
def test_every_mixer_makes_losers_on_the_device(mixer, device):
    model = build_tuner('llava', SIMPO, MIXERS[mixer]).to(device)
    # MMPretrain's mixers may draw an image as its own partner, but not all of eight.
    batch = moved(tiny_vlms.tiny_batch('llava', samples(8)), device)
    losses, gradients = losses_of(model, batch)
    assert losses['loss_simpo'].isfinite() and all(one.isfinite().all() for one in gradients.values())
    assert {one.device.type for _, one in tensors(model.mix_result)} == {device.type}


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
@pytest.mark.parametrize('family', tiny_vlms.ALL_FAMILIES)
def test_frozen_weights_of_low_precision_beside_trained_ones(family, dtype, device, monkeypatch):
    """Without the trainer's autocast: the tuner's own."""
    model = build_tuner(family, dtype=dtype, trainable=('language_model',)).to(device)
    batch = tiny_vlms.tiny_batch(family, samples())
    assert train_step(model, dict(inputs=batch), optim_wrapper(model, 'float32', device, monkeypatch))['loss_sft'] > 0


@pytest.mark.parametrize('options', ['lora', 'checkpointing', 'tower', 'merge', 'packed'])
def test_ways_of_training_take_a_step(options, device, monkeypatch):
    pytest.importorskip('peft') if options == 'lora' else None
    kwargs = dict(
        lora=dict(lora=dict(r=2), dtype='bfloat16'),
        checkpointing=dict(gradient_checkpointing=True),
        tower=dict(trainable=('vision_tower', 'projector', 'language_model')),
        merge=dict(vision_merge=dict(num_merge=8)),
        packed=dict(packed=True),
    )[options]
    model = build_tuner('llava', SIMPO, MIXERS['MergeMix'], **kwargs).to(device)
    batch = tiny_vlms.tiny_batch('llava', samples())
    for precision in ('float32', 'bfloat16'):
        losses = train_step(model, dict(inputs=batch), optim_wrapper(model, precision, device, monkeypatch))
        assert losses['loss_simpo'] > 0


def test_given_pairs_move_to_the_device_with_their_rejected_answers(device, monkeypatch):
    model = build_tuner('llava', dict(SIMPO, margin=0.5)).to(device)
    batch = tiny_vlms.tiny_batch('llava', samples())
    rejected = tiny_vlms.tiny_batch('llava', [(images, text, 'never') for images, text, _ in samples()])
    batch['rejected'] = {key: rejected[key] for key in ('input_ids', 'attention_mask', 'labels')}
    losses = train_step(model, dict(inputs=batch), optim_wrapper(model, 'float16', device, monkeypatch))
    assert losses['loss_simpo'] > 0


@pytest.mark.parametrize('backend', ['fused', 'eager'])
@pytest.mark.parametrize('task', TASKS)
@pytest.mark.parametrize('family', CLASSES)
def test_alignment_is_that_of_the_cpu(family, task, backend, device):
    model = build_unified(family, drop_prompt=0.0)
    criterion = AIALoss(dict(gen=STAGES, und=STAGES))
    model.alignment = InteractionAlignment(model.vlm, criterion, backend=backend)
    model.alignment.recorder.start()
    # Only the arithmetic differs: what a device's encoder sees as the nearest code need not be the CPU's.
    batch = model.vlm.prepare({key: value for key, value in batch_of(family, task).items() if key != 'task'})
    assert_same_step(model, dict(batch, task=task), device)


@pytest.mark.parametrize('precision', PRECISIONS)
@pytest.mark.parametrize('task', TASKS)
@pytest.mark.parametrize('family', CLASSES)
def test_unified_models_train_with_alignment_in_every_precision(family, task, precision, device, monkeypatch):
    model = align(build_unified(family)).to(device)
    wrapper = optim_wrapper(model, precision, device, monkeypatch)
    losses = train_step(model, dict(inputs=batch_of(family, task)), wrapper)
    assert losses[f'loss_aia_{task}'] > 0 and 0 < losses[f'interaction_{task}'] < 1


def test_alignment_under_gradient_checkpointing_has_the_same_gradients(device):
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        vlm = dict(type='JanusModel', config=tiny_vlms.tiny_config('janus'), gradient_checkpointing=checkpointing)
        model = align(MODELS.build(dict(type='UnifiedTuner', vlm=vlm, drop_prompt=0.0))).to(device).train()
        found.append(losses_of(model, moved(batch_of('janus', 'und'), device))[1])
    for name, one in found[0].items():
        torch.testing.assert_close(found[1][name], one, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('mixed', [False, True])
def test_sphinx_is_that_of_the_cpu_and_trains_in_every_precision(mixed, device, monkeypatch):
    torch.manual_seed(0)
    tuner = MODELS.build(dict(type='VLMTuner', vlm=tiny_sphinx.sphinx_config(mixed)))
    pictures = [tiny_vlms.random_image(40, width, width) for width in (40, 15)]
    records = [([image], 'what is it?', 'ab') for image in pictures] + [([], 'hello', 'you')]
    batch = tiny_sphinx.batch(tiny_sphinx.processor(mixed), records)
    assert_same_step(tuner, batch['inputs'], device)
    for precision in PRECISIONS:
        assert train_step(tuner, batch, optim_wrapper(tuner, precision, device, monkeypatch))['loss_sft'] > 0


def test_sphinx_trains_on_mixed_images(device, monkeypatch):
    torch.manual_seed(0)
    cfg = dict(type='VLMTuner', vlm=tiny_sphinx.sphinx_config(grid=2), head=SIMPO, mixer=MIXERS['MergeMix'])
    tuner = MODELS.build(cfg).to(device)
    records = [([tiny_vlms.random_image(40, width, width)], 'what is it?', 'ab') for width in (40, 15)]
    batch = tiny_sphinx.batch(tiny_sphinx.processor(grid=2), records)
    assert train_step(tuner, batch, optim_wrapper(tuner, 'bfloat16', device, monkeypatch))['loss_simpo'] > 0
