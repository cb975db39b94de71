"""The attention function in transformers' models: against sdpa's output and the library's own attention weights."""

import inspect
from functools import cache

import pytest
import torch
from largest_tensor import LargestTensor
from tiny_vlms import FAMILIES, random_image, tiny_batch, tiny_config

pytest.importorskip('transformers')
from mergemix_mm.models import HFVisionLanguageModel
from mergemix_mm.models.attention import InteractionRecorder
from mergemix_mm.models.attention import interaction_attention as module
from mergemix_mm.models.vlms import IMAGE

LANGUAGE_MODELS = ('llama', 'mistral', 'mistral, sliding', 'qwen2', 'qwen3', 'gemma', 'gemma3_text', 'emu3')


@pytest.mark.parametrize('side', ['right', 'left'])
@pytest.mark.parametrize('name', LANGUAGE_MODELS)
def test_output_intensity_and_gradients_are_those_of_the_library(
    name, side, language_model, padded, intensity_of_weights, gradients
):
    model, (inputs, queries, keys) = language_model(name), padded(side)
    real = inputs['attention_mask']
    model.set_attn_implementation('sdpa')
    sdpa = model.model(**inputs, use_cache=False).last_hidden_state
    model.set_attn_implementation('eager')
    eager = model.model(**inputs, use_cache=False, output_attentions=True)
    expected = intensity_of_weights(eager.attentions, queries, keys)
    wanted = gradients(eager.last_hidden_state, expected, real, model)

    with InteractionRecorder(model) as recorder:
        recording = recorder.recording(queries, keys)
        found = model.model(**inputs, use_cache=False, **recording.attention_kwargs).last_hidden_state
    torch.testing.assert_close(found[real.bool()], sdpa[real.bool()], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(recording.intensity(), expected, rtol=1e-5, atol=1e-5)
    assert expected.min() > 0.05 and expected.std() > 0.01
    torch.testing.assert_close(gradients(found, recording.intensity(), real, model), wanted, rtol=1e-3, atol=2e-5)


@cache
def build(family):
    torch.manual_seed(0)
    return HFVisionLanguageModel(config=tiny_config(family), trainable=['vision_tower', 'projector', 'language_model'])


def image_and_text_batch(family, side):
    image = random_image(40, 60, 0)
    samples = [([image], 'what is it and where', ' a dog'), ([image], 'what', ' a dog there'), ([], 'none', ' here')]
    return tiny_batch(family, samples, side)


@pytest.mark.parametrize('side', ['right', 'left'])
@pytest.mark.parametrize('family', FAMILIES)
def test_vision_language_models_record_through_hidden(family, side, intensity_of_weights, gradients):
    vlm, batch = build(family), image_and_text_batch(family, side)
    batch = vlm.prepare(batch)
    queries, keys, real = batch['labels'] != -100, vlm.modality(batch) == IMAGE, batch['attention_mask']
    decoder = vlm.family.language_model
    plain = vlm.hidden(batch)
    decoder.set_attn_implementation('eager')
    eager = vlm.family.base(**vlm.family.forward_kwargs(batch), use_cache=False, output_attentions=True)
    decoder.set_attn_implementation('sdpa')
    expected = intensity_of_weights(eager.attentions, queries, keys)
    wanted = gradients(eager.last_hidden_state, expected, real, vlm)

    with InteractionRecorder(vlm) as recorder:
        recording = recorder.recording(queries, keys)
        found = vlm.hidden(batch, **recording.attention_kwargs)
    torch.testing.assert_close(found[real.bool()], plain[real.bool()], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(recording.intensity(), expected, rtol=1e-4, atol=1e-5)
    assert recording.valid.tolist() == [True, True, False]
    assert (recording.intensity()[:, :2] > 0.05).all() and (recording.intensity()[:, 2] == 0).all()
    torch.testing.assert_close(gradients(found, recording.intensity(), real, vlm), wanted, rtol=1e-3, atol=1e-4)


def test_vision_modules_never_record(monkeypatch):
    vlm, batch = build('llava'), image_and_text_batch('llava', 'right')
    seen = []
    monkeypatch.setattr(
        module,
        'attention_with_intensity',
        lambda query, *args, **kwargs: seen.append(query.size(2)) or attention(query, *args, **kwargs),
    )
    with InteractionRecorder(vlm) as recorder:
        vlm.family.model.set_attn_implementation(module.NAME)  # The tower as well.
        recording = recorder.recording(batch['labels'] != -100, vlm.modality(batch) == IMAGE)
        vlm.hidden(batch, **recording.attention_kwargs)
        tower = vlm.family.vision_tower
        tower = getattr(tower, 'vision_model', tower).encoder.layers[0].self_attn
        assert tower.config._attn_implementation == module.NAME and not hasattr(tower, 'layer_idx')
        query = torch.randn(1, 2, 5, 8)
        module.interaction_attention(tower, query, query, query, None, **recording.attention_kwargs)
    vlm.family.model.set_attn_implementation('sdpa')
    assert seen == [batch['input_ids'].size(1)] * 2


attention = module.attention_with_intensity


def test_only_chosen_layers_pay(language_model, padded, monkeypatch):
    model, (inputs, queries, keys) = language_model(), padded()
    calls = []
    monkeypatch.setattr(
        module, 'attention_with_intensity', lambda *args, **kwargs: calls.append(1) or attention(*args, **kwargs)
    )
    found = {}
    for layers in (None, [2], range(1, 3)):
        with InteractionRecorder(model, layers) as recorder:
            recording = recorder.recording(queries, keys)
            model(**inputs, **recording.attention_kwargs)
            found[str(layers)] = recording.intensity()
            assert len(calls) == len(recorder.layers) == len(recording.intensity())
        calls.clear()
    torch.testing.assert_close(found['[2]'], found['None'][2:3], rtol=0, atol=1e-6)
    torch.testing.assert_close(found['range(1, 3)'], found['None'][1:3], rtol=0, atol=1e-6)


def test_padding_on_either_side_changes_nothing(language_model, padded):
    model, found = language_model(), {}
    for side in ('left', 'right'):
        inputs, queries, keys = padded(side)
        with InteractionRecorder(model) as recorder:
            recording = recorder.recording(queries, keys)
            model(**inputs, **recording.attention_kwargs)
            found[side] = recording.intensity()
            for row in range(3):
                real = inputs['attention_mask'][row].bool()
                alone = recorder.recording(queries[row : row + 1, real], keys[row : row + 1, real])
                model(inputs['input_ids'][row : row + 1, real], **alone.attention_kwargs)
                torch.testing.assert_close(found[side][:, row], alone.intensity()[:, 0])
    assert found['left'].shape == (4, 3)


@pytest.mark.parametrize('checkpointing', [False, True])
def test_right_padding_needs_no_map_of_queries_by_keys(checkpointing, language_model, padded):
    length = 256
    model, (inputs, queries, keys) = language_model(), padded('right', length)
    if checkpointing:
        model.gradient_checkpointing_enable({'use_reentrant': False})
    with InteractionRecorder(model) as recorder, LargestTensor() as seen:
        recording = recorder.recording(queries, keys)
        model.model(**inputs, use_cache=False, **recording.attention_kwargs)
        recording.intensity().sum().backward()
    assert seen.elements < length * length
    with LargestTensor() as plain:
        model.model(**inputs, use_cache=False)
    assert plain.elements >= 3 * length * length  # What transformers' own mask takes.


def queries(start, length):
    """Where the queries are, as either version of transformers tells a mask."""
    from transformers.masking_utils import sdpa_mask

    if 'q_length' in inspect.signature(sdpa_mask).parameters:
        return dict(q_length=length, q_offset=start)
    return dict(cache_position=torch.arange(start, start + length))


@pytest.mark.parametrize(('allowed', 'skips'), [(True, True), (False, False)])
def test_a_mask_that_is_not_causal_is_kept(allowed, skips):
    from transformers.masking_utils import causal_mask_function

    sizes = dict(batch_size=1, kv_length=4, mask_function=causal_mask_function, **queries(0, 4))
    mask = module.interaction_mask(
        attention_mask=torch.tensor([[True, True, True, False]]), allow_is_causal_skip=allowed, **sizes
    )
    assert (mask is None) == skips


def test_the_mask_stays_where_queries_come_behind_padding():
    from transformers.masking_utils import causal_mask_function

    # Two tokens cached, the second of which is padding; one new token.
    mask = module.interaction_mask(
        attention_mask=torch.tensor([[True, False, True]]),
        batch_size=1,
        kv_length=3,
        mask_function=causal_mask_function,
        **queries(2, 1),
    )
    assert mask.tolist() == [[[[True, False, True]]]]


def test_soft_caps_and_sinks_are_refused(language_model):
    layer, query = torch.nn.Module(), torch.randn(1, 2, 3, 4)
    for name, meaning in (('softcap', 'soft-capped logits'), ('s_aux', 'attention sinks')):
        with pytest.raises(ValueError, match=meaning):
            module.interaction_attention(layer, query, query, query, None, **{name: 50.0})
    with pytest.raises(ValueError, match=r'Gemma2Model caps its attention logits \(attn_logit_softcapping=50.0\)'):
        InteractionRecorder(language_model('gemma2', head_dim=4))
    assert InteractionRecorder(language_model('gemma2', head_dim=4, attn_logit_softcapping=None)).num_layers == 4


def test_generation_with_the_function_is_that_of_sdpa(language_model, padded):
    model, (inputs, _, _) = language_model(), padded('left')
    plain = model.eval().generate(**inputs, max_new_tokens=6, do_sample=False)
    with InteractionRecorder(model):
        found = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    assert torch.equal(found, plain)


def test_dropout_is_that_of_the_layer(language_model, padded):
    model, (inputs, queries, keys) = language_model(attention_dropout=0.5), padded()
    with InteractionRecorder(model) as recorder:
        found = []
        for training in (True, True, False, False):
            recording = recorder.recording(queries, keys)
            model.train(training)(**inputs, **recording.attention_kwargs)
            found.append(recording.intensity())
    assert not torch.allclose(found[0], found[1])
    assert torch.equal(found[2], found[3])
