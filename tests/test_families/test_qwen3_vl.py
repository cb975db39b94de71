"""Qwen3-VL: what it adds to Qwen2.5-VL. tests/tiny_vlms/qwen3_vl.py brings the tests of all families."""

import pytest
import tiny_vlms
import torch

from mergemix_mm.models import HFVisionLanguageModel


@pytest.fixture
def vlm():
    torch.manual_seed(0)
    return HFVisionLanguageModel(config=tiny_vlms.tiny_config('qwen3_vl'), trainable=['projector']).eval()


@pytest.fixture
def batch():
    shown = [tiny_vlms.random_image(*size, seed) for seed, size in enumerate([(64, 96), (32, 64)])]
    return tiny_vlms.tiny_batch('qwen3_vl', [([shown[0]], 'what is it?', ' a dog'), ([shown[1]], 'and?', ' a')])


@pytest.mark.parametrize('side', ['left', 'right'])
def test_hidden_states_and_logits_are_the_librarys(vlm, side):
    shown = [tiny_vlms.random_image(*size, seed) for seed, size in enumerate([(64, 96), (32, 64), (96, 32)])]
    samples = [(shown[:2], 'which?', ' both'), ([], 'hello', ' you'), (shown[2:], 'and this one?', ' no')]
    batch = tiny_vlms.tiny_batch('qwen3_vl', samples, side)
    given = {key: value for key, value in batch.items() if key not in ('labels', 'original_sizes')}
    with torch.no_grad():
        # Not the last of `hidden_states`: under transformers 4 that is the one before the final norm.
        states, logits = vlm.model.model(**given).last_hidden_state, vlm.model(**given).logits
        hidden = vlm.hidden(batch)
    assert logits.std() > 0.1
    torch.testing.assert_close(hidden, states, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(vlm.head(hidden), logits, atol=1e-5, rtol=1e-5)


def test_every_projector_of_the_tower_trains(vlm, batch):
    """The merger, and the two of DeepStack, whose features reach the text after its embeddings."""
    vlm.head(vlm.hidden(batch))[batch['labels'] != -100].square().mean().backward()
    trained = {name for name, value in vlm.model.named_parameters() if value.grad is not None}
    visual = 'model.visual'
    places = (f'{visual}.merger.', f'{visual}.deepstack_merger_list.0.', f'{visual}.deepstack_merger_list.1.')
    assert {next(place for place in places if name.startswith(place)) for name in trained} == set(places)
    assert all(value.grad.abs().max() > 0 for value in vlm.model.parameters() if value.grad is not None)


def test_deepstack_features_follow_the_canvases(vlm, batch):
    """Without the merger, only DeepStack tells two images apart."""
    canvases, owners = vlm.canvases(batch)
    assert owners.tolist() == [0, 1] and [tuple(one.shape) for one in canvases] == [(3, 64, 96), (3, 32, 64)]
    other = vlm.with_canvases(batch, [canvases[0], -canvases[1]])
    vlm.model.model.visual.merger.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
    with torch.no_grad():
        moved = (vlm.hidden(batch) - vlm.hidden(other)).abs().amax(dim=(1, 2))
    assert moved[0] == 0 and moved[1] > 1e-2


def test_positions_of_an_image_are_those_of_its_grid(vlm, batch):
    """Transposing the grid keeps all tokens and patches, and moves the hidden states through the positions."""
    turned = dict(batch, image_grid_thw=batch['image_grid_thw'][:, [0, 2, 1]])
    kinds = vlm.family.forward_kwargs(batch).get('mm_token_type_ids')
    assert kinds is None or torch.equal(kinds.bool(), batch['input_ids'] == vlm.family.image_token_id)
    with torch.no_grad():
        assert (vlm.hidden(batch) - vlm.hidden(turned)).abs().amax(dim=(1, 2)).min() > 1e-2


def test_a_loss_that_balances_experts_is_said_not_to_be_computed():
    family = tiny_vlms.model_of_type('qwen3_vl', 'qwen3_vl_moe')
    family.model.config.text_config.output_router_logits = True
    with pytest.warns(UserWarning, match='output_router_logits=True asks for the loss that balances experts'):
        type(family)(family.model)


def test_adapters_reach_routed_experts_that_are_named():
    names = ('gate_up_proj', 'down_proj')
    lora = dict(r=2, target_parameters=[f'mlp.experts.{name}' for name in names])
    config = tiny_vlms.config_of_type('qwen3_vl', 'qwen3_vl_moe')
    torch.manual_seed(0)
    vlm = HFVisionLanguageModel(config=config, trainable=['language_model'], lora=lora)
    vlm.hidden(tiny_vlms.mixed_batch('qwen3_vl')).square().mean().backward()
    trained = [name for name, value in vlm.named_parameters() if value.grad is not None]
    assert sum('experts' in name and 'lora_B' in name for name in trained) == 3 * len(names)  # Of three layers.
    assert all('lora_' in name for name in trained)
