"""Gemma 3: the mask of images, the text around them. tests/tiny_vlms/gemma3.py brings the tests of all families."""

import json

import pytest
import tiny_vlms
import torch
from mmengine.registry import MODELS

from mergemix_mm.datasets import ConversationCollate, EncodeConversation
from mergemix_mm.families.gemma3 import Gemma3Family
from mergemix_mm.models import HFVisionLanguageModel
from mergemix_mm.models.attention import InteractionRecorder
from mergemix_mm.models.vlms import IMAGE

ORDERS = [['sliding_attention', 'full_attention'], ['full_attention', 'sliding_attention'], ['sliding_attention'] * 2]


def build(window=3, layers=ORDERS[0], **options):
    """A model whose window is shorter than the four tokens of an image."""
    config = tiny_vlms.tiny_config('gemma3')
    config['text_config'] |= dict(sliding_window=window, layer_types=layers)
    torch.manual_seed(0)
    parts = ['vision_tower', 'projector', 'language_model']
    return HFVisionLanguageModel(config=config, trainable=parts, **options)


def of_library(batch):
    """What the processor made, for the library's own model."""
    return {key: value for key, value in batch.items() if key not in ('labels', 'original_sizes')}


def gradients(vlm):
    found = {name: value.grad for name, value in vlm.model.named_parameters() if value.grad is not None}
    vlm.zero_grad()
    return found


@pytest.mark.parametrize('layers', ORDERS, ids=['sliding-full', 'full-sliding', 'sliding'])
@pytest.mark.parametrize('side', ['left', 'right'])
def test_hidden_states_logits_loss_and_gradients_are_the_librarys(side, layers):
    vlm, batch = build(layers=layers), tiny_vlms.mixed_batch('gemma3', side)
    given = of_library(batch)
    states = vlm.model.model(**given).last_hidden_state
    expected = vlm.model(**given, labels=batch['labels'])
    expected.loss.backward()
    wanted = gradients(vlm)
    hidden = vlm.hidden({key: value for key, value in batch.items() if key != 'token_type_ids'})
    logits = vlm.head(hidden)
    assert logits.std() > 0.1
    torch.testing.assert_close(hidden, states, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits, expected.logits, atol=1e-5, rtol=1e-5)
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch['labels'][:, 1:].flatten())
    torch.testing.assert_close(loss, expected.loss, atol=1e-6, rtol=1e-6)
    loss.backward()
    torch.testing.assert_close(gradients(vlm), wanted, atol=1e-5, rtol=1e-4)
    reached = 'full_attention' in layers  # In windows of three tokens, no answer reaches an image.
    assert (wanted['model.multi_modal_projector.mm_input_projection_weight'].abs().max() > 1e-3) == reached


def test_checkpointed_layers_have_the_same_gradients():
    batch, found = tiny_vlms.mixed_batch('gemma3'), []
    for checkpointing in (False, True):
        vlm = build(gradient_checkpointing=checkpointing).train()
        vlm.hidden(batch)[batch['labels'] != -100].square().sum().backward()
        found.append(gradients(vlm))
    assert len(found[0]) > 60
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)


def test_a_batch_of_text_is_that_of_the_library_with_its_types():
    vlm, batch = build().eval(), tiny_vlms.tiny_batch('gemma3', [([], 'hello', ' you'), ([], 'a', 'b')])
    assert 'token_type_ids' not in vlm.family.forward_kwargs(batch)
    with torch.no_grad():
        expected = vlm.model.model(**of_library(batch)).last_hidden_state
        torch.testing.assert_close(vlm.hidden(batch), expected, atol=1e-5, rtol=1e-5)


def test_tokens_of_an_image_see_later_ones_of_the_same_image_only():
    vlm = build(window=64).eval()
    shown = [tiny_vlms.random_image(40, 56, seed) for seed in range(2)]
    batch = tiny_vlms.tiny_batch('gemma3', [(shown, 'what?', ' a dog')])
    first, second = vlm.family.placeholders(batch)[0].nonzero()[:, 0].split(4)
    vlm.model.model.multi_modal_projector.register_forward_hook(lambda module, inputs, output: output + change)
    change = torch.zeros(2, 4, 16)
    with torch.no_grad():
        clean = vlm.hidden(batch)[0]
        change[1, -1] = 1.0  # The last token of the second image.
        moved = (vlm.hidden(batch)[0] - clean).abs().amax(dim=-1)
    assert moved[second].min() > 1e-3 and moved[: second[0]].max() == 0
    assert moved[first].max() == 0


def test_losers_see_the_whole_image_as_the_library_does():
    """A pair's second answer: token types are made anew, and the reward is that of the library's own logits."""
    messages = [dict(role='user', content=[dict(type='image'), dict(type='text', text='what?')])]
    chosen, rejected = (
        [*messages, dict(role='assistant', content=[dict(type='text', text=text)])] for text in ('a dog', 'no, a cat')
    )
    record = dict(messages=chosen, rejected=rejected, images=[tiny_vlms.random_image(40, 56, 0)], source='one')
    batch = ConversationCollate()([EncodeConversation(tiny_vlms.tiny_processor('gemma3'))(record)])['inputs']
    vlm = dict(type='HFVisionLanguageModel', config=tiny_vlms.tiny_config('gemma3'))
    torch.manual_seed(0)
    tuner = MODELS.build(dict(type='VLMTuner', vlm=vlm, head=dict(type='SimPOHead', beta=2.0, margin=0.5))).eval()
    means = []
    with torch.no_grad():
        found = tuner.loss(batch)
        for one in (batch, batch['rejected']):
            ids, labels = one['input_ids'], one['labels'][:, 1:]
            types = (ids == tuner.vlm.family.image_token_id).long()
            logits = tuner.vlm.model(ids, pixel_values=batch['pixel_values'], token_type_ids=types).logits[:, :-1]
            logps = logits.log_softmax(dim=-1).gather(2, labels.clamp(min=0)[..., None])[..., 0]
            means.append(logps[labels != -100].mean())
    expected = 2.0 * (means[0] - means[1])
    assert float(found['reward_margin']) == pytest.approx(float(expected), rel=1e-4)


def test_intensities_are_those_of_eager_attention_in_windows_too():
    """A layer with a short window reaches the image from no answer, and the other layer does."""
    vlm, batch = build(window=6).eval(), tiny_vlms.mixed_batch('gemma3')
    queries, keys = batch['labels'] != -100, vlm.modality(batch) == IMAGE
    decoder = vlm.family.language_model
    with torch.no_grad():
        decoder.set_attn_implementation('eager')
        kwargs = vlm.family.forward_kwargs(batch)
        weights = vlm.family.base(**kwargs, use_cache=False, output_attentions=True).attentions
        decoder.set_attn_implementation('sdpa')
        with InteractionRecorder(vlm) as recorder:
            recording = recorder.recording(queries, keys)
            vlm.hidden(batch, **recording.attention_kwargs)
    pairs = queries[:, None, :, None] & keys[:, None, None, :]
    expected = [(layer * pairs).sum(dim=(1, 2, 3)) / (layer.size(1) * queries.sum(dim=1)) for layer in weights]
    torch.testing.assert_close(recording.intensity(), torch.stack(expected), rtol=1e-4, atol=1e-5)
    assert (recording.intensity()[0] == 0).all() and (recording.intensity()[1, [0, 2]] > 0.05).all()


def merging_tokenizer():
    """The tokenizer of bytes, with tokens of several line breaks as the released one has them."""
    tokenizer = tiny_vlms.tiny_tokenizer('gemma3')
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = content['model']['vocab']
    vocabulary |= {'Ċ' * count: len(vocabulary) + count for count in (2, 3, 4)}
    content['model']['merges'] = [['Ċ', 'Ċ'], ['ĊĊ', 'Ċ'], ['ĊĊ', 'ĊĊ']]
    tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(content))
    return tokenizer


@pytest.mark.parametrize('question', ['what?', 'one\n\nand two'])
def test_line_breaks_around_images_merge_with_those_of_the_text(question):
    from tiny_vlms import gemma3

    processor = gemma3.processor(merging_tokenizer())
    shown = [tiny_vlms.random_image(28, 28, seed) for seed in range(3)]
    content = [*[dict(type='image')] * 2, dict(type='text', text=question), dict(type='image')]
    messages = [dict(role='user', content=content), dict(role='assistant', content=[dict(type='text', text='yes')])]
    encode = EncodeConversation(processor)
    found = encode(dict(messages=messages, images=shown, source='one'))['inputs']
    text = encode.template.render(messages)[0]
    expected = processor(text=[text], images=shown, add_special_tokens=False)['input_ids'][0]
    assert found['input_ids'].tolist() == expected
    runs = {piece for piece in processor.tokenizer.convert_ids_to_tokens(expected) if set(piece) == {'Ċ'}}
    assert {'ĊĊ', 'ĊĊĊ', 'ĊĊĊĊ'} <= runs
    labelled = found['labels'][found['labels'] != -100]
    assert processor.tokenizer.decode(labelled) == 'yes<end_of_turn>'


def test_pan_and_scan_is_refused():
    processor = tiny_vlms.tiny_processor('gemma3')
    processor.image_processor.do_pan_and_scan = True
    with pytest.raises(ValueError, match='do_pan_and_scan=True .* set do_pan_and_scan=False'):
        EncodeConversation(processor)


def test_attention_that_takes_no_mask_of_images_is_refused(monkeypatch):
    model = tiny_vlms.tiny_family('gemma3').model
    monkeypatch.setattr(model.config.get_text_config(), '_attn_implementation_internal', 'flash_attention_2')
    with pytest.raises(ValueError, match="attn_implementation='flash_attention_2' takes no mask"):
        Gemma3Family(model)


def test_the_planned_image_has_its_frame():
    image = tiny_vlms.tiny_family('gemma3').largest_image({})
    found = tiny_vlms.tiny_processor('gemma3')(text=['<start_of_image>'], images=[tiny_vlms.random_image(90, 90, 0)])
    assert image.ids == list(found['input_ids'][0])[3:-2]  # Without <bos> and the line breaks around it.
