"""Tests of UnifiedCollate."""

import pytest
import tiny_vlms
import torch

from mergemix_mm.datasets import ConversationCollate, EncodeConversation, EncodeGeneration, UnifiedCollate


@pytest.fixture(scope='module')
def samples():
    processor, image = tiny_vlms.tiny_processor('janus'), tiny_vlms.random_image(28, 28, 0)
    texts = ['a dog', 'a long-haired cat']
    messages = [
        [
            dict(role='user', content=[dict(type='image'), dict(type='text', text=text)]),
            dict(role='assistant', content=[dict(type='text', text='yes')]),
        ]
        for text in texts
    ]
    gen = [EncodeGeneration(processor, image_size=8)(dict(prompt=text, images=[image])) for text in texts]
    und = [EncodeConversation(processor)(dict(messages=each, images=[image])) for each in messages]
    return dict(gen=gen, und=und)


@pytest.mark.parametrize('side', ['left', 'right'])
def test_generation_samples_are_padded_and_their_images_stacked(samples, side):
    batch = UnifiedCollate(side)(samples['gen'])
    inputs, ids = batch['inputs'], [sample['inputs']['input_ids'] for sample in samples['gen']]
    assert set(inputs) == {'input_ids', 'attention_mask', 'target_images', 'task'} and inputs['task'] == 'gen'
    for row, mask, one in zip(inputs['input_ids'], inputs['attention_mask'], ids):
        assert torch.equal(row[mask.bool()], one) and (row[mask == 0] == 0).all()
    assert inputs['attention_mask'][0, 0] == (side == 'right') and inputs['attention_mask'][0, -1] == (side == 'left')
    targets = [sample['inputs']['target_images'] for sample in samples['gen']]
    assert torch.equal(inputs['target_images'], torch.stack(targets))
    assert [sample.prompt for sample in batch['data_samples']] == ['a dog', 'a long-haired cat']


def test_understanding_is_what_conversation_collate_makes_of_it(samples):
    found, expected = UnifiedCollate()(samples['und']), ConversationCollate()(samples['und'])
    assert found['inputs'].pop('task') == 'und'
    assert found['inputs'].keys() == expected['inputs'].keys()
    assert all(torch.equal(found['inputs'][key], value) for key, value in expected['inputs'].items())
    assert found['data_samples'] == expected['data_samples']


def test_tasks_do_not_mix(samples):
    with pytest.raises(ValueError, match=r'1 samples of generation and 2 of understanding; .*ModalitySampler'):
        UnifiedCollate()([samples['gen'][0], *samples['und']])
