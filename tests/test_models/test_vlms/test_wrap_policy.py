"""What FSDP shards as units of their own."""

import pytest
import tiny_vlms
from mmengine.registry import FUNCTIONS
from torch import nn

from mergemix_mm.models.vlms import wrap_decoder_layers


@pytest.mark.parametrize('family', tiny_vlms.FAMILIES)
def test_units_are_the_layers_of_the_language_model(family, make):
    vlm = make(family)
    units = [module for module in vlm.modules() if wrap_decoder_layers(module, recurse=False, nonwrapped_numel=0)]
    assert len(units) >= 2
    assert units == list(vlm.family.language_model.layers)


def test_the_policy_looks_into_everything_and_is_found_by_its_name():
    policy = FUNCTIONS.get('wrap_decoder_layers')
    assert policy is wrap_decoder_layers
    assert policy(nn.Linear(1, 1), recurse=True, nonwrapped_numel=1)
    assert not policy(nn.Linear(1, 1), recurse=False, nonwrapped_numel=1)
