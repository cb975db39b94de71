"""Answers and images that models generate on a device, and what they save from there."""

import math

import pytest
import tiny_sphinx
import tiny_vlms
import torch
from mmengine.registry import MODELS
from mmpretrain.structures import DataSample
from on_device import assert_close_to_cpu, moved
from test_models.test_tuners.test_vlm_tuner import samples
from test_models.test_vlms.test_unified_models import build, codes_of, generation_batch, pictures, prompts

from mergemix_mm.models.vlms import HFVisionLanguageModel

UNIFIED = tiny_vlms.UNIFIED


def vlm_of(family, **kwargs):
    torch.manual_seed(0)
    return HFVisionLanguageModel(config=tiny_vlms.tiny_config(family), **kwargs).eval()


def questions(family):
    batch = tiny_vlms.tiny_batch(family, [(images, text, '') for images, text, _ in samples()], padding_side='left')
    return {key: value for key, value in batch.items() if key != 'labels'}


@pytest.mark.parametrize('family', tiny_vlms.ALL_FAMILIES)
def test_answers_are_those_of_the_cpu(family, device):
    vlm, batch = vlm_of(family), questions(family)
    expected = vlm.generate(vlm.prepare(batch), max_new_tokens=6)
    vlm, batch = vlm.to(device), moved(batch, device)
    found = vlm.generate(vlm.prepare(batch), max_new_tokens=6)
    assert torch.equal(found.sequences.cpu(), expected.sequences) and found.sequences.device.type == device.type
    torch.testing.assert_close(found.logps.cpu(), expected.logps, atol=1e-3, rtol=1e-3)
    drawn = vlm.generate(vlm.prepare(batch), max_new_tokens=6, do_sample=True, top_k=20)
    assert drawn.logps.isfinite().all() and (drawn.logps <= 0).all()


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
@pytest.mark.parametrize('family', tiny_vlms.ALL_FAMILIES)
def test_models_of_low_precision_answer(family, dtype, device):
    vlm, batch = vlm_of(family, dtype=dtype).to(device), moved(questions(family), device)
    found = vlm.generate(vlm.prepare(batch), max_new_tokens=3)
    assert found.logps.isfinite().all() and found.sequences.size(1) <= 3


def test_a_tuner_predicts_answers_and_scores_given_ones(device):
    cfg = dict(type='HFVisionLanguageModel', config=tiny_vlms.tiny_config('llava'))
    model = MODELS.build(dict(type='VLMTuner', vlm=cfg, processor=tiny_vlms.tiny_processor('llava'))).to(device).eval()
    for batch in (questions('llava'), tiny_vlms.tiny_batch('llava', samples())):
        data = dict(inputs=batch, data_samples=[DataSample() for _ in range(3)])
        found = model.val_step(data)
        if 'labels' in batch:
            assert all(math.isfinite(one.answer_logp) and one.answer_length > 0 for one in found)
        else:
            assert all(isinstance(one.pred_answer, str) and 0 < one.pred_confidence <= 1 for one in found)


def test_sphinx_answers(device):
    torch.manual_seed(0)
    vlm = MODELS.build(tiny_sphinx.sphinx_config(True)).eval()
    records = [([tiny_vlms.random_image(40, width, width)], 'what is it?', 'ab') for width in (40, 15)]
    batch = tiny_sphinx.batch(tiny_sphinx.processor(True), records, generate=True)['inputs']
    expected = vlm.generate(vlm.prepare(batch), max_new_tokens=5)
    vlm, batch = vlm.to(device), moved(batch, device)
    assert_close_to_cpu(vlm.generate(vlm.prepare(batch), max_new_tokens=5), expected, device, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize('family', UNIFIED)
def test_codes_of_images_are_those_of_the_cpu(family, device):
    vlm, images = build(family).eval(), pictures(family, 4)
    expected = vlm.encode_images(images)
    assert len(expected.unique()) > 3
    vlm.to(device)
    found = vlm.encode_images(images.to(device))
    assert torch.equal(found.cpu(), expected) and found.device.type == device.type
    for dtype in (torch.bfloat16, torch.float16):  # Without autocast, whatever surrounds it.
        with torch.autocast(device.type, dtype=dtype):
            assert torch.equal(vlm.encode_images(images.to(device)).cpu(), expected)
            assert vlm.hidden(vlm.prepare(moved(generation_batch(family), device))).isfinite().all()


@pytest.mark.parametrize('family', UNIFIED)
def test_generated_images_are_those_of_the_cpu(family, device):
    vlm, batch = build(family).eval(), prompts(family)
    codes = codes_of(vlm, batch, temperature=0)
    drawn = codes_of(vlm, batch, generator=torch.Generator().manual_seed(0))
    image = vlm.generate_image(batch, temperature=0)
    vlm, batch = vlm.to(device), moved(batch, device)
    assert torch.equal(codes_of(vlm, batch, temperature=0).cpu(), codes)
    assert_close_to_cpu(vlm.generate_image(batch, temperature=0), image, device, atol=1e-3, rtol=1e-3)
    # One generator of the CPU draws the same codes on every device.
    assert torch.equal(codes_of(vlm, batch, generator=torch.Generator().manual_seed(0)).cpu(), drawn)
    own = [codes_of(vlm, batch, generator=torch.Generator(device).manual_seed(0)) for _ in range(2)]
    assert torch.equal(*own)
    assert vlm.generate_image(batch, guidance_scale=1.0).isfinite().all()


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
@pytest.mark.parametrize('family', UNIFIED)
def test_models_of_low_precision_generate_images(family, dtype, device):
    vlm = build(family, dtype=dtype).eval().to(device)
    assert vlm.generate_image(moved(prompts(family), device)).float().isfinite().all()


@pytest.mark.parametrize('family', ['llava', 'janus'])
def test_a_folder_saved_from_a_device_loads_anywhere(family, device, tmp_path):
    vlm, batch = vlm_of(family), questions(family)
    expected = vlm.hidden(vlm.prepare(batch)).detach()
    vlm.to(device).save_pretrained(tmp_path / 'saved')
    again = HFVisionLanguageModel(pretrained=str(tmp_path / 'saved')).eval()
    assert {one.device.type for one in again.parameters()} == {'cpu'}
    torch.testing.assert_close(again.hidden(again.prepare(batch)).detach(), expected)
