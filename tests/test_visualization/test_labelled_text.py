"""The terminal view of the tokens that have labels."""

import pytest
import torch

from mergemix_mm.models.vlms.base import IMAGE, MARKER, PAD, TEXT
from mergemix_mm.visualization import format_labels


def sample(*tokens):
    """Strings, labels and modalities of (string, modality, trained)."""
    strings, modality, trained = zip(*tokens)
    return list(strings), torch.tensor([7 if each else -100 for each in trained]), torch.tensor(modality)


QUESTION = ('<s>', TEXT, 0), *[('<image>', IMAGE, 0)] * 576, (' What?\n', TEXT, 0)
ANSWER = (' A', TEXT, 1), ('</s>', TEXT, 1), *[('<pad>', PAD, 0)] * 3
ROW = *[('<image>', IMAGE, 0)] * 4, ('\n', MARKER, 0)


@pytest.mark.parametrize(
    'tokens, text',
    [
        ((*QUESTION, *ANSWER), '<s>[image x 576] What?\n« A</s>»[pad x 3]'),
        ((('<img>', MARKER, 0), *ROW, *ROW, ('Hi', TEXT, 0)), '[image x 8, marker x 3]Hi'),
        ((('<image>', IMAGE, 0), ('<image>', IMAGE, 1), ('Hi', TEXT, 1)), '[image x 1]«[image x 1]»«Hi»'),
        ((('\x1b[31mred\r\tü\n', TEXT, 0),), '\\x1b[31mred\\r\tü\n'),
    ],
    ids=['counts', 'markers belong to their image', 'a label on an image shows', 'no token commands the terminal'],
)
def test_without_colour_trained_tokens_are_marked(tokens, text):
    assert format_labels(*sample(*tokens), colour=False) == text


def test_with_colour_trained_tokens_are_green_and_counts_dim():
    assert format_labels(*sample(*QUESTION, *ANSWER)) == (
        '<s>\x1b[2m[image x 576]\x1b[0m What?\n\x1b[32m A</s>\x1b[0m\x1b[2m[pad x 3]\x1b[0m'
    )


def test_another_ignore_index_and_an_empty_sample():
    assert format_labels(['a', 'b'], [0, -100], [TEXT, TEXT], ignore_index=0, colour=False) == 'a«b»'
    assert format_labels([], [], []) == ''


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match='2 tokens, 1 labels and 2 modalities'):
        format_labels(['a', 'b'], [1], [TEXT, TEXT])
