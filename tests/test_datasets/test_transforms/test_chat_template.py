"""Tests of the chat templates."""

import pytest
import tiny_vlms

from mergemix_mm.datasets import RecordError
from mergemix_mm.datasets.transforms.chat_template import CLASS_TEMPLATES, find_chat_template, repository_templates

IMAGE = dict(type='image')


def turn(role, *parts):
    return dict(role=role, content=[part if part is IMAGE else dict(type='text', text=part) for part in parts])


SYSTEM, QUESTION, ANSWER = turn('system', 'S.'), turn('user', IMAGE, 'Q'), turn('assistant', 'A')
TALK = [QUESTION, ANSWER, turn('user', 'R'), turn('assistant', 'B')]
# The documented formats of the released models; answers and what ends them between brackets.
QWEN = '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n'
WRITTEN = dict(
    llava='USER: <image>\nQ ASSISTANT:[ A</s>]USER: R ASSISTANT:[ B</s>]',
    llava_next='[INST] <image>\nQ [/INST][ A</s>][INST] R [/INST][ B</s>]',
    paligemma='<image><bos>Q\n[A<eos>]R\n[B<eos>]',
    internvl='<|im_start|>user\n<IMG_CONTEXT>\nQ<|im_end|>\n<|im_start|>assistant\n[A<|im_end|>]\n'
    '<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\n[B<|im_end|>]\n',
    smolvlm='<|im_start|>User:<image>Q<end_of_utterance>\nAssistant:[ A<end_of_utterance>]\n'
    'User: R<end_of_utterance>\nAssistant:[ B<end_of_utterance>]\n',
    qwen2_5_vl=QWEN + '<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Q<|im_end|>\n'
    '<|im_start|>assistant\n[A<|im_end|>]\n<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\n[B<|im_end|>]\n',
    janus='<|User|>: <image_placeholder>\nQ\n\n<|Assistant|>:[ A<｜end▁of▁sentence｜>]'
    '<|User|>: R\n\n<|Assistant|>:[ B<｜end▁of▁sentence｜>]',
    emu3='<|extra_203|>USER: <image>Q ASSISTANT:[ A<|extra_204|>]USER: R ASSISTANT:[ B<|extra_204|>]',
)


def bracketed(text, spans):
    for first, last in reversed(spans):
        text = f'{text[:first]}[{text[first:last]}]{text[last:]}'
    return text


def test_every_family_has_its_template():
    assert set(WRITTEN) == set(tiny_vlms.ALL_FAMILIES) == set(repository_templates()) - {'plain', 'question_first'}
    assert set(CLASS_TEMPLATES.values()) == set(tiny_vlms.ALL_FAMILIES)


@pytest.mark.parametrize('family', tiny_vlms.ALL_FAMILIES)
def test_template_writes_the_documented_format_and_marks_answers(family):
    template = find_chat_template(tiny_vlms.tiny_processor(family))
    assert template.name == family
    assert bracketed(*template.render(TALK)) == WRITTEN[family]


@pytest.mark.parametrize('family', tiny_vlms.ALL_FAMILIES)
def test_prompt_is_what_precedes_the_answer(family):
    template = find_chat_template(tiny_vlms.tiny_processor(family))
    for messages in (TALK, [SYSTEM, *TALK]):
        text, spans = template.render(messages)
        prompt, earlier = template.render(messages[:-1], generation_prompt=True)
        assert text[: spans[-1][0]] == prompt
        assert earlier == spans[:-1]
        assert ('S.' in text) == (messages[0] is SYSTEM)


def test_plain_template_is_image_caption_and_line_break():
    template = find_chat_template(tiny_vlms.tiny_processor('llava'), 'plain')
    assert bracketed(*template.render(TALK[:2])) == '<image>[A\n]'
    assert bracketed(*template.render(TALK[2:])) == '[B\n]'
    assert template.render([QUESTION], generation_prompt=True) == ('<image>', [])


def test_question_first_is_llava_with_the_image_behind_the_question():
    template = find_chat_template(tiny_vlms.tiny_processor('llava'), 'question_first')
    assert bracketed(*template.render(TALK)) == 'USER: Q\n<image> ASSISTANT:[ A</s>]USER: R ASSISTANT:[ B</s>]'
    prompt, spans = template.render([SYSTEM, *TALK[:3]], generation_prompt=True)
    assert bracketed(prompt, spans) == 'S. USER: Q\n<image> ASSISTANT:[ A</s>]USER: R ASSISTANT:'


def test_interleaved_texts_are_kept_apart():
    for family in ('llava', 'llava_next', 'paligemma'):
        text = find_chat_template(tiny_vlms.tiny_processor(family)).render([turn('user', 'One', IMAGE, 'two')])[0]
        assert 'One two' in text


MARKED = (
    '{% for m in messages %}{{ m.role }}={% if m.role == "assistant" %}{% generation %}{{ m.content[0].text }}</s>'
    '{% endgeneration %}{% else %}<image>{% endif %}{% endfor %}{% if add_generation_prompt %}assistant={% endif %}'
)
# As llava-hf's checkpoints have it: answers are marked, but nothing ends them.
UNCLOSED_LLAVA = (
    "{% for m in messages %}{{ m.role.upper() + ': ' }}{% for c in m.content if c.type == 'image' %}{{ '<image>\n' }}"
    "{% endfor %}{% for c in m.content if c.type == 'text' %}{% if m.role == 'assistant' %}{% generation %}"
    "{{ c.text + ' ' }}{% endgeneration %}{% else %}{{ c.text + ' ' }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
UNMARKED_MISTRAL = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' }}{% for c in m.content if c.type == 'image' %}"
    "{{ '<image>\n' }}{% endfor %}{{ m.content[-1].text + ' [/INST]' }}{% else %}{{ m.content[0].text + '</s> ' }}"
    '{% endif %}{% endfor %}'
)


@pytest.mark.parametrize(
    'own, name', [(MARKED, 'of the processor'), (UNCLOSED_LLAVA, 'llava'), (UNMARKED_MISTRAL, 'llava_next')]
)
@pytest.mark.parametrize('family', ['llava', 'llava_next'])
def test_own_template_is_used_if_it_marks_whole_answers_or_else_its_twin(family, own, name):
    processor = tiny_vlms.tiny_processor(family)
    processor.chat_template = own
    assert find_chat_template(processor).name == name
    processor.chat_template = dict(default=own, tool_use='x')
    assert find_chat_template(processor).name == name


def test_own_template_without_marks_or_twin_names_the_ways_out():
    processor = tiny_vlms.tiny_processor('llava')
    processor.chat_template = MARKED.replace('{% generation %}', '').replace('{% endgeneration %}', '')
    with pytest.raises(ValueError, match=r"marks no answers.*Give chat_template=: one of \['emu3', .*'smolvlm'\]"):
        find_chat_template(processor)
    processor.chat_template = '{% for m in messages %}{{ m.role + m.content }}{% endfor %}'  # for plain strings
    with pytest.raises(ValueError, match='marks no answers'):
        find_chat_template(processor)
    processor.chat_template = MARKED.replace('</s>', '')
    with pytest.raises(ValueError, match='ends no answer with a special token'):
        find_chat_template(processor)
    assert find_chat_template(processor, 'llava').name == 'llava'


def test_unknown_processor_without_template_names_the_ways_out():
    class Other(type(tiny_vlms.tiny_processor('llava'))):
        pass

    processor = tiny_vlms.tiny_processor('llava')
    processor.__class__ = Other
    with pytest.raises(
        ValueError, match=r'Other has no chat template, so labels cannot be found\. Give chat_template='
    ):
        find_chat_template(processor)


def test_template_can_be_a_file_that_marks_answers(tmp_path):
    path = tmp_path / 'mine.jinja'
    path.write_text(MARKED)
    processor = tiny_vlms.tiny_processor('llava')
    assert bracketed(*find_chat_template(processor, str(path)).render(TALK[:2])) == 'user=<image>assistant=[A</s>]'
    path.write_text('{{ messages }}')
    with pytest.raises(ValueError, match=r'mine\.jinja\' marks no answers; put \{% generation %\}'):
        find_chat_template(processor, str(path))
    with pytest.raises(ValueError, match=r"chat_template='vicuna' is neither a file nor one of \['emu3', 'internvl'"):
        find_chat_template(processor, 'vicuna')


def test_a_template_that_refuses_is_an_error_of_the_record(tmp_path):
    path = tmp_path / 'strict.jinja'
    path.write_text('{{ raise_exception("no system turns") }}' + MARKED)
    template = find_chat_template(tiny_vlms.tiny_processor('llava'), str(path))
    with pytest.raises(RecordError, match='refuses the conversation: no system turns'):
        template.render(TALK)


def test_system_prompt_that_janus_adds_to_every_text_is_written_once():
    processor = tiny_vlms.tiny_processor('janus')
    processor.use_default_system_prompt = True
    text, spans = find_chat_template(processor).render(TALK)
    assert text.startswith('You are a helpful language and vision assistant.')
    assert [text[slice(*span)] for span in spans] == [' A<｜end▁of▁sentence｜>', ' B<｜end▁of▁sentence｜>']
