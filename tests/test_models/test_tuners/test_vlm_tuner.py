"""VLMTuner on tiny models: what it learns from, and what it leaves alone."""

import copy

import pytest
import tiny_vlms
import torch
from mmengine.registry import MODELS
from mmpretrain.structures import DataSample

from mergemix_mm.families import find_family
from mergemix_mm.functional import answer_logps, simpo_loss
from mergemix_mm.models.batch_augments import Mixer, MixResult
from mergemix_mm.models.heads import AnswerHead, AnswerScores
from mergemix_mm.models.tuners.base_tuner import ForwardPass
from mergemix_mm.models.vision_encoders import build_vision_encoder, score_patches
from mergemix_mm.models.vlms.hf.vision_merge import VisionMerge

SIMPO = dict(type='SimPOHead', beta=2.0)
VIT = dict(
    type='mmpretrain.VisionTransformer',
    arch=dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32),
    img_size=28,
    patch_size=7,
)
MIXERS = {
    'MergeMix': dict(type='MergeMix'),
    'topk': dict(type='MergeMix', mask='topk'),
    'random': dict(type='MergeMix', mask='random'),
    'inverse': dict(type='MergeMix', mask='inverse'),
    'area': dict(type='MergeMix', ratio='area'),
    'encoder': dict(type='MergeMix', encoder=VIT),
    'SalientBlur': dict(type='SalientBlur'),
    'SwapImages': dict(type='SwapImages'),
    'Mixup': dict(type='Mixup', alpha=1.0),
    'CutMix': dict(type='CutMix', alpha=1.0),
    'ResizeMix': dict(type='ResizeMix', alpha=1.0),
}


def build(family='llava', head=None, mixer=None, **vlm):
    torch.manual_seed(0)
    vlm = dict(type='HFVisionLanguageModel', config=tiny_vlms.tiny_config(family), **vlm)
    return MODELS.build(dict(type='VLMTuner', vlm=vlm, head=head or dict(type='SFTHead'), mixer=mixer))


def images(*seeds, size=(28, 28)):
    return [tiny_vlms.random_image(*size, seed) for seed in seeds]


def samples(num=3):
    answers = ['yes.', 'a red ball', 'no']
    return [(images(i), f'what is it, {i}?', answers[i % 3]) for i in range(num)]


def loss_of(model, batch, seed=0):
    torch.manual_seed(seed)
    return model.loss(batch)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def full_logps(model, batch):
    """Mean log-probability per answer token, from plain logits."""
    batch = model.vlm.prepare(batch)
    logits = model.vlm.head(model.vlm.hidden(batch)).float()[:, :-1].log_softmax(-1)
    labels = batch['labels'][:, 1:]
    picked = logits.gather(2, labels.clamp(min=0)[..., None])[..., 0] * (labels != -100)
    return picked.sum(1), (labels != -100).sum(1)


@pytest.mark.parametrize('mixer', MIXERS)
def test_simpo_is_that_of_plain_logits_for_every_mixer(mixer):
    model = build(head=SIMPO, mixer=MIXERS[mixer])
    batch = tiny_vlms.tiny_batch('llava', samples(4))
    losses = loss_of(model, batch, seed=1)
    result = model.mix_result
    pairs = result.mixed  # Augments of MMPretrain may draw an image as its own partner.
    assert pairs.sum() >= 2
    won, length = full_logps(model, batch)
    lost, _ = full_logps(model, {**batch, 'pixel_values': torch.stack(result.images)})
    expected = simpo_loss(won / length, lost / length, 2.0, 1 - result.ratio)[pairs].mean()
    assert losses['loss_simpo'].item() == pytest.approx(expected.item(), rel=1e-5)
    assert losses['reward_margin'].item() == pytest.approx(float(2 * ((won - lost) / length)[pairs].mean()), abs=1e-5)
    assert losses['ratio_mean'].item() == pytest.approx(result.ratio[pairs].mean().item())


@pytest.mark.parametrize('family', tiny_vlms.SCORED)
def test_mergemix_scores_with_the_vision_tower_of_every_family(family):
    model = build(family, head=SIMPO, mixer=dict(type='MergeMix'))
    sizes = [(28, 28), (28, 56), (56, 28)]
    batch = tiny_vlms.tiny_batch(family, [([tiny_vlms.random_image(*size, 0)], 'what?', 'it') for size in sizes])
    losses = loss_of(model, batch)
    assert losses['loss_simpo'].isfinite() and losses['reward_margin'] != 0
    result = model.mix_result
    if tiny_vlms.SCORED_SIZE[family] is None:
        size = model.vlm.vision_encoder.config.patch_size
        assert result.grid == [(image.size(1) // size, image.size(2) // size) for image in result.images]
        assert [len(saliency) for saliency in result.saliency] == [rows * columns for rows, columns in result.grid]
    else:
        patches = build_vision_encoder(model.vlm.vision_encoder).patch_size
        assert result.saliency.shape[1] == (28 // patches[0]) * (28 // patches[1])
    gradients(model, sum(value for name, value in losses.items() if 'loss' in name))


def test_a_tower_that_cannot_score_needs_an_encoder(monkeypatch):
    monkeypatch.setattr(find_family('llava'), 'vision_encoder', None)
    with pytest.raises(ValueError, match=r'MergeMix cannot score.*mixer=dict\(type="MergeMix", encoder'):
        build(head=SIMPO, mixer=dict(type='MergeMix'))
    assert build(head=SIMPO, mixer=dict(type='MergeMix', encoder=VIT)).mixer.encoder is not None


def test_images_of_any_size_are_scored_by_another_encoder_at_its_size():
    model = build('qwen2_5_vl', head=SIMPO, mixer=dict(type='MergeMix', encoder=VIT))
    groups = [(images(0, size=(60, 90)), 'what?', 'a'), (images(1, size=(90, 60)), 'and?', 'bb')]
    losses = loss_of(model, tiny_vlms.tiny_batch('qwen2_5_vl', groups))
    assert losses['reward_margin'] != 0
    assert model.mix_result.images[0].shape != model.mix_result.images[1].shape
    assert model.mix_result.saliency.shape == (2, 16)


def test_the_scoring_tower_is_the_models_own():
    model = build(head=SIMPO, mixer=dict(type='MergeMix', num_merge=4, layer=2))
    batch = tiny_vlms.tiny_batch('llava', samples())
    loss_of(model, batch)
    with torch.no_grad():
        expected = score_patches(build_vision_encoder(model.vlm.vision_encoder), batch['pixel_values'], 4, 2)
    assert torch.allclose(model.mix_result.saliency, expected.saliency)


def test_the_clean_batch_is_not_modified():
    model = build(head=SIMPO, mixer=MIXERS['CutMix'])
    batch = tiny_vlms.tiny_batch('llava', samples())
    before = copy.deepcopy(batch)
    loss_of(model, batch)
    assert batch.keys() == before.keys()
    assert all(torch.equal(batch[key], before[key]) for key in batch)


def test_tower_runs_twice_and_once_up_to_the_scored_layer(monkeypatch):
    model = build(head=SIMPO, mixer=dict(type='MergeMix'))
    calls = []
    tower = model.vlm.vision_encoder
    hooks = [
        layer.register_forward_hook(lambda *_: calls.append('layer'))
        for layer in getattr(tower, 'vision_model', tower).encoder.layers
    ]
    hooks.append(model.vlm.family.base.language_model.register_forward_hook(lambda *_: calls.append('text')))
    loss_of(model, tiny_vlms.tiny_batch('llava', samples()))
    assert calls.count('text') == 2
    assert calls.count('layer') == 4  # The scoring pass calls the parts of the layers, not the layers.
    for hook in hooks:
        hook.remove()


def test_a_mixed_step_shrinks_its_batch_once_and_losers_share_it(monkeypatch):
    model = build(head=SIMPO, mixer=MIXERS['MergeMix'], vision_merge=dict(num_merge=5))
    shrunk, shrink = [], VisionMerge._shrink
    monkeypatch.setattr(VisionMerge, '_shrink', lambda self, *args: shrunk.append(shrink(self, *args)) or shrunk[-1])
    batch = tiny_vlms.tiny_batch('llava', samples(4))
    losses = loss_of(model, batch)
    assert len(shrunk) == 1
    result = model.mix_result
    won, length = full_logps(model, batch)
    lost, _ = full_logps(model, {**batch, 'pixel_values': torch.stack(result.images)})
    expected = simpo_loss(won / length, lost / length, 2.0, 1 - result.ratio).mean()
    assert losses['loss_simpo'].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_loser_gets_gradients_unless_detached():
    batch = tiny_vlms.tiny_batch('llava', samples())
    found = {}
    for detach in (False, True):
        model = build(head=dict(SIMPO, detach_loser=detach), mixer=MIXERS['SwapImages'])
        losses = loss_of(model, batch)
        found[detach] = gradients(model, losses['loss_simpo'])
        result = model.mix_result
    # Detached: the gradient is that of beta * sigmoid(-z) * chosen alone.
    won, length = full_logps(model, batch)
    lost, _ = full_logps(model, {**batch, 'pixel_values': torch.stack(result.images)})
    z = 2 * (won / length - lost / length) - (1 - result.ratio)
    alone = gradients(model, (-2 * torch.sigmoid(-z).detach() * won / length).mean())
    assert found[True].keys() == alone.keys()
    for name, grad in alone.items():
        assert torch.allclose(found[True][name], grad, atol=1e-6), name
    assert any(not torch.allclose(found[False][name], found[True][name], atol=1e-6) for name in alone)


def test_an_unchanged_loser_gives_no_gradient():
    """The arm 'none' of the paper: winner and loser see the same image, and this is SFT alone."""
    model = build(head=SIMPO, mixer=MIXERS['MergeMix'])
    batch = tiny_vlms.tiny_batch('llava', samples())
    model._mixed = lambda inputs: type(
        'Same', (), dict(batch=inputs, ratio=torch.ones(3), valid=torch.ones(3, dtype=torch.bool))
    )
    grads = gradients(model, loss_of(model, batch)['loss_simpo'])
    assert max(grad.abs().max() for grad in grads.values()) < 1e-7


@pytest.mark.parametrize('side', ['left', 'right'])
def test_text_only_rows_do_not_enter_the_preference_term(side):
    model = build(head=SIMPO, mixer=MIXERS['MergeMix'])
    text = [([], 'what is the capital of France? tell me', 'Paris')]
    with_text = loss_of(model, tiny_vlms.tiny_batch('llava', samples() + text, side), seed=3)
    without = loss_of(model, tiny_vlms.tiny_batch('llava', samples(), side), seed=3)
    for name in ('loss_simpo', 'reward_margin', 'ratio_mean', 'reward_accuracy'):
        assert with_text[name].item() == pytest.approx(without[name].item(), abs=1e-5), name
    assert with_text['loss_sft'].item() != pytest.approx(without['loss_sft'].item(), abs=1e-4)


@pytest.mark.parametrize('shown', [[], images(0, 1)], ids=['only text', 'images of one sample'])
def test_a_batch_without_a_possible_partner_is_sft(shown):
    model = build(head=SIMPO, mixer=MIXERS['MergeMix'])
    losses = loss_of(model, tiny_vlms.tiny_batch('llava', [(shown, 'a?', 'b'), ([], 'c?', 'd')]))
    assert 'loss_simpo' not in losses and losses['loss_sft'].isfinite()
    assert model.mix_result is None


def test_margin_of_several_images_is_one_minus_their_mean_ratio():
    model = build(head=SIMPO, mixer=dict(type='MergeMix', per_image=True, ratio='area'))
    batch = tiny_vlms.tiny_batch('llava', [(images(0, 1, 2), 'which?', 'b'), (images(3), 'c?', 'dd')])
    losses = loss_of(model, batch, seed=2)
    ratio = model.mix_result.ratio
    assert len(ratio.unique()) > 2
    expected = torch.stack([ratio[:3].mean(), ratio[3]])
    won, length = full_logps(model, batch)
    lost, _ = full_logps(model, {**batch, 'pixel_values': torch.stack(model.mix_result.images)})
    loss = simpo_loss(won / length, lost / length, 2.0, 1 - expected).mean()
    assert losses['loss_simpo'].item() == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize('family', tiny_vlms.FAMILIES)
def test_left_and_right_padding_give_equal_losses(family):
    mixer = dict(type='MergeMix') if family in tiny_vlms.SCORED else dict(type='MergeMix', encoder=VIT)
    model = build(family, head=SIMPO, mixer=mixer)
    left, right = (loss_of(model, tiny_vlms.tiny_batch(family, samples(), side)) for side in ('left', 'right'))
    for name in ('loss_sft', 'loss_simpo'):
        assert left[name].item() == pytest.approx(right[name].item(), rel=1e-4), name


TOKENS = ('input_ids', 'attention_mask', 'labels')


def check_pairs(model, batch, other, rejected):
    """The preference of `batch` over `rejected`, a part of `other`, is that of plain logits."""
    losses = loss_of(model, {**batch, 'rejected': rejected})
    (won, length), (lost, lost_length) = full_logps(model, batch), full_logps(model, other)
    expected = simpo_loss(won / length, lost / lost_length, 2.0, 0.5).mean()
    assert losses['loss_simpo'].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize('family', tiny_vlms.FAMILIES)
def test_losers_may_have_images_of_their_own(family):
    model = build(family, head=dict(type='SimPOHead', beta=2.0, margin=0.5))
    # Other images, two of them, and none.
    shown = [images(7), images(8, 9), []]
    other = tiny_vlms.tiny_batch(family, [(own, 'what is it?', 'something longer') for own in shown])
    check_pairs(model, tiny_vlms.tiny_batch(family, samples()), other, other)
    assert 'pixel_values' in other and set(other) > set(TOKENS)


@pytest.mark.parametrize('own_images', [False, True])
def test_losers_see_the_images_of_the_winners_unless_they_say_that_they_have_none(own_images):
    model, batch = build(head=dict(type='SimPOHead', beta=2.0, margin=0.5)), tiny_vlms.tiny_batch('llava', samples())
    answers = [([] if own_images else shown, question, 'something longer') for shown, question, _ in samples()]
    other = tiny_vlms.tiny_batch('llava', answers)
    sizes = dict(original_sizes=torch.empty(0, 2, dtype=torch.long)) if own_images else {}
    check_pairs(model, batch, other, {**{key: other[key] for key in TOKENS}, **sizes})


def test_head_of_bias_or_hooks_is_called():
    model = build()
    batch = tiny_vlms.tiny_batch('llava', samples())
    assert model._output() is model.vlm.head.weight
    plain = loss_of(model, batch)['loss_sft']
    calls = []
    model.vlm.head.register_forward_hook(lambda *_: calls.append(1))
    assert loss_of(model, batch)['loss_sft'].item() == pytest.approx(plain.item(), rel=1e-6)
    assert calls


def test_vision_merge_shortens_what_the_language_model_reads():
    model = build(head=SIMPO, mixer=MIXERS['MergeMix'], vision_merge=dict(num_merge=8))
    lengths = []
    model.vlm.family.base.language_model.register_forward_hook(lambda _, __, out: lengths.append(out[0].size(1)))
    batch = tiny_vlms.tiny_batch('llava', samples())
    losses = loss_of(model, batch)
    assert lengths == [batch['input_ids'].size(1) - 8] * 2
    assert losses['loss_simpo'].isfinite() and losses['answer_length'].item() == pytest.approx((4 + 10 + 2) / 3)


def test_micro_batches_of_equal_answer_lengths_accumulate_to_one_batch():
    model = build()
    groups = [(images(i), f'what is it, {i}?', 'abc') for i in range(4)]
    whole = gradients(model, model.loss(tiny_vlms.tiny_batch('llava', groups))['loss_sft'])
    parts = [model.loss(tiny_vlms.tiny_batch('llava', part))['loss_sft'] / 2 for part in (groups[:2], groups[2:])]
    accumulated = gradients(model, sum(parts))
    for name, grad in whole.items():
        assert torch.allclose(accumulated[name], grad, atol=1e-6), name


def test_predicts_answers_with_their_confidence():
    model = build()
    model.processor = tiny_vlms.tiny_processor('llava')
    model.generation = dict(max_new_tokens=3)
    batch = tiny_vlms.tiny_batch('llava', samples())
    del batch['labels']
    found = model.eval().predict(batch, [DataSample(gt_answer=str(i)) for i in range(3)])
    assert [sample.gt_answer for sample in found] == ['0', '1', '2']
    assert all(isinstance(sample.pred_answer, str) and 0 < sample.pred_confidence <= 1 for sample in found)
    model.processor = None
    with pytest.raises(ValueError, match='set model.processor'):
        model.predict(batch, [DataSample()] * 3)


@pytest.mark.parametrize(
    ('head', 'mixer', 'message'),
    [
        (dict(type='SFTHead'), dict(type='MergeMix'), 'mixer=MergeMix would never be used with head=SFTHead'),
        (SIMPO, None, "head.margin='mixing' needs a mixer"),
        (SIMPO, dict(type='MergeMix', ratio='gaussian'), "mixer.ratio='gaussian' does not look at the mask"),
    ],
)
def test_head_and_mixer_that_do_not_fit_are_refused(head, mixer, message):
    with pytest.raises(ValueError, match=message):
        build(head=head, mixer=mixer)


class DPOHead(AnswerHead):
    """DPO (https://arxiv.org/abs/2305.18290) against a frozen copy of the model, as another project would write it."""

    needs_loser = True
    beta = 0.1

    def __init__(self, reference):
        super().__init__()
        self.reference = [reference.requires_grad_(False)]  # In a list, so that it is no part of the model.

    def loss(self, chosen, rejected=None, ratio=None, valid=None):
        won, lost = (self.log_ratio(scores) for scores in (chosen, rejected))
        losses = -torch.nn.functional.logsigmoid(self.beta * (won - lost))
        return dict(loss_dpo=losses[valid].mean(), margin_dpo=(won - lost).detach().mean())

    @torch.no_grad()
    def log_ratio(self, scores: AnswerScores):
        vlm, batch = self.reference[0], scores.batch
        sums, _ = answer_logps(vlm.hidden(batch), vlm.head.weight, batch['labels'])
        with torch.enable_grad():
            return scores.sums - sums


class HalfMixer(Mixer):
    """Takes the lower half of each image from its partner."""

    def mix(self, images, encoder=None, generator=None, partner=None):
        partner = torch.arange(len(images)).roll(1) if partner is None else partner
        mixed, middle = images.clone(), images.size(2) // 2
        mixed[:, :, middle:] = images[partner][:, :, middle:]
        return MixResult(mixed, partner, torch.full((len(images),), 0.5), clean=images)


def test_a_head_and_a_mixer_that_the_tuner_does_not_know_train():
    head = DPOHead(build().vlm)
    model = build(head=head, mixer=HalfMixer())
    batch = tiny_vlms.tiny_batch('llava', samples())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    before = loss_of(model, batch)
    # Model and reference are equal at first.
    assert before['loss_dpo'].item() == pytest.approx(torch.log(torch.tensor(2.0)).item(), abs=1e-6)
    assert torch.equal(model.mix_result.images[0][:, :14], batch['pixel_values'][0][:, :14])
    other = batch['pixel_values'][int(model.mix_result.partner[0])]
    assert torch.equal(model.mix_result.images[0][:, 14:], other[:, 14:])
    before['loss_dpo'].backward()
    optimizer.step()
    after = loss_of(model, batch)
    assert after['loss_dpo'] < before['loss_dpo'] and after['margin_dpo'] > 0


def test_a_mixer_of_others_mixes_images_of_different_sizes_with_partners_of_other_samples():
    model = build('qwen2_5_vl', head=SIMPO, mixer=HalfMixer())
    sizes = [(60, 90), (90, 60), (60, 90)]
    groups = [([tiny_vlms.random_image(*size, i)], 'what?', 'ab') for i, size in enumerate(sizes)]
    losses = loss_of(model, tiny_vlms.tiny_batch('qwen2_5_vl', groups))
    assert losses['ratio_mean'] == 0.5 and losses['loss_simpo'].isfinite()
    result = model.mix_result
    for image, clean in zip(result.images, result.clean, strict=True):
        middle = clean.size(1) // 2
        assert torch.equal(image[:, :middle], clean[:, :middle]) and not torch.equal(image, clean)


def test_a_number_as_margin_without_losers_is_an_error():
    model = build(head=dict(type='SimPOHead', margin=0.5))
    with pytest.raises(ValueError, match='nothing to lose against'):
        model.loss(tiny_vlms.tiny_batch('llava', samples()))


def test_unknown_mode_is_an_error():
    with pytest.raises(ValueError, match="mode='train' must be"):
        build()(tiny_vlms.tiny_batch('llava', samples()), mode='train')


def test_images_without_a_partner_are_warned_of():
    model = build(head=SIMPO, mixer=MIXERS['MergeMix'])
    with pytest.warns(UserWarning, match='batch_size >= 2'):
        model.loss(tiny_vlms.tiny_batch('llava', samples(1)))


def test_rejected_answers_beside_a_mixer_are_refused():
    model = build(head=SIMPO, mixer=MIXERS['MergeMix'])
    batch = tiny_vlms.tiny_batch('llava', samples())
    rejected = {key: batch[key] for key in TOKENS}
    with pytest.raises(ValueError, match='remove the mixer'):
        model.loss({**batch, 'rejected': rejected})


def test_scores_do_not_change_where_prompts_are_left_out():
    model = build()
    copied = []
    model._output = lambda head=None: lambda states: copied.append(len(states)) or model.vlm.head(states)
    batch = tiny_vlms.tiny_batch('llava', samples())
    hidden = torch.randn(3, batch['labels'].size(1), 16)
    (scores,) = model._score(ForwardPass(hidden, batch['labels']))
    logits = model.vlm.head(hidden)[:, :-1].log_softmax(-1)
    labels = batch['labels'][:, 1:]
    expected = (logits.gather(2, labels.clamp(min=0)[..., None])[..., 0] * (labels != -100)).sum(1)
    assert torch.allclose(scores.sums, expected, atol=1e-5)
    assert sum(copied) == int((labels != -100).sum())
