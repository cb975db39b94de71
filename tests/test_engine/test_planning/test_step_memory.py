"""Steps on tensors without content: what they hold, and what code finds that looks at them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from mergemix_mm.engine.planning import StepMemory

KIB = 1024


def on_meta(make):
    with torch.device('meta'):
        return make()


def test_what_is_made_counts_until_it_goes_and_views_count_nothing():
    memory = StepMemory()
    x = memory.empty(256, 256)  # 256 KiB, there before.
    with memory:
        assert memory.held == 0
        y = x * 2
        view = y.view(-1)[100:]
        assert memory.held == 256 * KIB
        del y
        assert memory.held == 256 * KIB  # The view holds it.
        del view
        assert memory.held == 0
        x.add_(1)
        (x + 1).sum()
    assert memory.peak == 256 * KIB + 4


def test_a_petabyte_is_no_problem():
    memory = StepMemory()
    with memory:
        held = memory.empty(2**24, 2**24).bfloat16()
    assert memory.held == 2 * 2**48 and held.shape == (2**24, 2**24)


def test_the_backward_keeps_what_it_needs_and_gradients_stay():
    memory, width, rows = StepMemory(), 64, 1000
    model = on_meta(lambda: nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)))
    memory.adopt_module(model)
    x = memory.empty(rows, width)
    with memory:
        loss = model(x).sum()
        # What comes of ReLU: it needs no more itself, nor does the sum.
        assert memory.held == pytest.approx(rows * width * 4, abs=64)
        loss.backward()
        del loss
        assert memory.held == 2 * (width * width + width) * 4
        assert all(parameter.grad.shape == parameter.shape for parameter in model.parameters())


@pytest.mark.parametrize('checkpointed', [False, True])
def test_checkpointing_keeps_the_inputs_of_layers_only(checkpointed):
    memory, width, rows, depth = StepMemory(), 32, 512, 6
    layer = lambda: nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))  # noqa: E731
    layers = on_meta(lambda: nn.ModuleList(layer() for _ in range(depth)))
    memory.adopt_module(layers)
    x = memory.empty(rows, width).requires_grad_()
    with memory:
        for one in layers:
            x = checkpoint(one, x, use_reentrant=False) if checkpointed else one(x)
        # Input, and the wide tensors before and after GELU.
        kept = 1 if checkpointed else 1 + 4 + 4
        assert memory.held == pytest.approx(depth * kept * rows * width * 4, rel=0.15)
        x.sum().backward()


def test_autocast_keeps_copies_of_the_weights_in_low_precision():
    memory = StepMemory()
    model = on_meta(lambda: nn.Linear(512, 512, bias=False))
    memory.adopt_module(model)
    with memory, torch.autocast('cpu', dtype=torch.bfloat16):
        y = model(memory.empty(1, 512))
        assert y.dtype == torch.bfloat16
        assert memory.held == pytest.approx(512 * 512 * 2, rel=0.01)


def test_attention_makes_no_map():
    memory, length = StepMemory(), 4096
    with memory:
        query, key, value = (memory.empty(1, 8, length, 64).requires_grad_() for _ in range(3))
        F.scaled_dot_product_attention(query, key, value, is_causal=True).sum().backward()
    # A map of one head would be 64 MiB; queries, keys, values and what comes of them are 8 each.
    assert memory.peak < 64 * 2**20


def test_shared_parameters_stay_shared_and_buffers_with_values_stay():
    model = on_meta(lambda: nn.ModuleDict(dict(a=nn.Linear(4, 4, bias=False), b=nn.Linear(4, 4, bias=False))))
    model['b'].weight = model['a'].weight
    model.register_buffer('positions', torch.arange(3))
    model.register_buffer('scale', torch.empty(3, device='meta'))
    memory = StepMemory()
    memory.adopt_module(model, torch.bfloat16)
    assert model['b'].weight is model['a'].weight and model['a'].weight.dtype == torch.bfloat16
    assert model.positions.tolist() == [0, 1, 2] and not model.scale.is_meta


def test_tensors_with_content_are_read_and_those_without_decide_for_more():
    memory = StepMemory()
    x = memory.empty(3, 5)
    flags = torch.tensor([True, False, True])
    with memory:
        assert torch.arange(4).tolist() == [0, 1, 2, 3] and int(flags.sum()) == 2
        assert x[flags].shape == (2, 5) and x[:, torch.tensor([True] * 4 + [False])].shape == (3, 4)
        assert bool((x > 0).any()) and (x.sum() > 0).item() is True
        assert not torch.equal(x, x + 1)
        assert x.argmax().item() == 1 and x.sum().item() == 1.0
        assert (x > 0).nonzero().shape == (15, 2)
        x[flags] = 1
        assert F.embedding(torch.tensor([[0, 2]]), x).shape == (1, 2, 5)


def test_a_convolution_needs_room_for_a_second_output_while_it_runs():
    memory = StepMemory()
    model = on_meta(lambda: nn.Conv2d(3, 8, 3, padding=1))
    memory.adopt_module(model)
    pixels = memory.empty(1, 3, 32, 32)
    with memory, torch.no_grad():
        held = model(pixels)
    assert memory.held == held.numel() * 4 and memory.peak == 2 * memory.held


def test_products_and_attention_count_their_operations_and_the_backward_twice_or_more():
    memory = StepMemory()
    query = memory.empty(2, 3, 10, 8).requires_grad_()
    x, layer = memory.empty(5, 16), on_meta(lambda: nn.Linear(16, 32))
    memory.adopt_module(layer)
    with memory:
        attended = F.scaled_dot_product_attention(query, query, query)
        assert memory.flops == 2 * 2 * (2 * 3 * 10 * 10 * 8)
        attended.sum().backward()
        assert memory.flops == (2 + 5) * 2 * (2 * 3 * 10 * 10 * 8)
        before = memory.flops
        layer(x).sum().backward()  # The input needs no gradient.
    assert memory.flops - before == 2 * 2 * 5 * 16 * 32
