"""Tests of ConversationCollate and UnifiedCollate."""

from functools import cache

import pytest
import tiny_vlms
import torch
from mmengine.registry import FUNCTIONS
from mmengine.runner import Runner

from mergemix_mm.datasets import ConversationCollate, EncodeConversation, EncodeGeneration, UnifiedCollate

FAMILIES = tiny_vlms.ALL_FAMILIES
IMAGE = dict(type='image')


@cache
def encoder(family):
    return EncodeConversation(tiny_vlms.tiny_processor(family))


def turn(role, *parts):
    return dict(role=role, content=[part if part is IMAGE else dict(type='text', text=part) for part in parts])


def encode(family, *sizes, question='Q?', answer='A', **extra):
    images = [tiny_vlms.random_image(*size, seed) for seed, size in enumerate(sizes)]
    messages = [turn('user', *[IMAGE] * len(images), question), turn('assistant', answer)]
    return encoder(family)(dict(messages=messages, images=images, source='x:1', **extra))


def samples(family):
    return [
        encode(family, (40, 60), question='What is this?'),
        encode(family, answer='No image here'),
        encode(family, (28, 28), (90, 30)),
    ]


@pytest.mark.parametrize('side', ['left', 'right'])
@pytest.mark.parametrize('family', FAMILIES)
def test_tokens_are_padded_on_the_chosen_side(family, side):
    given = samples(family)
    batch = ConversationCollate(side)(given)
    inputs = batch['inputs']
    longest = max(len(sample['inputs']['input_ids']) for sample in given)
    pad = dict(input_ids=given[0]['inputs']['pad_token_id'], labels=-100, attention_mask=0, token_type_ids=0)
    keys = {'input_ids', 'labels', 'attention_mask'} | ({'token_type_ids'} if family == 'paligemma' else set())
    assert keys <= set(inputs) and ('token_type_ids' in inputs) == (family == 'paligemma')
    for key in keys:
        assert inputs[key].shape == (3, longest) and inputs[key].dtype == torch.int64
        for row, sample in zip(inputs[key], given):
            own = sample['inputs'][key]
            start = longest - len(own) if side == 'left' else 0
            assert torch.equal(row[start : start + len(own)], own)
            rest = torch.cat([row[:start], row[start + len(own) :]])
            assert rest.tolist() == [pad[key]] * (longest - len(own))
    assert batch['data_samples'] == [sample['data_samples'] for sample in given]
    assert inputs['original_sizes'].tolist() == [[40, 60], [28, 28], [90, 30]]


@pytest.mark.parametrize('side', ['left', 'right'])
@pytest.mark.parametrize('family', FAMILIES)
def test_a_mixed_batch_gives_the_logits_of_its_samples_alone(family, side):
    from mergemix_mm.models.vlms import HFVisionLanguageModel

    torch.manual_seed(0)
    model = HFVisionLanguageModel(config=tiny_vlms.tiny_config(family)).eval()

    def logits(given):
        inputs = ConversationCollate(side)(given)['inputs']
        with torch.no_grad():
            output = model.head(model.hidden(inputs))
        return [row[mask.bool()] for row, mask in zip(output, inputs['attention_mask'])]

    given = samples(family)
    together = logits(given)
    for sample, row in zip(given, together):
        torch.testing.assert_close(row, logits([sample])[0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize('family', FAMILIES)
def test_a_text_only_batch_has_no_images(family):
    inputs = ConversationCollate()([encode(family), encode(family, answer='Longer')])['inputs']
    assert set(inputs) <= {'input_ids', 'labels', 'attention_mask', 'token_type_ids'}


def test_tiles_are_padded_with_zeros():
    given = [encode('llava_next', (60, 60)), encode('llava_next', (28, 56))]
    assert given[0]['inputs']['pixel_values'].shape[1] > given[1]['inputs']['pixel_values'].shape[1]
    pixels = ConversationCollate()(given)['inputs']['pixel_values']
    num = given[1]['inputs']['pixel_values'].shape[1]
    assert pixels.shape[:2] == (2, given[0]['inputs']['pixel_values'].shape[1])
    assert torch.equal(pixels[1, :num], given[1]['inputs']['pixel_values'][0])
    assert not pixels[1, num:].any()


def test_rows_without_image_are_zero_where_the_first_dimension_is_the_row():
    inputs = ConversationCollate()(samples('smolvlm'))['inputs']
    pixels, mask = inputs['pixel_values'], inputs['pixel_attention_mask']
    assert len(pixels) == len(mask) == 3
    assert not pixels[1].any() and not mask[1].any()
    assert mask[0].any() and mask[2].any()


def test_rejected_answers_are_padded_among_themselves():
    given = []
    for answer in ('no', 'not at all'):
        rejected = [turn('user', IMAGE, 'Q?'), turn('assistant', answer)]
        given.append(encode('paligemma', (28, 28), answer='a rather long answer', rejected=rejected))
    inputs = ConversationCollate('left')(given)['inputs']
    rejected = inputs['rejected']
    assert set(rejected) == {'input_ids', 'labels', 'attention_mask', 'token_type_ids'}
    assert rejected['input_ids'].shape[1] == len(given[1]['inputs']['rejected']['input_ids'])
    assert rejected['input_ids'].shape[1] < inputs['input_ids'].shape[1]
    assert rejected['attention_mask'][0].tolist()[:9] == [0] * 8 + [1]
    assert rejected['input_ids'][0, 0] == given[0]['inputs']['pad_token_id']
    with pytest.raises(ValueError, match='1 of 2 samples have a rejected answer'):
        ConversationCollate()([given[0], encode('paligemma', (28, 28))])


@pytest.mark.parametrize('side', ['left', 'right'])
@pytest.mark.parametrize('family', FAMILIES)
def test_pairs_with_images_of_their_own_are_batched_as_conversations_of_their_own(family, side):
    rejected = [turn('user', IMAGE, 'Q?'), turn('assistant', 'not at all')]
    wide, tall = tiny_vlms.random_image(28, 90, 5), tiny_vlms.random_image(90, 28, 6)
    none = [turn('user', 'Q?'), rejected[1]]
    given = [
        encode(family, (40, 60), rejected=rejected, rejected_images=[wide]),
        encode(family, (30, 30), rejected=rejected),
        encode(
            family, (30, 40), rejected=[turn('user', IMAGE, IMAGE, 'Q?'), rejected[1]], rejected_images=[tall, wide]
        ),
        encode(family, (30, 40), rejected=none, rejected_images=[]),
    ]
    images = [[wide], [tiny_vlms.random_image(30, 30, 0)], [tall, wide], []]
    alone = [
        encoder(family)(dict(messages=one, images=own))
        for one, own in zip([rejected, rejected, [turn('user', IMAGE, IMAGE, 'Q?'), rejected[1]], none], images)
    ]
    found, expected = ConversationCollate(side)(given)['inputs'], ConversationCollate(side)(alone)['inputs']
    assert set(found['rejected']) == set(expected)
    assert all(torch.equal(found['rejected'][key], value) for key, value in expected.items())
    plain = [encode(family, size) for size in ((40, 60), (30, 30), (30, 40), (30, 40))]
    for key, value in ConversationCollate(side)(plain)['inputs'].items():
        assert torch.equal(found[key], value), key
    # Without any image among the losers, the batch still says that those of the winners are not theirs.
    losers = ConversationCollate(side)(given[3:])['inputs']['rejected']
    assert losers['original_sizes'].shape == (0, 2) and not any('pixel' in key for key in losers)


def test_prompts_for_generation_have_no_labels():
    generate = EncodeConversation(tiny_vlms.tiny_processor('llava'), generate=True)
    record = dict(messages=[turn('user', IMAGE, 'Q?')], images=[tiny_vlms.random_image(30, 30, 0)])
    inputs = ConversationCollate('left')([generate(record), generate(record)])['inputs']
    assert 'labels' not in inputs and inputs['pixel_values'].shape[0] == 2


@pytest.mark.parametrize(
    'collate_fn', [dict(type='ConversationCollate', padding_side='left'), ConversationCollate('left')]
)
def test_a_runner_builds_it_from_a_config_or_takes_the_object(collate_fn):
    given = [encode('llava', (30, 30)), encode('llava', answer='Longer')]
    loader = Runner.build_dataloader(
        dict(batch_size=2, dataset=given, sampler=dict(type='DefaultSampler', shuffle=False), collate_fn=collate_fn)
    )
    batch = next(iter(loader))
    assert torch.equal(batch['inputs']['input_ids'], ConversationCollate('left')(given)['inputs']['input_ids'])
    assert batch['inputs']['attention_mask'][1, 0] == 0


def test_unknown_side_is_refused():
    with pytest.raises(ValueError, match="padding_side='both' is unknown; use 'left' or 'right'"):
        ConversationCollate('both')
    with pytest.raises(ValueError, match="padding_side='both'"):
        FUNCTIONS.get('ConversationCollate')([], padding_side='both')


@pytest.fixture(scope='module')
def unified_samples():
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
def test_generation_samples_are_padded_and_their_images_stacked(unified_samples, side):
    batch = UnifiedCollate(side)(unified_samples['gen'])
    inputs, ids = batch['inputs'], [sample['inputs']['input_ids'] for sample in unified_samples['gen']]
    assert set(inputs) == {'input_ids', 'attention_mask', 'target_images', 'task'} and inputs['task'] == 'gen'
    for row, mask, one in zip(inputs['input_ids'], inputs['attention_mask'], ids):
        assert torch.equal(row[mask.bool()], one) and (row[mask == 0] == 0).all()
    assert inputs['attention_mask'][0, 0] == (side == 'right') and inputs['attention_mask'][0, -1] == (side == 'left')
    targets = [sample['inputs']['target_images'] for sample in unified_samples['gen']]
    assert torch.equal(inputs['target_images'], torch.stack(targets))
    assert [sample.prompt for sample in batch['data_samples']] == ['a dog', 'a long-haired cat']


def test_understanding_is_what_conversation_collate_makes_of_it(unified_samples):
    found, expected = UnifiedCollate()(unified_samples['und']), ConversationCollate()(unified_samples['und'])
    assert found['inputs'].pop('task') == 'und'
    assert found['inputs'].keys() == expected['inputs'].keys()
    assert all(torch.equal(found['inputs'][key], value) for key, value in expected['inputs'].items())
    assert found['data_samples'] == expected['data_samples']


def test_tasks_do_not_mix(unified_samples):
    with pytest.raises(ValueError, match=r'1 samples of generation and 2 of understanding; .*ModalitySampler'):
        UnifiedCollate()([unified_samples['gen'][0], *unified_samples['und']])
