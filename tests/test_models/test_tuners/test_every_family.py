"""Every family: loss and gradients are those of the library, and twenty steps on one batch are learnt."""

import pytest
import tiny_vlms
import torch
from mmengine.registry import MODELS

from mergemix_mm.models.attention import InteractionAlignment
from mergemix_mm.models.losses import AIALoss

TYPES = [*((family, None) for family in tiny_vlms.ALL_FAMILIES), *tiny_vlms.SHARED]
PARTS = ['vision_tower', 'projector', 'language_model']
VIT = dict(
    type='mmpretrain.VisionTransformer',
    arch=dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32),
    img_size=28,
    patch_size=7,
)


def build(family, head='SFTHead', mixer=None, model_type=None, **options):
    """A tuner of the family's tiny model, all of whose parts train; `model_type` names another that it serves."""
    torch.manual_seed(0)
    parts = PARTS if family in tiny_vlms.FAMILIES else PARTS[2:]
    config = tiny_vlms.config_of_type(family, model_type)
    vlm = dict(type='HFVisionLanguageModel', config=config, trainable=parts, **options)
    return MODELS.build(dict(type='VLMTuner', vlm=vlm, head=dict(type=head), mixer=mixer))


def four(family):
    """Four samples of one image and another answer each."""
    images = [tiny_vlms.random_image(40, 56, seed) for seed in range(4)]
    return tiny_vlms.tiny_batch(
        family, [([one], 'what?', ' a dog cat no'[row : 4 + row]) for row, one in enumerate(images)]
    )


def learn(model, batch, steps=20):
    """The losses of each step of Adam."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    found = []
    for step in range(steps):
        torch.manual_seed(0)
        losses = model.loss(batch)
        optimizer.zero_grad()
        sum(value for name, value in losses.items() if 'loss' in name).backward()
        optimizer.step()
        found.append({name: value.item() for name, value in losses.items()})
    return found


@pytest.mark.parametrize('side', ['left', 'right'])
@pytest.mark.parametrize(('family', 'model_type'), TYPES, ids=[model_type or family for family, model_type in TYPES])
def test_loss_and_gradients_are_those_of_the_librarys_own_forward(family, model_type, side):
    model, batch = build(family, model_type=model_type), tiny_vlms.mixed_batch(family, side)
    library = model.vlm.family.model
    found = {}
    for name in ('ours', 'the library'):
        model.zero_grad()
        if name == 'ours':
            loss = model.loss(batch)['loss_sft']
        else:
            loss = library(**tiny_vlms.library_inputs(model.vlm, batch)).loss
        loss.backward()
        found[name] = loss.item(), {key: p.grad for key, p in library.named_parameters() if p.grad is not None}
    (ours, gradients), (expected, wanted) = found.values()
    assert ours == pytest.approx(expected, rel=1e-5)
    assert gradients.keys() == wanted.keys() and max(one.abs().max() for one in wanted.values()) > 1e-2
    for name, value in wanted.items():
        torch.testing.assert_close(gradients[name], value, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize('family', tiny_vlms.ALL_FAMILIES)
def test_twenty_steps_of_sft_are_learnt(family):
    losses = [step['loss_sft'] for step in learn(build(family), four(family))]
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize('family', tiny_vlms.FAMILIES)
def test_twenty_steps_of_mixed_simpo_are_learnt(family):
    mixer = dict(type='MergeMix') if family in tiny_vlms.SCORED else dict(type='MergeMix', encoder=VIT)
    steps = learn(build(family, 'SimPOHead', mixer), four(family))
    first, last = steps[0], steps[-1]
    assert last['loss_simpo'] < 0.8 * first['loss_simpo']
    assert last['reward_margin'] > first['reward_margin']


@pytest.mark.parametrize('family', tiny_vlms.ALL_FAMILIES)
def test_twenty_steps_of_aia_move_the_intensity_to_its_target(family):
    model = build(family)
    target = dict(und=[dict(depth=(0.0, 1.0), target=0.9, delta=0.5)])
    model.alignment = InteractionAlignment(model.vlm, AIALoss(target, weight=10.0), tasks=('und',))
    with model.alignment.recorder:
        steps = learn(model, four(family))
    first, last = steps[0], steps[-1]
    assert abs(last['interaction_und'] - 0.9) < abs(first['interaction_und'] - 0.9)
    assert last['loss_aia_und'] < 0.6 * first['loss_aia_und']
