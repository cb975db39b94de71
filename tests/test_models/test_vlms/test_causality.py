"""For every family: no hidden state sees an answer token that comes later."""

from functools import cache

import pytest
import torch
from tiny_vlms import FAMILIES, random_image, tiny_batch, tiny_config

pytest.importorskip('transformers')
from mergemix_mm.models import HFVisionLanguageModel

PROMPT, ANSWER = 'what is it and where', ' a dog there'


@cache
def build(family):
    torch.manual_seed(0)
    return HFVisionLanguageModel(config=tiny_config(family))


def two_turns(family, side):
    """A batch with answers in the middle ('it and') and at the end of its samples, one of which has no image."""
    image = random_image(40, 60, 0)
    batch = tiny_batch(family, [([image], PROMPT, ANSWER), ([], PROMPT, ANSWER[:4])], side)
    labels = batch['labels']
    ends = labels.ne(-100).long().argmax(dim=1)
    for row, end in enumerate(ends.tolist()):
        # PaliGemma's processor adds a new line to the prompt.
        middle = slice(end - len(' where') - 6 - (family == 'paligemma'), end - len(' where') - (family == 'paligemma'))
        labels[row, middle] = batch['input_ids'][row, middle]
    return batch


@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
@pytest.mark.parametrize('side', ['left', 'right'])
@pytest.mark.parametrize('name', FAMILIES)
def test_changing_a_later_answer_token_never_changes_an_earlier_hidden_state(name, side, training):
    vlm, batch = build(name).train(training), two_turns(name, side)
    answers = batch['labels'].ne(-100)
    assert answers.sum(dim=1).tolist() == [6 + 12 + (name == 'paligemma'), 6 + 4 + (name == 'paligemma')]
    with torch.no_grad():
        clean = vlm.hidden(vlm.prepare(batch))
        for which in (0, 3, 6, -1):  # The first, one between, the first of the second turn and the last.
            columns = torch.stack([row.nonzero()[which] for row in answers])
            others = batch['input_ids'].scatter_add(1, columns, torch.ones_like(columns))  # Another byte.
            moved = (vlm.hidden(vlm.prepare({**batch, 'input_ids': others})) - clean).abs().amax(dim=-1)
            earlier = torch.arange(moved.size(1)) < columns
            assert moved[earlier & batch['attention_mask'].bool()].max() < 1e-5
            assert moved.gather(1, columns).min() > 1e-3


@pytest.mark.parametrize('name', FAMILIES)
def test_an_answer_sees_the_image_and_the_prompt(name):
    vlm, batch = build(name).eval(), two_turns(name, 'right')
    images, _ = vlm.canvases(batch)
    with torch.no_grad():
        clean = vlm.hidden(vlm.prepare(batch))
        others = vlm.with_canvases(batch, [-image for image in images])
        moved = (vlm.hidden(vlm.prepare(others)) - clean).abs().amax(dim=-1)
    answers = batch['labels'].ne(-100)
    assert moved[0, answers[0]].min() > 1e-3
    assert moved[1].max() < 1e-5
