"""Memory of a device: no table of all tokens by all tokens, no logits of a whole batch, nothing left from a step."""

import gc

import pytest
import tiny_vlms
import torch
from on_device import moved
from test_cuda.test_mixing import augment, classifier, pictures
from test_models.test_tuners.test_unified_tuner import align, batch_of
from test_models.test_tuners.test_unified_tuner import build as build_unified
from test_models.test_tuners.test_vlm_tuner import MIXERS, SIMPO, samples
from test_models.test_tuners.test_vlm_tuner import build as build_tuner

from mergemix_mm.functional import answer_logps, attention_with_intensity
from mergemix_mm.models.attention import InteractionRecorder


def peak_of(device, function):
    """Bytes that a call takes at its peak, beside what there was; 0 on a CPU, which does not count them."""
    function()  # Libraries take their workspaces.
    if device.type == 'cpu':
        return 0
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    function()
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('heads', [8, 2])
@pytest.mark.parametrize('width', [64, 128])
def test_recorded_attention_makes_no_map(width, heads, dtype, device):
    length = 4096 if device.type == 'cuda' else 64
    query = torch.randn(1, 8, length, width, device=device, dtype=dtype, requires_grad=True)
    key, value = (torch.randn(1, heads, length, width, device=device, dtype=dtype, requires_grad=True) for _ in '12')
    places = torch.arange(length, device=device)[None]

    def step():
        output, intensity = attention_with_intensity(
            query, key, value, places >= length // 2, places < length // 2, is_causal=True
        )
        (output.float().square().mean() + intensity.sum()).backward()

    assert peak_of(device, step) < 8 * length * length * dtype.itemsize / 2


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_recorded_model_makes_no_map(dtype, device):
    length, layers, heads = (2048 if device.type == 'cuda' else 64), 2, 4
    model = build_unified('janus').to(device, getattr(torch, dtype))
    ids = torch.randint(20, 200, (2, length), device=device)
    mask = torch.ones_like(ids)
    mask[1, -9:] = 0  # On the right.
    batch = dict(input_ids=ids, attention_mask=mask)
    half = torch.arange(length, device=device).expand(2, length)

    with InteractionRecorder(model.vlm) as recorder:

        def step():
            recording = recorder.recording(half >= length // 2, half < length // 2)
            hidden = model.vlm.hidden(batch, **recording.attention_kwargs)
            (hidden.float().square().mean() + recording.intensity().sum()).backward()

        taken = peak_of(device, step)
    assert taken < layers * 2 * heads * length * length * getattr(torch, dtype).itemsize / 2


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_log_probabilities_take_the_logits_of_one_chunk(dtype, device):
    tokens, vocabulary = (2048, 50000) if device.type == 'cuda' else (64, 500)
    hidden = torch.randn(4, tokens // 4, 64, device=device, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocabulary, 64, device=device, dtype=dtype, requires_grad=True)
    labels = torch.randint(vocabulary, (4, tokens // 4), device=device)

    def step():
        answer_logps(hidden, weight, labels, chunk_size=tokens // 16)[0].sum().backward()

    assert peak_of(device, step) < tokens * vocabulary * 4 / 2


def bytes_of_tensors():
    """Of all tensors that Python knows; what only autograd holds is not among them."""
    tensors = [one for one in gc.get_objects() if isinstance(one, torch.Tensor) and one.device.type == 'cpu']
    return sum({one.data_ptr(): one.untyped_storage().nbytes() for one in tensors}.values())


@pytest.mark.parametrize('kind', ['classifier', 'tuner', 'alignment', 'checkpointing'])
def test_steps_leave_nothing_on_the_device(kind, device):
    if kind == 'classifier':
        model = classifier(augment('MergeMix'), device)
        data = model.data_preprocessor(pictures(), training=True)
    elif kind == 'tuner':
        model = build_tuner('llava', SIMPO, MIXERS['MergeMix']).to(device)
        data = dict(inputs=moved(tiny_vlms.tiny_batch('llava', samples()), device))
    else:
        model = build_unified('janus', drop_prompt=0.0)
        if kind == 'checkpointing':
            model.vlm.family.model.gradient_checkpointing_enable({'use_reentrant': False})
            model.train()
        model, data = align(model).to(device), dict(inputs=moved(batch_of('janus', 'und'), device))
    taken = []
    gc.collect()
    gc.disable()  # What only the garbage collector would find counts as left.
    try:
        for step in range(6):
            losses = model(**data, mode='loss')
            sum(value for name, value in losses.items() if 'loss' in name).backward()
            model.zero_grad()
            del losses
            if step in (2, 5):
                taken.append(torch.cuda.memory_allocated() if device.type == 'cuda' else bytes_of_tensors())
    finally:
        gc.enable()
    assert taken[1] <= taken[0] + 4096, taken
