import pytest
import tiny_vlms
import torch

from mergemix_mm.models.vlms import HFVisionLanguageModel


@pytest.fixture(scope='module')
def vlm():
    torch.manual_seed(0)
    return HFVisionLanguageModel(config=tiny_vlms.tiny_config('paligemma'), trainable=['language_model'])


@pytest.fixture(autouse=True, params=['train', 'eval'])
def mode(vlm, request):
    vlm.train(request.param == 'train')


def batch_of(padding_side):
    """Two samples of unequal length, as the processor makes them for training."""
    batch = tiny_vlms.tiny_processor('paligemma')(
        text=['<image>a long question', '<image>short'],
        images=[tiny_vlms.random_image(30, 40, seed) for seed in range(2)],
        suffix=['an answer', 'also an answer'],
        padding=True,
        padding_side=padding_side,
        return_tensors='pt',
    )
    return dict(batch)


def answer_positions(batch, row):
    return (batch['labels'][row] != -100).nonzero().squeeze(1)


@pytest.mark.parametrize('padding_side', ['left', 'right'])
@pytest.mark.parametrize('drop', [[], ['token_type_ids'], ['labels'], ['zero types']])
def test_a_later_answer_token_never_changes_an_earlier_hidden_state(vlm, padding_side, drop):
    batch = batch_of(padding_side)
    changed = dict(batch, input_ids=batch['input_ids'].clone())
    positions = [int(answer_positions(batch, row)[3]) for row in range(2)]
    for row, position in enumerate(positions):
        changed['input_ids'][row, position] += 1
    for each in (batch, changed):
        if drop == ['zero types']:  # A processor that was not told which part is the answer.
            each['token_type_ids'] = torch.zeros_like(each['token_type_ids'])
        else:
            [each.pop(key) for key in drop]
    before, after = vlm.hidden(batch), vlm.hidden(changed)
    for row, position in enumerate(positions):
        real = batch['attention_mask'][row].bool()
        earlier = real & (torch.arange(len(real)) < position)
        assert torch.equal(before[row, earlier], after[row, earlier])
        assert (before[row, position:] - after[row, position:]).abs().max() > 1e-2


def test_the_prompt_sees_all_of_itself(vlm):
    batch = batch_of('right')
    changed = dict(batch, input_ids=batch['input_ids'].clone())
    changed['input_ids'][:, 18] += 1
    difference = (vlm.hidden(batch) - vlm.hidden(changed)).abs().amax(dim=-1)
    assert (difference[:, 0] > 1e-4).all()


def test_a_second_question_does_not_open_the_answers_before_it(vlm):
    """Two turns: the processor would call the second question a prefix, which every token may see."""
    batch = batch_of('right')
    end = answer_positions(batch, 1)[4]
    types, labels = batch['token_type_ids'].clone(), batch['labels'].clone()
    types[1, end : end + 3], labels[1, end : end + 3] = 0, -100
    batch = dict(batch, token_type_ids=types, labels=labels)
    changed = dict(batch, input_ids=batch['input_ids'].clone())
    changed['input_ids'][1, end + 1] += 1
    before, after = vlm.hidden(batch), vlm.hidden(changed)
    assert torch.equal(before[1, : end + 1], after[1, : end + 1])
