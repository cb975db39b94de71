"""Mistral 3: patches merged 2 x 2, and the text model of Ministral. test_pixtral.py has what it shares with Pixtral."""

import pytest
import tiny_vlms
import torch

from mergemix_mm.models import HFVisionLanguageModel


@pytest.mark.parametrize('size', tiny_vlms.SIZES, ids=str)
def test_a_placeholder_stands_for_four_patches(size):
    family, batch = tiny_vlms.tiny_family('mistral3'), tiny_vlms.one_image('mistral3', *size)
    height, width = batch['image_sizes'][0].tolist()
    assert family.token_side == 14 and height % 14 == width % 14 == 0
    assert family.image_lengths(batch).tolist() == [height * width // 14**2]
    assert family.placeholders(batch).sum() == height * width // 14**2


@pytest.mark.parametrize('tied', [False, True])
def test_ministral_is_served_with_its_text_model(tied, tmp_path):
    transformers = pytest.importorskip('transformers', minversion='5')
    config = tiny_vlms.tiny_config('mistral3')
    text = {key: value for key, value in config['text_config'].items() if key != 'sliding_window'}
    # Queries grow with their position after the 8th, as in releases after the 16384th.
    rope = dict(rope_type='yarn', rope_theta=1e4, factor=4.0, original_max_position_embeddings=8, beta_fast=32.0)
    rope |= dict(beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.1)
    config['text_config'] = text | dict(model_type='ministral3', rope_parameters=rope, tie_word_embeddings=tied)
    torch.manual_seed(0)
    vlm = HFVisionLanguageModel(config=config).eval()
    batch = tiny_vlms.mixed_batch('mistral3', 'left')
    given = {key: value for key, value in batch.items() if key not in ('labels', 'original_sizes')}
    with torch.no_grad():
        expected = vlm.model(**given).logits
        torch.testing.assert_close(vlm.head(vlm.hidden(batch)), expected, atol=1e-5, rtol=1e-5)
    assert (vlm.model.lm_head.weight is vlm.model.get_input_embeddings().weight) == tied
    vlm.save_pretrained(tmp_path / 'saved')
    plain = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / 'saved').eval()
    with torch.no_grad():
        torch.testing.assert_close(plain(**given).logits, expected, atol=1e-5, rtol=1e-5)
