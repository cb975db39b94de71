"""The packing of a padded batch: one row there, and back again; and the attention of such a row."""

from types import SimpleNamespace

import pytest
import torch

from mergemix_mm.functional import attention_with_intensity
from mergemix_mm.models.attention.interaction_attention import Recording, interaction_attention
from mergemix_mm.models.attention.packing import Packing

# Padded on the right, on the left, and not at all.
REAL = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1], [1, 1, 1, 1]])


def test_a_batch_becomes_one_row_without_padding_and_back():
    packing = Packing.of(REAL)
    values = torch.arange(1, 25).view(3, 4, 2)
    row = packing.pack(values)
    assert row.shape == (1, 9, 2) and row[0, :, 0].tolist() == [1, 3, 11, 13, 15, 17, 19, 21, 23]
    assert torch.equal(packing.unpack(row), values * REAL[..., None])
    assert [part[0, :, 1].tolist() for part in packing.split(row)] == [[2, 4], [12, 14, 16], [18, 20, 22, 24]]


def test_without_padding_there_is_nothing_to_pack():
    assert Packing.of(None) is None and Packing.of(torch.ones(2, 3)) is None


def test_inputs_of_tokens_are_packed_and_others_stay():
    pixels, positions = torch.randn(3, 4), (REAL.cumsum(1) - 1).clamp(min=0)
    inputs = dict(input_ids=REAL * 7, attention_mask=REAL, pixel_values=pixels)
    packed = Packing.of(REAL).inputs(inputs, torch.stack([positions] * 3))
    assert packed['pixel_values'] is pixels and packed['input_ids'].tolist() == [[7] * 9]
    assert packed['attention_mask'].shape == (1, 1, 1, 1) and packed['position_ids'].shape == (3, 1, 9)
    assert packed['position_ids'][2, 0].tolist() == [0, 1, 0, 1, 2, 0, 1, 2, 3]


@pytest.mark.parametrize('backend', ['auto', 'fused', 'lse', 'eager'])
def test_each_conversation_of_a_row_is_recorded_as_by_itself(backend):
    torch.manual_seed(0)
    packing, layer = Packing.of(REAL), SimpleNamespace(layer_idx=0, is_causal=True, training=False)
    layer.num_key_value_groups = 2
    query, key, value = (torch.randn(1, heads, 9, 8) for heads in (4, 2, 2))
    queries, keys = REAL.bool() & (torch.arange(4) >= 2), REAL.bool() & (torch.arange(4) < 2)
    recording = Recording((0,), queries, keys, backend)
    options = dict(scaling=8**-0.5, packing=packing, **recording.attention_kwargs)
    output, _ = interaction_attention(layer, query, key, value, None, **options)
    start = 0
    for row, length in enumerate(packing.lengths):
        parts = [one[:, :, start : start + length] for one in (query, key, value)]
        masks = [one[row : row + 1, REAL[row] == 1] for one in (queries, keys)]
        alone, intensity = attention_with_intensity(*parts, *masks, is_causal=True, scale=8**-0.5, backend='eager')
        torch.testing.assert_close(output[:, start : start + length], alone.transpose(1, 2))
        torch.testing.assert_close(recording.intensity()[0, row : row + 1], intensity)
        start += length
    assert recording.intensity()[0, 1:].min() > 0
