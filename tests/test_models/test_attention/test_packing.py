"""The packing of a padded batch: one row there, and back again."""

import torch

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
