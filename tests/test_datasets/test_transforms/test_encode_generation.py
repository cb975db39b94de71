"""Tests of EncodeGeneration: exactly the prompts that the families' models begin an image behind."""

import numpy as np
import pytest
import tiny_vlms
import torch
from mmengine.registry import TRANSFORMS
from PIL import Image

from mergemix_mm.datasets import EncodeGeneration, RecordError
from mergemix_mm.models.vlms import Emu3Model, JanusModel

MODELS = dict(janus=JanusModel, emu3=Emu3Model)
TEXTS = dict(
    janus='<｜begin▁of▁sentence｜><|User|>: a red ring\n\n<|Assistant|>:<begin_of_image>',
    emu3='<|extra_203|>a red ring<|image start|>4*4<|image token|>',
)


def build(family, **kwargs):
    return EncodeGeneration(tiny_vlms.tiny_processor(family), image_size=8, **kwargs)


def record(size=(20, 10), **kwargs):
    return dict(prompt='a red ring', images=[tiny_vlms.random_image(*size, 0)], source='data.json:3', **kwargs)


@pytest.mark.parametrize('family', MODELS)
def test_prompt_ends_where_the_image_begins(family):
    encode = build(family)
    sample = encode(record(gt_color='red'))
    inputs, tokenizer = sample['inputs'], encode.processor.tokenizer
    assert tokenizer.decode(inputs['input_ids']) == TEXTS[family]
    assert inputs['attention_mask'].all() and inputs['task'] == 'gen'
    assert inputs['pad_token_id'] == tokenizer.pad_token_id
    found = sample['data_samples']
    assert (found.prompt, found.gt_color, found.source) == ('a red ring', 'red', 'data.json:3')
    assert 'images' not in found


@pytest.mark.parametrize('family', MODELS)
def test_the_model_takes_it(family):
    torch.manual_seed(0)
    vlm = MODELS[family](config=tiny_vlms.tiny_config(family))
    inputs = build(family)(record())['inputs']
    batch = {key: inputs[key][None] for key in ('input_ids', 'attention_mask', 'target_images')}
    prepared = vlm.prepare(batch)
    assert (prepared['labels'] != -100).sum() == 16 and vlm.hidden(prepared).isfinite().all()


def test_image_is_resized_to_cover_the_square_and_cropped_around_its_middle():
    pixels = np.zeros((16, 48, 3), np.uint8)
    pixels[:, 16:32] = 255
    pixels[:, 32:] = 51
    target = build('janus')(dict(prompt='a', images=[Image.fromarray(pixels)]))['inputs']['target_images']
    assert target.shape == (3, 8, 8) and target.dtype == torch.float32
    assert (target[..., 1:-1] == 1).all() and target.min() > 0.8  # Neighbours bleed into the outer columns.
    grey = build('janus')(dict(prompt='a', images=[Image.new('RGB', (5, 9), (0, 51, 255))]))['inputs']['target_images']
    assert grey[:, 3, 3].tolist() == pytest.approx([-1, -0.6, 1])


def test_sizes_come_from_the_family():
    assert EncodeGeneration(tiny_vlms.tiny_processor('janus')).image_size == 28
    assert EncodeGeneration(tiny_vlms.tiny_processor('emu3')).image_size == 720
    with pytest.raises(ValueError, match='image_size=7 must be a multiple of 2'):
        EncodeGeneration(tiny_vlms.tiny_processor('emu3'), image_size=7)


@pytest.mark.parametrize('family', MODELS)
def test_generating_needs_no_image(family):
    inputs = build(family, generate=True)(dict(prompt='a', images=[]))['inputs']
    assert set(inputs) == {'input_ids', 'attention_mask', 'pad_token_id', 'task'}
    with pytest.raises(RecordError, match='record: learning to generate needs one image, found 0'):
        build(family)(dict(prompt='a', images=[]))


def test_janus_system_prompt_is_for_questions_only():
    processor = tiny_vlms.tiny_processor('janus')
    processor.use_default_system_prompt = True
    ids = EncodeGeneration(processor, image_size=8)(record())['inputs']['input_ids']
    assert processor.tokenizer.decode(ids) == TEXTS['janus']


@pytest.mark.parametrize('family', MODELS)
def test_bad_prompts_name_their_place(family):
    length = len(build(family)(record())['inputs']['input_ids'])
    assert len(build(family, max_length=length)(record())['inputs']['input_ids']) == length
    with pytest.raises(RecordError, match=f'data.json:3: the prompt has {length} tokens, more than max_length=5'):
        build(family, max_length=5)(record())


@pytest.mark.parametrize('family', MODELS)
def test_tokens_that_a_prompt_names_stay_text(family):
    encode = build(family)
    tokenizer = encode.processor.tokenizer
    names = [token.content for token in tokenizer.added_tokens_decoder.values()]
    prompt = 'a red ' + ' '.join(names)
    ids = encode(record() | dict(prompt=prompt))['inputs']['input_ids']
    assert tokenizer.decode(ids) == TEXTS[family].replace('a red ring', prompt)
    plain = encode(record())['inputs']['input_ids'].tolist()
    added = set(tokenizer.added_tokens_decoder)
    assert [token for token in ids.tolist() if token in added] == [token for token in plain if token in added]


def test_other_families_are_refused():
    with pytest.raises(ValueError, match=r'LlavaProcessor belongs to no model that generates images.*JanusProcessor'):
        TRANSFORMS.build(dict(type='EncodeGeneration', processor=tiny_vlms.tiny_processor('llava')))
