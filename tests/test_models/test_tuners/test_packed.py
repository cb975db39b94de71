"""Packed rows: the losses, gradients and scores of padded batches, and no look at the tokens of another sample."""

import pytest
import tiny_sphinx
import tiny_vlms
import torch
from largest_tensor import LargestTensor
from test_models.test_tuners import test_every_family, test_sphinx_tuning, test_unified_tuner
from test_models.test_tuners.test_vlm_tuner import MIXERS, TOKENS, images

from mergemix_mm.models import SimPOHead
from mergemix_mm.models.attention import InteractionAlignment
from mergemix_mm.models.losses import AIALoss

REFUSED = ('paligemma', 'gemma3', 'qwen3_5')
TYPES = [(family, model_type) for family, model_type in test_every_family.TYPES if family not in REFUSED]
TARGETS = dict(und=[dict(depth=(0.0, 1.0), target=0.5, delta=0.1)])


def build(family, **kwargs):
    return test_every_family.build(family, packed=True, **kwargs)


def step(model, batch, packed):
    """Losses and gradients; seeded, so that mixers draw the same."""
    model.vlm.packed = packed
    model.zero_grad()
    torch.manual_seed(0)
    losses = model.loss(batch)
    sum(value for name, value in losses.items() if 'loss' in name).backward()
    gradients = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    return {name: value.item() for name, value in losses.items()}, gradients


def check(model, batch):
    """Packing changes no loss, no logged value and no gradient; hands back the losses."""
    (plain, wanted), (losses, gradients) = (step(model, batch, packed) for packed in (False, True))
    assert losses.pop('padding_share') == 0 < plain.pop('padding_share') < 1
    assert losses == pytest.approx(plain, rel=1e-5, abs=1e-6)
    assert gradients.keys() == wanted.keys() and max(one.abs().max() for one in wanted.values()) > 1e-2
    for name, value in wanted.items():
        torch.testing.assert_close(gradients[name], value, atol=1e-5, rtol=1e-4, msg=name)
    return losses


def align(model):
    model.alignment = InteractionAlignment(model.vlm, AIALoss(TARGETS), tasks=('und',))
    model.alignment.recorder.start()
    return model


def two(family, size=(28, 28)):
    """Two samples of one image each, with prompts and answers of other lengths."""
    first, second = images(1, 2, size=size)
    return tiny_vlms.tiny_batch(family, [([first], 'what?', ' a dog'), ([second], 'and what is this?', ' no')])


@pytest.mark.parametrize(('family', 'model_type'), TYPES, ids=[model_type or family for family, model_type in TYPES])
def test_sft_of_every_family_is_that_of_the_padded_batch(family, model_type):
    # Two images, none, one, none.
    check(build(family, model_type=model_type), tiny_vlms.mixed_batch(family))


@pytest.mark.parametrize('family', ['llava', 'qwen2_5_vl'])
def test_padding_on_the_left_is_left_out_as_well(family):
    check(build(family), tiny_vlms.mixed_batch(family, 'left'))


@pytest.mark.parametrize('family', ['llava', 'qwen2_5_vl', 'smolvlm'])
def test_mixed_simpo_is_that_of_the_padded_batch(family):
    losses = check(build(family, head='SimPOHead', mixer=MIXERS['MergeMix']), two(family, (56, 28)))
    assert losses['reward_margin'] != 0


def test_simpo_of_given_pairs_is_that_of_the_padded_batch():
    model = build('llava')
    model.head = SimPOHead(margin=0.5)
    other = tiny_vlms.tiny_batch('llava', [([], 'what is it?', ' something longer'), (images(7), 'and?', ' b')])
    assert check(model, {**two('llava'), 'rejected': other})['reward_margin'] != 0
    answers = tiny_vlms.tiny_batch('llava', [(images(1), 'what?', ' cat, cat'), (images(2), 'and what?', ' ye')])
    assert check(model, {**two('llava'), 'rejected': {key: answers[key] for key in TOKENS}})['reward_margin'] != 0


@pytest.mark.parametrize('family', ['llava', 'qwen2_5_vl', 'aya_vision', 'emu3'])
def test_aia_is_that_of_the_padded_batch(family):
    losses = check(align(build(family)), tiny_vlms.mixed_batch(family))
    assert losses['loss_aia_und'] > 0 and 0.02 < losses['interaction_und'] < 1


@pytest.mark.parametrize('task', test_unified_tuner.TASKS)
@pytest.mark.parametrize('family', test_unified_tuner.CLASSES)
def test_both_tasks_of_unified_models_are_those_of_the_padded_batch(family, task):
    model = test_unified_tuner.align(test_unified_tuner.build(family, packed=True))
    losses = check(model, test_unified_tuner.batch_of(family, task))
    assert losses[f'loss_aia_{task}'] > 0


@pytest.mark.parametrize(
    'options',
    [
        dict(gradient_checkpointing=True, vision_merge=dict(num_merge=1)),
        dict(gradient_checkpointing=True, lora=dict(r=2)),
    ],
    ids=str,
)
def test_options_of_the_model_go_with_it(options):
    model = align(build('llava', **options))
    model.train()
    check(model, tiny_vlms.mixed_batch('llava'))


def test_under_autocast_to_bfloat16_it_differs_by_rounding_only():
    model, batch = build('llava'), tiny_vlms.mixed_batch('llava')
    exact, wanted = step(model, batch, packed=True)
    with torch.autocast('cpu', torch.bfloat16):
        losses, gradients = step(model, batch, packed=True)
    assert losses['loss_sft'] != exact['loss_sft'] and losses == pytest.approx(exact, rel=0.02)
    assert gradients.keys() == wanted.keys()
    found, expected = (torch.cat([one[name].flatten() for name in wanted]) for one in (gradients, wanted))
    assert torch.cosine_similarity(found, expected, dim=0) > 0.99


@pytest.mark.parametrize('family', ['llava', 'qwen2_5_vl'])
def test_answers_are_generated_and_scored_as_without(family):
    model, batch = build(family).eval(), tiny_vlms.mixed_batch(family)
    packed = model.answer_scores(batch).sums
    model.vlm.packed = False
    torch.testing.assert_close(packed, model.answer_scores(batch).sums, atol=1e-4, rtol=1e-5)
    # As built with packed=True, and without.
    plain = test_every_family.build(family).eval()
    prompts = {key: value for key, value in batch.items() if key != 'labels'}
    found, expected = (one.vlm.generate(prompts, max_new_tokens=6) for one in (model, plain))
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(found.logps, expected.logps, atol=1e-4, rtol=1e-5)


def test_unified_models_generate_the_same_images():
    batch = test_unified_tuner.batch_of('janus', 'gen', generate=True)
    images = [
        test_unified_tuner.build(packed=packed).eval().vlm.generate_image(batch, temperature=0)
        for packed in (False, True)
    ]
    assert images[0].std() > 0 and torch.equal(*images)


def test_a_sample_of_padding_only_changes_nothing():
    model, batch = align(build('llava')), two('llava')
    empty = {key: torch.cat([value, torch.zeros_like(value[:1])]) for key, value in batch.items() if key in TOKENS}
    empty['labels'][2] = -100
    expected, wanted = step(model, batch, packed=True)
    losses, gradients = step(model, {**batch, **empty}, packed=True)
    assert losses == pytest.approx(expected, rel=1e-5)
    for name, value in wanted.items():
        torch.testing.assert_close(gradients[name], value, atol=1e-5, rtol=1e-4, msg=name)


def test_sphinx_with_a_cropped_image_is_that_of_the_padded_batch():
    check(test_sphinx_tuning.build(packed=True), test_sphinx_tuning.make_batch()['inputs'])


def test_a_conversation_longer_than_the_sliding_window_sees_no_further():
    model = build('aya_vision')
    layer = model.vlm.family.language_model.layers[0].self_attn
    layer.sliding_window = model.vlm.family.language_model.config.sliding_window = 8
    assert max(two('aya_vision')['attention_mask'].sum(1)) > 16
    check(model, two('aya_vision'))


def test_no_image_or_text_of_another_sample_changes_a_score():
    model, batch = build('llava'), tiny_vlms.mixed_batch('llava')
    before = model.answer_scores(batch).sums
    changed = {key: value.clone() for key, value in batch.items()}
    changed['pixel_values'][0] = torch.randn(3, 28, 28)
    changed['input_ids'][1, -1] = 77  # Padding, which is left out.
    changed['input_ids'][2, int((batch['labels'][2] != -100).int().argmax()) - 1] = 78  # The end of its prompt.
    after = model.answer_scores(changed).sums
    assert torch.equal(before[[1, 3]], after[[1, 3]]) and (before[[0, 2]] != after[[0, 2]]).all()


def test_no_tensor_has_the_size_of_a_mask_of_the_row():
    model = build('llava')
    batch = tiny_vlms.tiny_batch('llava', [([], 'a' * (120 + row), 'b') for row in range(16)])
    tokens = int(batch['attention_mask'].sum())
    with LargestTensor() as largest:
        model.loss(batch)
    assert 16 * tokens <= largest.elements < tokens**2 / 10


def test_a_batch_without_padding_is_computed_as_before(monkeypatch):
    model = build('llava')
    batch = tiny_vlms.tiny_batch('llava', [(images(seed), 'what?', ' this') for seed in range(2)])
    monkeypatch.setattr('mergemix_mm.models.attention.packing.Packing.inputs', None)
    model.loss(batch)


@pytest.mark.parametrize('family', [family for family in REFUSED if family in tiny_vlms.ALL_FAMILIES])
def test_families_whose_tokens_see_more_than_those_before_them_are_refused(family):
    with pytest.raises(ValueError, match=r'packed=True does not serve \w+: .*(directions|state)'):
        build(family)


def test_other_attention_is_refused():
    with pytest.raises(ValueError, match="attn_implementation='eager' must be 'sdpa'"):
        build('llava', attn_implementation='eager')


def test_language_models_with_other_layers_are_refused():
    layers = dict(model_type='llama4_text', num_local_experts=2, intermediate_size_mlp=32, attention_chunk_size=64)
    config = dict(tiny_sphinx.language_config(head_dim=4), **layers)
    with pytest.raises(ValueError, match='layers of chunked_attention'):
        test_sphinx_tuning.build(packed=True, language_model=dict(config=config))


def test_a_model_whose_layers_do_not_split_the_row_is_refused(monkeypatch):
    model = build('llava')
    decoder = model.vlm.family.language_model
    forward = decoder.forward
    monkeypatch.setattr(decoder, 'forward', lambda *args, packing=None, **kwargs: forward(*args, **kwargs))
    with pytest.raises(RuntimeError, match=r'layers \[0, 1\] of 2 attended beyond their conversation'):
        model.loss(two('llava'))
