"""Aya Vision: tiles of its text and pixels. tests/tiny_vlms/aya_vision.py brings the tests of all families."""

import pytest
import tiny_vlms
import torch
from tiny_vlms import mixed_batch, one_image, random_image, tiny_processor
from tiny_vlms import tiny_family as build

from mergemix_mm.datasets import EncodeConversation
from mergemix_mm.models import HFVisionLanguageModel
from mergemix_mm.models.vlms import IMAGE, MARKER, PAD

START, END = '<|START_OF_TURN_TOKEN|>', '<|END_OF_TURN_TOKEN|>'
# As released: a system turn of its own in front, images before the text of a turn, and no mark of answers.
RELEASED = (
    f'{{{{ bos_token }}}}{START}<|SYSTEM_TOKEN|>Look closely.{END}\n'
    '{%- for message in messages -%}\n    ' + START + '{{ message.role | replace("user", "<|USER_TOKEN|>") '
    '| replace("assistant", "<|CHATBOT_TOKEN|><|START_RESPONSE|>") | replace("system", "<|SYSTEM_TOKEN|>") }}\n'
    "    {%- for item in message.content | selectattr('type', 'equalto', 'image') -%}\n<image>\n    {%- endfor -%}\n"
    "    {%- for item in message.content | selectattr('type', 'equalto', 'text') -%}\n{{ item.text }}\n"
    '    {%- endfor -%}\n    {%- if message.role == "assistant" -%}<|END_RESPONSE|>{%- endif -%}\n' + END + '\n'
    '{%- endfor -%}\n{%- if add_generation_prompt -%}\n' + START + '<|CHATBOT_TOKEN|><|START_RESPONSE|>\n{%- endif -%}'
)


def gradients(vlm):
    found = {name: value.grad for name, value in vlm.model.named_parameters() if value.grad is not None}
    vlm.zero_grad()
    return found


@pytest.mark.parametrize('window', [8, 512])
@pytest.mark.parametrize('side', ['left', 'right'])
def test_hidden_states_logits_loss_and_gradients_are_the_librarys(side, window):
    config = tiny_vlms.tiny_config('aya_vision')
    config['text_config'] |= dict(sliding_window=window)
    torch.manual_seed(0)
    vlm = HFVisionLanguageModel(config=config, trainable=['vision_tower', 'projector', 'language_model'])
    batch = mixed_batch('aya_vision', side)
    given = {key: value for key, value in batch.items() if key not in ('labels', 'original_sizes')}
    states = vlm.model.model(**given).last_hidden_state
    expected = vlm.model(**given, labels=batch['labels'])
    expected.loss.backward()
    wanted = gradients(vlm)
    hidden = vlm.hidden(batch)
    logits = vlm.head(hidden)
    assert logits.std() > 0.1
    torch.testing.assert_close(hidden, states, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits, expected.logits, atol=1e-5, rtol=1e-5)
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch['labels'][:, 1:].flatten())
    torch.testing.assert_close(loss, expected.loss, atol=1e-6, rtol=1e-6)
    loss.backward()
    torch.testing.assert_close(gradients(vlm), wanted, atol=1e-5, rtol=1e-4)
    assert wanted['model.multi_modal_projector.linear_1.weight'].abs().max() > 1e-4


def test_logits_are_not_scaled_as_in_the_librarys_model_with_images():
    """The one of text only would multiply them by `logit_scale`, 0.25 here."""
    family, batch = build('aya_vision'), one_image('aya_vision', 28, 28)
    assert family.model.config.text_config.logit_scale == 0.25
    kwargs = family.forward_kwargs(batch)
    with torch.no_grad():
        hidden = family.base(**kwargs).last_hidden_state
        torch.testing.assert_close(hidden @ family.head.weight.T, family.model(**kwargs).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('side', ['left', 'right'])
def test_modality_marks_the_tokens_of_tiles_and_both_ends_of_an_image(side):
    family, batch = build('aya_vision'), mixed_batch('aya_vision', side)
    found, tokenizer = family.modality(batch), tiny_processor('aya_vision').tokenizer
    texts = [tokenizer.decode(ids[kinds == MARKER]) for ids, kinds in zip(batch['input_ids'], found)]

    def marks(tiles):
        numbers = ''.join(f'TILE_{number}' for number in range(1, tiles + 1)) * (tiles > 1)
        return f'<|START_OF_IMG|>{numbers}TILE_GLOBAL<|END_OF_IMG|>'

    assert texts == [marks(6) + marks(3), '', marks(1), '']
    assert (found == IMAGE).sum() == 4 * (7 + 4 + 1)
    assert torch.equal(found == IMAGE, family.placeholders(batch))
    assert torch.equal(found == PAD, batch['attention_mask'] == 0)
    assert family.image_lengths(batch).tolist() == [28, 16, 4]


def test_tiles_are_found_where_a_tokenizer_splits_their_names():
    family, processor = build('aya_vision'), tiny_processor('aya_vision')
    processor.tile_token, processor.tile_global_token = 'PART', 'WHOLE'
    images = [random_image(40, 60, 0), random_image(100, 30, 1), random_image(28, 28, 2)]
    batch = dict(processor(text=['<image><image>x', '<image>'], images=images, padding=True, return_tensors='pt'))
    batch['original_sizes'] = torch.tensor([[40, 60], [100, 30], [28, 28]])
    assert family.image_lengths(batch).tolist() == [28, 16, 4]
    assert family.owners(batch).tolist() == [0, 0, 1]
    canvases = family.canvases(mixed_batch('aya_vision'))
    assert all(torch.equal(*pair) for pair in zip(family.canvases(batch), canvases, strict=True))
    marked = processor.tokenizer.decode(batch['input_ids'][0][family.modality(batch)[0] == MARKER])
    assert 'PART_2PART_3PART_4PART_5PART_6WHOLE<|END_OF_IMG|>' in marked


@pytest.mark.parametrize(('height', 'width'), tiny_vlms.SIZES)
def test_a_canvas_is_the_whole_image_at_the_size_of_its_grid(height, width):
    canvas = build('aya_vision').canvases(one_image('aya_vision', height, width))[0]
    processor = tiny_processor('aya_vision').image_processor
    size = dict(height=canvas.size(1), width=canvas.size(2))
    whole = processor(random_image(height, width, 0), size=size, crop_to_patches=False, return_tensors='pt')
    assert torch.equal(canvas, whole['pixel_values'][0])


def test_an_image_without_its_thumbnail_is_refused():
    family, batch = build('aya_vision'), one_image('aya_vision', 56, 84)
    last = int(family.placeholders(batch)[0].nonzero()[-1])
    cut = {key: batch[key][:, : last - 3] for key in ('input_ids', 'attention_mask')}
    with pytest.raises(ValueError, match='do not fit the 7 tiles of 4 tokens .* raise max_length'):
        family.owners(dict(batch, **cut))


@pytest.mark.parametrize('named', [None, 'aya_vision'])
def test_the_system_turn_of_a_release_is_read_from_its_template(named):
    processor = tiny_processor('aya_vision')
    processor.chat_template = RELEASED
    encode = EncodeConversation(processor, chat_template=named)
    assert encode.template.name == 'aya_vision'
    text = [dict(type='text', text='S.')]
    image = [dict(type='text', text='Q'), dict(type='image')]
    answer = [dict(type='text', text='A')]
    talk = [dict(role=role, content=one) for role, one in zip(('system', 'user', 'assistant'), (text, image, answer))]
    expected = processor.apply_chat_template(talk, tokenize=False)
    assert encode.template.render(talk)[0] == expected
    assert expected.startswith(f'<BOS_TOKEN>{START}<|SYSTEM_TOKEN|>Look closely.{END}{START}<|SYSTEM_TOKEN|>S.{END}')
    prompt = processor.apply_chat_template(talk[:2], tokenize=False, add_generation_prompt=True)
    assert encode.template.render(talk[:2], generation_prompt=True)[0] == prompt


def test_the_planned_image_is_written_like_the_processors():
    image, family = build('aya_vision').largest_image(dict(max_patches=6)), build('aya_vision')
    batch = one_image('aya_vision', 84, 56)
    found = family.modality(batch)[0]
    written = batch['input_ids'][0][(found == IMAGE) | (found == MARKER)]
    assert len(image.ids) == len(written)
    assert [one == family.image_token_id for one in image.ids] == (written == family.image_token_id).tolist()
    planned = dict(batch, input_ids=torch.tensor([[*image.ids, 1]]), attention_mask=None)
    assert family.image_lengths(planned).tolist() == [28]
