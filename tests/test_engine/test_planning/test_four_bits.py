"""Planned layers of 4 bits: their bytes are those of bitsandbytes, and a step keeps no unpacked weight."""

import pytest
import tiny_vlms
import torch
from torch import nn

from mergemix_mm.engine.planning.four_bits import FourBitLinear
from mergemix_mm.engine.planning.step_memory import StepMemory
from mergemix_mm.engine.planning.weightless import build_weightless


@pytest.mark.parametrize('nested', [False, True])
def test_bytes_are_those_of_bitsandbytes(nested):
    bnb = pytest.importorskip('bitsandbytes')
    layer = bnb.nn.Linear4bit(512, 384, bias=False, compress_statistics=nested, quant_type='nf4')
    layer.load_state_dict(dict(weight=torch.randn(384, 512)))
    state = layer.to('cpu').state_dict()
    counted = {key: value for key, value in state.items() if key.endswith(('weight', 'absmax'))}
    planned = FourBitLinear(nn.Linear(512, 384, bias=False, device='meta'), torch.bfloat16, nested)
    tensors = [*planned.parameters(), *planned.buffers()]
    assert sum(one.nbytes for one in tensors) == sum(one.nbytes for one in counted.values())


def test_an_unpacked_weight_lives_for_one_product():
    layers = nn.Sequential(
        *(FourBitLinear(nn.Linear(256, 256, bias=False, device='meta'), torch.bfloat16, True) for _ in range(8))
    )
    memory = StepMemory()
    memory.adopt_module(layers)
    with memory:
        x = memory.empty(1, 256, dtype=torch.bfloat16).requires_grad_()
        layers(x).sum().backward()
    unpacked = 2 * 256 * 256
    assert unpacked <= memory.peak < 2 * unpacked
    assert x.grad.shape == x.shape


def test_a_planned_model_has_packed_layers_in_its_decoder():
    config = tiny_vlms.tiny_config('llava')
    options = dict(load_in_4bit=True, bnb_4bit_use_double_quant=True)
    vlm = dict(type='HFVisionLanguageModel', pretrained='some/model', quantization_config=options)
    vlm |= dict(lora=dict(r=2), dtype='bfloat16')
    model = build_weightless(dict(type='VLMTuner', vlm=vlm), {'some/model': config})
    packed = {name for name, one in model.named_modules() if isinstance(one, FourBitLinear)}
    assert len(packed) == 2 * 7 and all('language_model.layers' in name and 'base_layer' in name for name in packed)
    assert {one.dtype for name, one in model.named_parameters() if 'lora_' in name} == {torch.float32}
