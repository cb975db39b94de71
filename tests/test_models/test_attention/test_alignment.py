"""InteractionAlignment on a tiny language model: its loss, what is left out, and what it refuses."""

import pytest
import torch

from mergemix_mm.functional import aia_loss
from mergemix_mm.models.attention import InteractionAlignment
from mergemix_mm.models.losses import AIALoss

STAGES = [dict(depth=(0.0, 0.5), target=0.1, delta=0.05), dict(depth=(0.5, 1.0), target=0.7, delta=0.2)]
NTP = torch.tensor(2.0)


def align(model, **kwargs):
    options = dict(targets=dict(und=STAGES, gen=STAGES), weight=3.0)
    return InteractionAlignment(model, AIALoss(**options), **kwargs)


def reference(model, inputs, queries, keys):
    """Intensities [layers, B] from the library's own attention weights."""
    before = model.config._attn_implementation
    model.set_attn_implementation('eager')
    weights = model.model(**inputs, output_attentions=True).attentions
    model.set_attn_implementation(before)
    sums = torch.stack([(layer * keys[:, None, None]).sum(-1).mean(1) for layer in weights])
    return (sums * queries).sum(-1) / queries.sum(-1).clamp(min=1)


@pytest.mark.parametrize('layers', [None, (1, 2)])
@pytest.mark.parametrize('side', ['left', 'right'])
def test_loss_is_that_of_the_librarys_own_attention_weights(language_model, padded, side, layers):
    model, (inputs, queries, keys) = language_model(), padded(side)
    alignment = align(model, layers=layers)
    with alignment.recorder:
        model.model(**inputs, **alignment.kwargs(queries, keys))
        found = alignment.loss('und', NTP)
    rows = list(range(4)) if layers is None else list(layers)
    intensity = reference(model, inputs, queries, keys)[rows]
    target, delta = torch.tensor([0.1, 0.1, 0.7, 0.7])[rows], torch.tensor([0.05, 0.05, 0.2, 0.2])[rows]
    assert found['loss_aia_und'].item() == pytest.approx(3 * aia_loss(intensity, target, delta).item(), rel=1e-5)
    assert found['interaction_und'].item() == pytest.approx(intensity.mean().item(), rel=1e-5)
    assert not found['interaction_und'].requires_grad and found['loss_aia_und'].requires_grad
    assert alignment.last.task == 'und' and alignment.last.count == 3
    assert torch.allclose(alignment.last.sums, intensity.sum(1), rtol=1e-5)


def test_samples_without_queries_or_keys_are_left_out(language_model, padded):
    model, (inputs, queries, keys) = language_model(), padded()
    alignment = align(model)
    with alignment.recorder:
        alone = {key: value[1:2] for key, value in inputs.items()}
        model.model(**alone, **alignment.kwargs(queries[1:2], keys[1:2]))
        expected = alignment.loss('gen', NTP)
        queries[0], keys[2] = False, False
        model.model(**inputs, **alignment.kwargs(queries, keys))
        found = alignment.loss('gen', NTP)
        for name, value in expected.items():
            assert found[name].item() == pytest.approx(value.item(), rel=1e-5)
        assert alignment.last.count == 1
        queries[1] = False
        model.model(**inputs, **alignment.kwargs(queries, keys))
        found = alignment.loss('gen', NTP)
    assert found.keys() == {'loss_aia_gen'} and found['loss_aia_gen'] == 0 and alignment.last.count == 0
    found['loss_aia_gen'].backward()
    assert all(p.grad.eq(0).all() for p in model.model.layers.parameters() if p.grad is not None)


def test_gradient_descends_towards_the_targets(language_model, padded):
    model, (inputs, queries, keys) = language_model(), padded()
    alignment = align(model)
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=0.01), []
    with alignment.recorder:
        for _ in range(25):
            model.model(**inputs, **alignment.kwargs(queries, keys))
            loss = alignment.loss('und', NTP)['loss_aia_und']
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_targets_are_looked_up_at_once(language_model):
    model = language_model()
    assert align(model).curves['gen'] == ([0.1, 0.1, 0.7, 0.7], [0.05, 0.05, 0.2, 0.2])
    with pytest.raises(ValueError, match="task='gen' has no targets"):
        InteractionAlignment(model, AIALoss(dict(und=STAGES)))
    assert list(InteractionAlignment(model, AIALoss(dict(und=STAGES)), tasks=('und',)).curves) == ['und']
    with pytest.raises(ValueError, match='layer 2 of 4 belongs to 0 of the stages'):
        InteractionAlignment(model, AIALoss(dict(und=STAGES[:1])), tasks=('und',))
