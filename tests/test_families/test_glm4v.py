"""GLM-4.1V, 4.5V and 4.6V: which template is theirs. tests/tiny_vlms/glm4v.py brings the tests of all families."""

import pytest
import tiny_vlms
import torch
from tiny_vlms import one_image, random_image, tiny_processor, token_id
from tiny_vlms import tiny_family as build

from mergemix_mm.datasets.conversations.chat_template import find_chat_template
from mergemix_mm.families import find_family
from mergemix_mm.models import HFVisionLanguageModel

IMAGE = tiny_vlms.image_text('glm4v')
QUESTION = dict(role='user', content=[dict(type='image'), dict(type='text', text='Q')])
ANSWER = dict(role='assistant', content=[dict(type='text', text='A')])
AGAIN = dict(role='user', content=[dict(type='text', text='R')])
# Prompts as the released templates write them; they mark no answers, and the later one may ask for no thoughts.
OF_4_1 = (
    '[gMASK]<sop>'
    "{% for turn in messages if turn.role == 'user' %}{{ '<|user|>\\n' }}{% for part in turn.content %}"
    f"{{{{ '{IMAGE}' if part.type == 'image' else part.text }}}}{{% endfor %}}{{% endfor %}}"
    "{{ '<|assistant|>\\n' if add_generation_prompt else '' }}"
)
OF_4_5 = OF_4_1.replace(
    "{{ '<|assistant|>\\n' if add_generation_prompt else '' }}",
    "{{ '/nothink' if enable_thinking is defined and not enable_thinking else '' }}<|assistant|>"
    "{{ '\\n<think></think>' if enable_thinking is defined and not enable_thinking else '' }}",
)


def test_the_prompt_of_the_released_template_tells_the_models_of_one_processor_apart():
    processor = tiny_processor('glm4v')
    for own, name in ((None, 'glm4v'), (OF_4_1, 'glm4v'), (OF_4_5, 'glm46v')):
        processor.chat_template = own
        assert find_chat_template(processor).name == name


def test_an_answer_without_thoughts_comes_after_an_empty_block_of_them():
    template = find_chat_template(tiny_processor('glm4v'), 'glm46v')
    text, spans = template.render([QUESTION, ANSWER, AGAIN, ANSWER])
    first = f'[gMASK]<sop><|user|>\n{IMAGE}Q/nothink<|assistant|>\n<think></think>\nA'
    assert text == f'{first}<|user|>\nR/nothink<|assistant|>\n<think></think>\nA<|user|>'
    assert [text[slice(*span)] for span in spans] == ['\nA<|user|>'] * 2
    assert template.render([QUESTION], generation_prompt=True)[0] == first[:-2]


def test_a_system_prompt_comes_first():
    system = dict(role='system', content=[dict(type='text', text='S.')])
    for name in ('glm4v', 'glm46v'):
        text, _ = find_chat_template(tiny_processor('glm4v'), name).render([system, QUESTION, ANSWER])
        assert text.startswith(f'[gMASK]<sop><|system|>\nS.<|user|>\n{IMAGE}Q')


def test_glm_4_6v_has_a_processor_of_its_own():
    pytest.importorskip('transformers.models.glm46v')
    from transformers import Glm46VImageProcessor, Glm46VProcessor, Glm46VVideoProcessor

    tokenizer = tiny_vlms.tiny_tokenizer('glm4v')
    processor = Glm46VProcessor(Glm46VImageProcessor(), tokenizer, Glm46VVideoProcessor())
    assert find_chat_template(processor).name == find_family('glm46v').chat_template == 'glm46v'


def test_an_image_counts_as_two_frames_in_the_limit_of_pixels():
    family = build('glm4v')
    assert family.largest_image(dict(size=dict(longest_edge=2 * 112 * 112))).num_tokens == 16
    assert family.largest_image({}).num_tokens == 7500  # 75 rows of 100, of the library's default.
    with pytest.raises(ValueError, match='max_pixels=784 is no option of the processor of GLM-4V, which ignores it'):
        family.largest_image(dict(max_pixels=784))
    start, end = (token_id('glm4v', token) for token in tiny_vlms.FRAMES['glm4v'])
    ids = one_image('glm4v', 28, 28)['input_ids'][0].tolist()
    assert ids[:3] == [start, family.image_token_id, end]


def test_the_projector_begins_with_the_convolution_that_joins_patches():
    vlm = HFVisionLanguageModel(config=tiny_vlms.tiny_config('glm4v'), trainable=['projector'])
    trained = {name.split('.')[3] for name, value in vlm.named_parameters() if value.requires_grad}
    assert trained == {'downsample', 'merger'}


def test_positions_of_an_image_are_those_of_its_grid():
    """Transposing the grid keeps all tokens and patches, and moves the hidden states through the positions."""
    family = build('glm4v')
    batch = tiny_vlms.tiny_batch('glm4v', [([random_image(56, 112, 0)], 'what?', ' that')])
    turned = dict(batch, image_grid_thw=batch['image_grid_thw'][:, [0, 2, 1]])
    with torch.no_grad():
        states = [family.base(**family.forward_kwargs(one)).last_hidden_state for one in (batch, turned)]
    assert (states[0] - states[1])[0, -1].abs().max() > 1e-2
