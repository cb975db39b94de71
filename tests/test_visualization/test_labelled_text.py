"""The terminal view of what is trained on."""

import pytest
import torch

from mergemix_mm.models.vlms.base import IMAGE, MARKER, PAD, TEXT
from mergemix_mm.visualization import format_labels


def sample(*tokens):
    """Strings, labels and modalities of (string, modality, trained)."""
    strings, modality, trained = zip(*tokens)
    return list(strings), torch.tensor([7 if each else -100 for each in trained]), torch.tensor(modality)


CONVERSATION = sample(
    ('<s>', TEXT, 0),
    *[('<image>', IMAGE, 0)] * 576,
    (' What', TEXT, 0),
    ('?\n', TEXT, 0),
    (' A', TEXT, 1),
    (' cat', TEXT, 1),
    ('</s>', TEXT, 1),
    *[('<pad>', PAD, 0)] * 3,
)


def test_without_colour_trained_tokens_stand_in_marks_and_images_and_padding_are_counted():
    assert format_labels(*CONVERSATION, colour=False) == '<s>[image x 576] What?\n« A cat</s>»[pad x 3]'


def test_with_colour_trained_tokens_are_green_and_counts_dim():
    assert format_labels(*CONVERSATION) == (
        '<s>\x1b[2m[image x 576]\x1b[0m What?\n\x1b[32m A cat</s>\x1b[0m\x1b[2m[pad x 3]\x1b[0m'
    )


def test_markers_are_counted_within_their_image():
    row = [('<image>', IMAGE, 0)] * 4 + [('\n', MARKER, 0)]
    tokens = sample(('<img>', MARKER, 0), *row, *row, ('Hi', TEXT, 0), ('<img>', MARKER, 0))
    assert format_labels(*tokens, colour=False) == '[image x 8, marker x 3]Hi[marker x 1]'


def test_a_label_on_an_image_shows():
    tokens = sample(*[('<image>', IMAGE, 0)] * 5, *[('<image>', IMAGE, 1)] * 2, ('Hi', TEXT, 1))
    assert format_labels(*tokens, colour=False) == '[image x 5]«[image x 2]»«Hi»'


def test_another_ignore_index_and_plain_lists_do():
    assert format_labels(['a', 'b'], [0, -100], [TEXT, TEXT], ignore_index=0, colour=False) == 'a«b»'


def test_a_token_cannot_command_the_terminal():
    assert format_labels(['\x1b[31mred\r\tü\n'], [-100], [TEXT]) == '\\x1b[31mred\\r\tü\n'


def test_an_empty_sample_is_empty_and_unequal_lengths_are_refused():
    assert format_labels([], [], []) == ''
    with pytest.raises(ValueError, match='2 tokens, 1 labels and 2 modalities'):
        format_labels(['a', 'b'], [1], [TEXT, TEXT])
