"""InteractionRecorder: on and off, side by side, under gradient checkpointing, wrappers and threads."""

import gc
import threading
import weakref

import pytest
import tiny_vlms
import torch
import torch.distributed as dist

pytest.importorskip('transformers')
from mergemix_mm.functional.interaction import BACKENDS
from mergemix_mm.functional.lse_attention import Places
from mergemix_mm.models import HFVisionLanguageModel
from mergemix_mm.models.attention import InteractionRecorder
from mergemix_mm.models.attention.interaction_attention import NAME


def record(recorder, inputs, queries, keys, model):
    recording = recorder.recording(queries, keys)
    output = model(**inputs, **recording.attention_kwargs)
    return recording, output[0]


def test_switching_off_leaves_everything_as_it_was(language_model, padded):
    inputs, queries, keys = padded('left')
    for before in ('sdpa', 'eager'):
        model = language_model()
        model.set_attn_implementation(before)
        plain = model(**inputs).logits
        with InteractionRecorder(model) as recorder:
            assert model.config._attn_implementation == NAME
            record(recorder, inputs, queries, keys, model)
        assert model.config._attn_implementation == before
        assert torch.equal(model(**inputs).logits, plain)


def test_the_vision_tower_keeps_its_attention():
    vlm = HFVisionLanguageModel(
        config=tiny_vlms.tiny_config('llava'), attn_implementation=dict(text_config='sdpa', vision_config='eager')
    )
    configs = vlm.model.config.text_config, vlm.model.config.vision_config
    with InteractionRecorder(vlm):
        assert [config._attn_implementation for config in configs] == [NAME, 'eager']
    assert [config._attn_implementation for config in configs] == ['sdpa', 'eager']


def test_an_error_inside_switches_off_too(language_model):
    model = language_model()
    with pytest.raises(KeyError), InteractionRecorder(model):
        raise KeyError
    assert model.config._attn_implementation == 'sdpa'


def test_a_second_recorder_of_a_model_leaves_switching_to_the_first(language_model, padded):
    model, arguments = language_model(), padded()
    with InteractionRecorder(model) as first:
        with InteractionRecorder(model, [1]) as second:
            inner, _ = record(second, *arguments, model)
            outer, _ = record(first, *arguments, model)
        assert model.config._attn_implementation == NAME
    assert model.config._attn_implementation == 'sdpa'
    assert torch.allclose(inner.intensity(), outer.intensity()[1:2])


def test_two_models_side_by_side_do_not_mix(language_model, padded):
    models, arguments = [language_model(seed=0), language_model(seed=1)], padded()
    expected = []
    for model in models:
        with InteractionRecorder(model) as recorder:
            expected.append(record(recorder, *arguments, model)[0].intensity())
    assert not torch.allclose(*expected)
    with InteractionRecorder(models[0]) as first, InteractionRecorder(models[1]) as second:
        recordings = [recorder.recording(*arguments[1:]) for recorder in (first, second)]
        for recording, model in zip(recordings, models):
            model(**arguments[0], **recording.attention_kwargs)
    for recording, wanted in zip(recordings, expected):
        assert torch.equal(recording.intensity(), wanted)


def test_threads_that_share_a_model_do_not_mix(language_model, padded):
    model, sides = language_model(), ('left', 'right') * 3
    results, barrier = {}, threading.Barrier(len(sides))

    def run(index, side):
        inputs, queries, keys = padded(side)
        inputs['input_ids'] = (inputs['input_ids'] + index) % 40
        recording = recorder.recording(queries, keys)
        barrier.wait()
        for _ in range(5):
            recording = recorder.recording(queries, keys)
            model(**inputs, **recording.attention_kwargs)
        results[index] = recording.intensity()

    with InteractionRecorder(model) as recorder:
        threads = [threading.Thread(target=run, args=arguments) for arguments in enumerate(sides)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        together, barrier = dict(results), threading.Barrier(1)
        for index, side in enumerate(sides):
            run(index, side)
    for index in range(len(sides)):
        torch.testing.assert_close(together[index], results[index])


@pytest.mark.parametrize('backend', ['fused', 'lse'])
def test_checkpointing_records_once_with_the_same_gradients(backend, language_model, padded, gradients):
    model, (inputs, queries, keys) = language_model(), padded()
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({'use_reentrant': False})
        layers = []
        hooks = [layer.self_attn.register_forward_hook(lambda *_: layers.append(1)) for layer in model.model.layers]
        with InteractionRecorder(model, backend=backend) as recorder:
            recording, hidden = record(recorder, inputs, queries, keys, model.model)
            intensity, recorded = recording.intensity(), dict(recording.found)
            grads = gradients(hidden, intensity, inputs['attention_mask'], model)
        for hook in hooks:
            hook.remove()
        assert len(layers) == (8 if checkpointing else 4)
        assert list(recording.found) == [0, 1, 2, 3]
        assert all(recording.found[layer] is value for layer, value in recorded.items())
        found.append((intensity, grads))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize('backend', ['fused', 'lse'])
def test_gradients_under_checkpointing_may_come_from_the_intensity_alone(backend, language_model, padded):
    model, arguments = language_model(), padded()
    grads = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({'use_reentrant': False})
        model.zero_grad()
        with InteractionRecorder(model, [1, 2], backend=backend) as recorder:
            recording, _ = record(recorder, *arguments, model)
            recording.intensity().sum().backward()
        grads.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert 'model.layers.2.self_attn.q_proj.weight' in grads[0]
    assert 'model.layers.2.self_attn.o_proj.weight' not in grads[0]
    torch.testing.assert_close(*grads)


def test_reentrant_checkpointing_is_refused_with_the_reason(language_model, padded):
    model, arguments = language_model(), padded()
    model.gradient_checkpointing_enable({'use_reentrant': True})  # The default of transformers 4.
    model.enable_input_require_grads()
    with InteractionRecorder(model) as recorder:
        with pytest.raises(RuntimeError, match='reentrant gradient checkpointing.*use_reentrant.: False'):
            record(recorder, *arguments, model)
        with torch.no_grad():  # Measuring needs no gradients.
            recording, _ = record(recorder, *arguments, model)
        assert recording.intensity().shape == (4, 3)


@pytest.mark.parametrize('backend', ['fused', 'lse'])
def test_a_forward_without_backward_leaks_nothing_under_checkpointing(backend, language_model, padded):
    model, arguments = language_model(), padded()
    model.gradient_checkpointing_enable({'use_reentrant': False})
    with InteractionRecorder(model, backend=backend) as recorder:
        recording, hidden = record(recorder, *arguments, model.model)
    watched = [weakref.ref(hidden), weakref.ref(recording), weakref.ref(recording.found[0])]
    del recording, hidden
    gc.collect()
    assert [reference() for reference in watched] == [None] * 3


def test_the_gradient_is_that_of_finite_differences(language_model, padded):
    model, (inputs, queries, keys) = language_model(), padded()
    weight = model.model.layers[1].self_attn.q_proj.weight

    def intensity():
        recording, _ = record(recorder, inputs, queries, keys, model)
        return recording.intensity()[3].sum()

    with InteractionRecorder(model) as recorder:
        (gradient,) = torch.autograd.grad(intensity(), weight)
        direction, values = gradient / gradient.norm(), []
        with torch.no_grad():
            for step in (0.02, -0.04):
                weight += step * direction
                values.append(intensity().item())
    assert gradient.norm().item() == pytest.approx((values[0] - values[1]) / 0.04, rel=0.01)


def test_autocast_records_in_float32(language_model, padded):
    model, arguments = language_model(), padded()
    with InteractionRecorder(model) as recorder:
        exact, _ = record(recorder, *arguments, model)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            found, _ = record(recorder, *arguments, model)
    assert found.intensity().dtype == torch.float32
    torch.testing.assert_close(found.intensity(), exact.intensity(), rtol=0, atol=0.02)


def test_lora_models_are_recorded():
    torch.manual_seed(0)
    vlm = HFVisionLanguageModel(config=tiny_vlms.tiny_config('llava'), lora=dict(r=2), gradient_checkpointing=True)
    batch = tiny_vlms.tiny_batch('llava', [([tiny_vlms.random_image(28, 28, 0)], 'what', ' a dog')])
    with InteractionRecorder(vlm) as recorder:
        recording = recorder.recording(batch['labels'] != -100, vlm.modality(batch) == 2)
        vlm.hidden(batch, **recording.attention_kwargs)
        recording.intensity().sum().backward()
    grads = {name: p.grad.abs().max() for name, p in vlm.named_parameters() if p.grad is not None}
    assert any('lora_B' in name and value > 0 for name, value in grads.items())


@pytest.fixture
def group(tmp_path):
    """A gloo group of this process alone."""
    dist.init_process_group('gloo', init_method=f'file://{tmp_path}/group', rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def wrap(model, wrapper):
    if wrapper == 'ddp':
        return torch.nn.parallel.DistributedDataParallel(model)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh('cpu', (1,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=MixedPrecisionPolicy())
    return fully_shard(model, mesh=mesh)


@pytest.mark.parametrize('checkpointing', [False, True])
@pytest.mark.parametrize('wrapper', ['ddp', 'fsdp'])
def test_wrapped_models_record_with_the_same_gradients(wrapper, checkpointing, language_model, padded, group):
    inputs, queries, keys = padded()
    found = []
    for wrapped in (False, True):
        model = language_model()
        if checkpointing:
            model.gradient_checkpointing_enable({'use_reentrant': False})
        outer = wrap(model, wrapper) if wrapped else model
        with InteractionRecorder(outer) as recorder:
            recording = recorder.recording(queries, keys)
            logits = outer(**inputs, use_cache=False, **recording.attention_kwargs).logits
            (logits.square().mean() + recording.intensity().sum()).backward()
        grads = [p.grad.full_tensor() if hasattr(p.grad, 'full_tensor') else p.grad for p in model.parameters()]
        found.append((recording.intensity(), grads))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize('name', ['llama', 'mistral, sliding', 'gemma3_text'])
@pytest.mark.parametrize('side', ['right', 'left'])
def test_every_backend_records_the_same_and_looks_for_the_tokens_once(
    name, side, language_model, padded, gradients, monkeypatch
):
    model, (inputs, queries, keys) = language_model(name), padded(side)
    looked, original = [], Places.of
    monkeypatch.setattr(Places, 'of', lambda mask: looked.append(mask) or original(mask))
    found = {}
    for backend in BACKENDS:
        looked.clear()
        with InteractionRecorder(model, backend=backend) as recorder:
            recording, hidden = record(recorder, inputs, queries, keys, model.model)
            intensity = recording.intensity()
            found[backend] = intensity, gradients(hidden, intensity, inputs['attention_mask'], model)
        assert len(looked) == (2 if backend == 'lse' else 0)
    for backend in BACKENDS:
        torch.testing.assert_close(found[backend], found['eager'], rtol=1e-4, atol=1e-5)


def test_a_recording_serves_one_forward(language_model, padded):
    model, (inputs, queries, keys) = language_model(), padded()
    with InteractionRecorder(model) as recorder:
        recording, _ = record(recorder, inputs, queries, keys, model)
        with pytest.raises(RuntimeError, match='layer 0 has recorded already: make a new recording for every forward'):
            model(**inputs, **recording.attention_kwargs)


def test_what_recorded_nothing_says_so(language_model, padded):
    model, (inputs, queries, keys) = language_model(), padded()
    recorder = InteractionRecorder(model, [0, 2])
    with pytest.raises(RuntimeError, match='start'):
        recorder.recording(queries, keys)
    with recorder:
        recording = recorder.recording(queries, keys)
        model(**inputs)
        with pytest.raises(RuntimeError, match=r'layers \[0, 2\] of \[0, 2\] recorded nothing'):
            recording.intensity()
    model(**inputs, **recording.attention_kwargs)  # Stopped: back to sdpa.
    with pytest.raises(RuntimeError, match='while the recorder is started'):
        recording.intensity()


def test_layers_and_models_that_cannot_be_recorded_are_refused(language_model):
    with pytest.raises(ValueError, match=r'layers=\[3, 4\] must be some of the 4 layers of LlamaModel, 0 to 3'):
        InteractionRecorder(language_model(), [3, 4])
    with pytest.raises(ValueError, match=r'layers=\[\]'):
        InteractionRecorder(language_model(), [])
    with pytest.raises(ValueError, match="backend='flash'"):
        InteractionRecorder(language_model(), backend='flash')
    with pytest.raises(ValueError, match='Linear contains no model of transformers'):
        InteractionRecorder(torch.nn.Linear(2, 2))


def test_a_model_without_the_attention_interface_is_refused():
    from transformers import BloomConfig, BloomForCausalLM

    model = BloomForCausalLM(BloomConfig(vocab_size=40, hidden_size=16, n_layer=2, n_head=2))
    with pytest.raises(ValueError, match="BloomModel does not use transformers' attention interface"):
        InteractionRecorder(model).start()
    assert model.config._attn_implementation == 'eager'
