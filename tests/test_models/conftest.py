"""What tests of several folders score with."""

import pytest
from mmpretrain.registry import MODELS
from tiny_vit import VIT, randomised


@pytest.fixture
def vit():
    """A vision transformer of MMPretrain whose saliency differs from patch to patch."""
    return randomised(MODELS.build(VIT))
