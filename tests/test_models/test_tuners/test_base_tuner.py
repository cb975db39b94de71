"""What the tuners share: the alignment, of the clean pass alone, and scoring given answers."""

import pytest
import tiny_vlms
import torch
from mmengine.registry import MODELS
from mmpretrain.structures import DataSample

from mergemix_mm.models.attention import InteractionAlignment
from mergemix_mm.models.losses import AIALoss

SIMPO = dict(head=dict(type='SimPOHead', beta=2.0), mixer=dict(type='MergeMix'))


def build(family='llava', **kwargs):
    torch.manual_seed(0)
    vlm = dict(type='HFVisionLanguageModel', config=tiny_vlms.tiny_config(family))
    return MODELS.build(dict(type='VLMTuner', vlm=vlm, **kwargs))


def align(model, **kwargs):
    model.alignment = InteractionAlignment(model.vlm, AIALoss(**kwargs), tasks=('und',))
    model.alignment.recorder.start()
    return model


def batch(family='llava', images=True):
    samples = [([tiny_vlms.random_image(28, 28, i)] * images, f'is it {i}?', 'yes' * (i + 1)) for i in range(3)]
    return tiny_vlms.tiny_batch(family, samples)


def loss_of(model, inputs):
    torch.manual_seed(1)
    return model.loss(inputs)


@pytest.mark.parametrize('family', tiny_vlms.FAMILIES)
def test_every_family_can_be_aligned(family):
    model = build(family)
    plain = loss_of(model, batch(family))
    losses = loss_of(align(model), batch(family))
    assert losses.keys() - plain.keys() == {'loss_aia_und', 'interaction_und'}
    assert losses['loss_sft'].item() == pytest.approx(plain['loss_sft'].item(), rel=1e-5)
    assert 0.02 < losses['interaction_und'] < 1 and losses['loss_aia_und'] > 0
    losses['loss_aia_und'].backward()
    touched = [p.grad.abs().max() for p in model.vlm.family.language_model.parameters() if p.grad is not None]
    assert max(touched) > 1e-6


def test_only_the_clean_pass_is_aligned():
    plain, mixed = (loss_of(align(build(**kwargs)), batch()) for kwargs in ({}, SIMPO))
    assert 'loss_simpo' in mixed
    assert mixed['loss_aia_und'].item() == pytest.approx(plain['loss_aia_und'].item(), rel=1e-6)
    assert mixed['interaction_und'].item() == pytest.approx(plain['interaction_und'].item(), rel=1e-6)


def test_a_ratio_is_taken_of_the_supervised_loss():
    losses = loss_of(align(build(), weight=dict(type='ratio', ntp_over_aia=1000)), batch())
    assert losses['loss_aia_und'].item() == pytest.approx(losses['loss_sft'].item() / 1000, rel=1e-5)


def test_text_alone_has_nothing_to_align():
    losses = loss_of(align(build()), batch(images=False))
    assert losses['loss_aia_und'] == 0 and 'interaction_und' not in losses and losses['loss_sft'] > 0


def test_an_alignment_leaves_nothing_in_the_checkpoint():
    model = build()
    before = model.state_dict().keys()
    assert align(model).state_dict().keys() == before


def sampled(count):
    return [DataSample(gt_answer=str(i)) for i in range(count)]


@pytest.mark.parametrize('padding_side', ['right', 'left'])
def test_a_batch_with_labels_is_scored_sample_by_sample_whatever_its_padding(padding_side):
    model = build().eval()
    groups = [([tiny_vlms.random_image(28, 28, i)], f'is it {i}?', 'yes' * (i + 1)) for i in range(3)]
    found = model(tiny_vlms.tiny_batch('llava', groups, padding_side), sampled(3), mode='predict')
    assert [sample.gt_answer for sample in found] == ['0', '1', '2'] and 'pred_answer' not in found[0]
    for sample, group, length in zip(found, groups, (3, 6, 9)):
        alone = tiny_vlms.tiny_batch('llava', [group])
        prepared = model.vlm.prepare(alone)
        logps = model.vlm.head(model.vlm.hidden(prepared)).log_softmax(-1)[0, :-1]
        labels = prepared['labels'][0, 1:]
        expected = logps[labels != -100].gather(1, labels[labels != -100, None]).sum()
        assert isinstance(sample.answer_logp, float) and sample.answer_length == length
        assert sample.answer_logp == pytest.approx(expected.item(), rel=1e-4)


def test_scoring_needs_no_processor_and_keeps_no_graph():
    model = build()
    (sample,) = model.eval().predict(tiny_vlms.tiny_batch('llava', [([], 'what?', 'this')]), sampled(1))
    assert model.processor is None and sample.answer_logp < 0 and sample.answer_length == 4
