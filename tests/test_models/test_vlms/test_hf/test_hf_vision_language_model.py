import copy

import pytest
import tiny_vlms
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS

IMAGES = [tiny_vlms.random_image(40, 56, seed) for seed in range(3)]
SAMPLES = dict(
    images=[([IMAGES[0]], 'what is it?', ' that'), ([IMAGES[1]], 'a b', ' c d')],
    several=[(IMAGES[:2], 'what is it?', ' both'), ([], 'who', ' me'), ([IMAGES[2]], 'a', 'b')],
    text=[([], 'what is it?', ' that'), ([], 'a', 'b')],
)


def of_the_library(vlm, batch):
    """Last hidden states and logits as the library's own forward computes them."""
    batch = {key: value for key, value in batch.items() if key != 'original_sizes'}
    if vlm.model.config.model_type == 'emu3':  # Its model with head ignores the images.
        del batch['labels']
        hidden = vlm.model.model(**batch).last_hidden_state
        return hidden, vlm.model.lm_head(hidden)
    if vlm.model.config.model_type == 'paligemma':  # It makes its mask from token types, if there are labels.
        batch['token_type_ids'] = (batch['labels'] != -100).long().cummax(dim=1).values
    # What the head takes, since `hidden_states` may end before the final norm (Qwen3-VL under transformers 4).
    hidden = []
    with vlm.model.lm_head.register_forward_pre_hook(lambda module, inputs: hidden.append(inputs[0])):
        logits = vlm.model(**batch).logits
    return hidden[0], logits


@torch.no_grad()
@pytest.mark.parametrize('samples', SAMPLES)
@pytest.mark.parametrize('side', ['left', 'right'])
@pytest.mark.parametrize('family', tiny_vlms.ALL_FAMILIES)
def test_hidden_and_head_give_the_librarys_states_and_logits(make, family, side, samples):
    vlm = make(family).eval()
    batch = tiny_vlms.tiny_batch(family, SAMPLES[samples], side)
    hidden = vlm.hidden(vlm.prepare(batch))
    logits = vlm.head(hidden)
    expected_hidden, expected_logits = of_the_library(vlm, batch)
    real = batch['attention_mask'].bool()
    assert not real.all() and expected_logits[real].std() > 0.1
    assert torch.allclose(hidden[real], expected_hidden[real], atol=1e-6)
    assert torch.allclose(logits[real], expected_logits[real], atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize('family', tiny_vlms.ALL_FAMILIES)
def test_hidden_states_depend_neither_on_the_side_of_the_padding_nor_on_the_batch(make, family):
    vlm = make(family).eval()
    left, right = (tiny_vlms.tiny_batch(family, SAMPLES['several'], side) for side in ('left', 'right'))
    found = [vlm.hidden(batch)[batch['attention_mask'].bool()] for batch in (left, right)]
    assert torch.allclose(*found, atol=2e-5)
    alone = [vlm.hidden(tiny_vlms.tiny_batch(family, [sample]))[0] for sample in SAMPLES['several']]
    assert torch.allclose(found[0], torch.cat(alone), atol=2e-5)


@pytest.mark.parametrize('lora', [None, dict(r=2)])
def test_mmengines_initialisation_keeps_the_weights(make, lora):
    """Without care it calls the library's own, which draws new weights for adapters."""
    vlm = make(lora=lora)
    before = copy.deepcopy(vlm.state_dict())
    vlm.init_weights()
    assert all(torch.equal(value, before[name]) for name, value in vlm.state_dict().items())


def test_it_is_built_from_a_config_file_s_dict(batch_of):
    config = ConfigDict(type='HFVisionLanguageModel', config=tiny_vlms.tiny_config('llava'), dtype='bfloat16')
    vlm = MODELS.build(config)
    assert vlm.model.config.text_config.vocab_size == tiny_vlms.VOCAB_SIZE
    assert vlm.hidden(batch_of()).dtype == torch.bfloat16


def test_a_copy_does_not_share_its_weights(make):
    vlm = make()
    twin = copy.deepcopy(vlm)
    assert twin.family.model is twin.model is not vlm.model


def test_text_alone_has_no_canvas(make):
    vlm = make()
    batch = dict(input_ids=torch.randint(10, 200, (2, 5)))
    canvases, owners = vlm.canvases(batch)
    assert canvases == [] and owners.shape == (0,)
    assert vlm.with_canvases(batch, []) == batch
    assert vlm.hidden(batch).shape == (2, 5, 16)
