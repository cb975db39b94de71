import copy

import pytest
import tiny_vlms
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS


@pytest.mark.parametrize('side', ['left', 'right'])
@pytest.mark.parametrize('family', tiny_vlms.FAMILIES)
def test_hidden_and_head_give_the_librarys_logits(make, batch_of, family, side):
    vlm = make(family).eval()
    batch = batch_of(family, padding_side=side)
    extra = {}
    if family == 'paligemma':  # It makes its mask from token types, and that only beside labels.
        extra['token_type_ids'] = (batch['labels'] != -100).long().cummax(dim=1).values
    expected = vlm.model(**batch | extra, output_hidden_states=True)
    real = batch['attention_mask'].bool()
    assert not real.all()
    hidden = vlm.hidden(batch)
    assert torch.allclose(hidden[real], expected.hidden_states[-1][real], atol=1e-6)
    assert torch.allclose(vlm.head(hidden)[real], expected.logits[real], atol=1e-6)


@pytest.mark.parametrize('family', tiny_vlms.FAMILIES)
def test_hidden_states_do_not_depend_on_the_side_of_the_padding(make, batch_of, family):
    vlm = make(family).eval()
    left, right = batch_of(family, padding_side='left'), batch_of(family, padding_side='right')
    found = [vlm.hidden(batch)[batch['attention_mask'].bool()] for batch in (left, right)]
    assert torch.allclose(*found, atol=2e-5)


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


def test_images_belong_to_the_samples_that_name_them(make):
    vlm = make()
    batch = dict(
        tiny_vlms.tiny_processor('llava')(
            text=['a<image>b<image>', 'none', '<image>'],
            images=[tiny_vlms.random_image(28, 28, seed) for seed in range(3)],
            padding=True,
            return_tensors='pt',
        )
    )
    assert vlm.canvases(batch)[1].tolist() == [0, 0, 2]
    with pytest.raises(ValueError, match='48 image tokens'):
        vlm.canvases(dict(batch, pixel_values=batch['pixel_values'][:0].expand(0, -1, -1, -1)))
