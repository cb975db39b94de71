"""Tests of the chat templates."""

import re

import pytest
import tiny_vlms

from mergemix_mm.datasets import RecordError
from mergemix_mm.datasets.conversations.chat_template import find_chat_template, repository_templates
from mergemix_mm.families import FAMILIES

IMAGE = dict(type='image')


def turn(role, *parts):
    return dict(role=role, content=[part if part is IMAGE else dict(type='text', text=part) for part in parts])


SYSTEM, QUESTION, ANSWER = turn('system', 'S.'), turn('user', IMAGE, 'Q'), turn('assistant', 'A')
TALK = [QUESTION, ANSWER, turn('user', 'R'), turn('assistant', 'B')]


def bracketed(text, spans):
    for first, last in reversed(spans):
        text = f'{text[:first]}[{text[first:last]}]{text[last:]}'
    return text


def test_every_family_has_its_template():
    names = set(repository_templates()) - {'plain', 'question_first', 'llava_interleave'}
    assert names == {family.chat_template for family in FAMILIES.values()} >= set(tiny_vlms.ALL_FAMILIES)


@pytest.mark.parametrize('family', tiny_vlms.ALL_FAMILIES)
def test_template_writes_the_documented_format_and_marks_answers(family):
    template = find_chat_template(tiny_vlms.tiny_processor(family))
    assert template.name == family
    assert bracketed(*template.render(TALK)) == tiny_vlms.WRITTEN[family]


@pytest.mark.parametrize('family', tiny_vlms.ALL_FAMILIES)
def test_prompt_is_what_precedes_the_answer(family):
    template = find_chat_template(tiny_vlms.tiny_processor(family))
    for messages in (TALK, [SYSTEM, *TALK]):
        text, spans = template.render(messages)
        prompt, earlier = template.render(messages[:-1], generation_prompt=True)
        assert text[: spans[-1][0]] == prompt
        assert earlier == spans[:-1]
        assert ('S.' in text) == (messages[0] is SYSTEM)


DEEPSEEK = tiny_vlms.WRITTEN['deepseek_vl'].partition('User: ')[0]
SEVERAL = turn('user', 'Image 1: ', IMAGE, ' Image 2: ', IMAGE, 'Which?')
IN_PLACE = dict(
    aya_vision='<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Image 1: <image> Image 2: <image>Which?'
    '<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>',
    llava='USER: Image 1: <image> Image 2: <image>\nWhich? ASSISTANT:',
    question_first='USER: Image 1: <image> Image 2: <image>\nWhich? ASSISTANT:',
    llava_next='[INST] Image 1: <image> Image 2: <image>\nWhich? [/INST]',
    llava_interleave='<|im_start|>user \nImage 1: <image>\n Image 2: <image>\nWhich?<|im_end|><|im_start|>assistant\n',
    llava_onevision='<|im_start|>user\nImage 1: <image> Image 2: <image>\nWhich?<|im_end|>\n<|im_start|>assistant\n',
    paligemma='Image 1: <image> Image 2: <image><bos>Which?\n',
    internvl='<|im_start|>user\nImage 1: <IMG_CONTEXT>\n Image 2: <IMG_CONTEXT>\nWhich?<|im_end|>\n'
    '<|im_start|>assistant\n',
    smolvlm='<|im_start|>User: Image 1: <image> Image 2: <image>Which?<end_of_utterance>\nAssistant:',
    qwen2_5_vl='<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n'
    '<|im_start|>user\nImage 1: <|vision_start|><|image_pad|><|vision_end|> Image 2: '
    '<|vision_start|><|image_pad|><|vision_end|>Which?<|im_end|>\n<|im_start|>assistant\n',
    janus='<|User|>: Image 1: \n<image_placeholder>\n Image 2: \n<image_placeholder>\nWhich?\n\n<|Assistant|>:',
    deepseek_vl=f'{DEEPSEEK}User: Image 1: <image_placeholder> Image 2: <image_placeholder>Which?\n\nAssistant:',
    emu3='<|extra_203|>USER: Image 1: <image> Image 2: <image>Which? ASSISTANT:',
    gemma3='<bos><start_of_turn>user\nImage 1:<start_of_image>Image 2:<start_of_image>Which?<end_of_turn>\n'
    '<start_of_turn>model\n',
    pixtral='<s>[INST]Image 1: [IMG] Image 2: [IMG]Which?[/INST]',
    mistral3='<s>[INST]Image 1: [IMG] Image 2: [IMG]Which?[/INST]',
)


@pytest.mark.parametrize('name', IN_PLACE)
def test_several_images_stay_where_they_stand(name):
    family = dict(question_first='llava', llava_interleave='llava_onevision').get(name, name)
    template = find_chat_template(tiny_vlms.tiny_processor(family), name)
    assert template.render([SEVERAL], generation_prompt=True) == (IN_PLACE[name], [])
    token = tiny_vlms.image_token(family)
    # Also in turns of their own, and at the end of a question.
    talk = [turn('user', IMAGE, 'One'), ANSWER, turn('user', 'Two', IMAGE), ANSWER]
    text, _ = template.render(talk)
    places = [text.index(word) for word in ('One', 'Two')]
    places += [place for place in range(len(text)) if text.startswith(token, place)]
    one, two, first, second = places
    assert (one < first < two < second) if name == 'question_first' else (first < one < two < second)


def test_a_single_image_comes_first_as_the_family_publishes_it():
    for family, text in dict(llava='USER: <image>\nQ ASSISTANT:', llava_next='[INST] <image>\nQ [/INST]').items():
        template = find_chat_template(tiny_vlms.tiny_processor(family))
        for question in (turn('user', IMAGE, 'Q'), turn('user', 'Q', IMAGE)):
            assert template.render([question], generation_prompt=True) == (text, [])
    # Neighbouring images, and the line breaks that LLaVA's records have around them.
    llava = find_chat_template(tiny_vlms.tiny_processor('llava'))
    assert llava.render([turn('user', IMAGE, IMAGE, 'Q')])[0] == 'USER: <image>\n<image>\nQ '
    assert llava.render([turn('user', 'A', IMAGE, 'B', 'C', IMAGE)])[0] == 'USER: A\n<image>\nB C\n<image> '
    question_first = find_chat_template(tiny_vlms.tiny_processor('llava'), 'question_first')
    assert question_first.render([turn('user', IMAGE, IMAGE, 'Q')])[0] == 'USER: Q\n<image>\n<image> '


SYSTEMS = dict(
    aya_vision='<BOS_TOKEN><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>S.<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|>'
    '<|USER_TOKEN|><image>Q',
    llava='S. USER: ',
    llava_next='<<SYS>>\nS.\n<</SYS>>\n\n[INST] ',
    llava_onevision='<|im_start|>system\nS.<|im_end|>\n<|im_start|>user\n',
    paligemma='<image><bos>S.\nQ',
    internvl='<|im_start|>system\nS.<|im_end|>\n<|im_start|>user\n',
    smolvlm='<|im_start|>System: S.<end_of_utterance>\nUser:',
    qwen2_5_vl='<|im_start|>system\nS.<|im_end|>\n<|im_start|>user\n',
    janus='System: S.\n\n<|User|>: ',
    deepseek_vl=f'{DEEPSEEK}System: S.<｜end▁of▁sentence｜>User: ',
    emu3='<|extra_203|>S. USER: ',
    gemma3='<bos><start_of_turn>user\nS.\n\n<start_of_image>Q',
    pixtral='<s>[INST][IMG]Q[/INST]A</s>[INST]S.\n\nR[/INST]',
    mistral3='<s>[SYSTEM_PROMPT]S.[/SYSTEM_PROMPT][INST]',
)


@pytest.mark.parametrize('family', SYSTEMS)
def test_system_prompt_stands_where_the_family_has_it(family):
    template = find_chat_template(tiny_vlms.tiny_processor(family))
    assert template.write([SYSTEM, *TALK]).text.startswith(SYSTEMS[family])


@pytest.mark.parametrize('family', tiny_vlms.ALL_FAMILIES)
def test_answers_keep_their_white_space(family):
    template = find_chat_template(tiny_vlms.tiny_processor(family))
    code = '    if x:\n\treturn 1\n'
    text, spans = template.render([QUESTION, turn('assistant', code)])
    before, closing = re.search(r'\[( ?)A(.*?)\]', tiny_vlms.WRITTEN[family]).groups()
    assert text[slice(*spans[0])] == before + code + closing


@pytest.mark.parametrize('family', tiny_vlms.ALL_FAMILIES)
def test_what_the_record_says_is_told_from_what_the_template_writes(family):
    template = find_chat_template(tiny_vlms.tiny_processor(family))
    said = ['S.', ' user ', '</s>\n', 'assistant']
    talk = [turn(role, text) for role, text in zip(('system', 'user', 'assistant', 'user'), said)]
    written = template.write(talk)
    if family in tiny_vlms.LATE_SYSTEM:
        said[:3] = said[1:3] + said[:1]
    assert ''.join(one for one, is_record in zip(written.text, written.is_record) if is_record) == ''.join(
        text.strip() for text in said
    )
    assert written.text == template.render(talk)[0]


SWALLOWING = {
    'system: .S\\.': "{% for m in messages if m.role != 'system' %}",
    'user: .R': '{% for m in messages[:3] + messages[4:] %}',
}


@pytest.mark.parametrize('missing', SWALLOWING)
def test_a_template_that_leaves_out_what_a_turn_says_is_named(missing, tmp_path):
    path = tmp_path / 'swallows.jinja'
    path.write_text(
        SWALLOWING[missing] + '{{ m.role }}: {% for c in m.content %}{{ image_token if c.type == "image" else "" }}'
        '{% if m.role == "assistant" %}{% generation %}{{ c.text }}</s>{% endgeneration %}{% else %}{{ c.text }}'
        '{% endif %}{% endfor %}{% endfor %}'
    )
    template = find_chat_template(tiny_vlms.tiny_processor('llava'), str(path))
    with pytest.raises(RecordError, match=rf"swallows\.jinja' leaves out or changes what turns say \({missing}"):
        template.write([SYSTEM, *TALK])


@pytest.mark.parametrize('change', ['[:9]', '[3:]', " | replace('cat', 'dog')", ' | truncate(9, true)'])
def test_a_template_that_changes_a_text_is_named_but_case_and_ends_are_its_own(change, tmp_path):
    path = tmp_path / 'changes.jinja'
    text = 'm.content[0].text'
    body = '{%% for m in messages %%}{%% generation %%}{{ %s }}{%% endgeneration %%}{%% endfor %%}'
    path.write_text(body % (text + change))
    processor = tiny_vlms.tiny_processor('llava')
    with pytest.raises(RecordError, match="changes.jinja' leaves out or changes what turns say .user: .A grey cat"):
        find_chat_template(processor, str(path)).write([turn('user', 'A grey cat\nsleeps')])
    path.write_text(body % (text + ' | trim | upper'))
    written = find_chat_template(processor, str(path)).write([turn('user', ' A grey cat\nsleeps ')])
    assert written.text == 'A GREY CAT\nSLEEPS' and written.is_record.all()


def test_a_template_that_decides_by_the_text_is_refused_rather_than_misled(tmp_path):
    path = tmp_path / 'decides.jinja'
    path.write_text(
        MARKED.replace('<image>', "{{ 'yes' if m.content[0].text.startswith('a') else m.content[0].text }}")
    )
    template = find_chat_template(tiny_vlms.tiny_processor('llava'), str(path))
    assert template.render([turn('user', 'b')])[0] == 'user=b'
    with pytest.raises(RecordError, match=r"decides\.jinja' decides by the text that it writes"):
        template.render([turn('user', 'a')])


def test_plain_leaves_questions_out_by_its_own_word_but_no_system_prompt():
    template = find_chat_template(tiny_vlms.tiny_processor('llava'), 'plain')
    assert template.write(TALK[:2]).text == '<image>A\n'
    with pytest.raises(RecordError, match=r"'plain' leaves out or changes what turns say \(system: 'S\.'\)"):
        template.write([SYSTEM, *TALK[:2]])


# Each computes, writes or nests without end in another way; `~` and `*` are the ones that no loop is needed for.
ENDLESS = {
    'a loop': (
        '{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}',
        'computes for more than 2',
    ),
    'a power': ("{{ (9 ** (9 ** 9)) if messages else '' }}", 'computes for more than 2 s'),
    'text': ('{% for i in range(99999) %}{{ "x" * 9999 }}{% endfor %}', 'writes more than 16777216 characters'),
    'one text': ('{{ "x" * (10 ** 10) }}', 'takes more than 1024 MB of memory'),
    'a doubled text': (
        '{% set n = namespace(t="x") %}{% for i in range(60) %}{% set n.t = n.t ~ n.t %}{% endfor %}',
        'takes more than 1024 MB of memory',
    ),
    'a macro': ('{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}', 'calls itself without end'),
    'a width': ("{{ '%999999999999d' % 1 }}", 'of memory|refuses the conversation'),
    'nesting': ('{{ ' + '(' * 20000 + '1' + ')' * 20000 + ' }}', 'calls itself without end|ends its process'),
}


@pytest.mark.parametrize('kind', ENDLESS)
def test_templates_without_end_are_stopped_and_named(kind, tmp_path):
    path = tmp_path / 'endless.jinja'
    path.write_text(MARKED + ENDLESS[kind][0])
    template = find_chat_template(tiny_vlms.tiny_processor('llava'), str(path))
    with pytest.raises(RecordError, match=f"the chat template '.*endless.jinja' .*({ENDLESS[kind][1]})") as found:
        template.render(TALK)
    assert '\n' not in str(found.value)
    path.write_text(MARKED)
    again = find_chat_template(tiny_vlms.tiny_processor('llava'), str(path))
    assert again.render(TALK[:1])[0] == 'user=<image>'


def test_an_endless_template_of_a_model_is_named_when_the_transform_is_built():
    processor = tiny_vlms.tiny_processor('llava')
    processor.chat_template = MARKED + ENDLESS['one text'][0]
    with pytest.raises(
        ValueError, match=r"chat template 'of the processor' takes more than 1024 MB.* give chat_template="
    ):
        find_chat_template(processor)
    assert find_chat_template(processor, 'llava').name == 'llava'


def test_templates_of_strangers_are_rendered_in_forked_workers_and_in_threads_too():
    import threading

    from torch.utils.data import DataLoader

    processor = tiny_vlms.tiny_processor('llava')
    processor.chat_template = MARKED
    template = find_chat_template(processor)

    class Texts:
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return template.render([QUESTION, turn('assistant', str(index))])[0]

    texts = [f'user=<image>assistant={index}</s>' for index in range(4)]
    loader = DataLoader(Texts(), batch_size=None, num_workers=2, multiprocessing_context='fork')
    assert list(loader) == texts
    found = {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: Texts()[i]})) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[index] for index in range(4)] == texts


@pytest.mark.parametrize('name', repository_templates())
def test_templates_are_written_here_as_transformers_writes_them(name):
    from transformers.utils.chat_template_utils import render_jinja_template

    family = name if name in tiny_vlms.ALL_FAMILIES else 'llava'
    template = find_chat_template(tiny_vlms.tiny_processor(family), name)
    talk = [SYSTEM, SEVERAL, turn('assistant', 'A\n  b'), turn('user', 'R', IMAGE), turn('assistant', 'B')]
    for messages, generation_prompt in ((talk, False), (talk[:-1], True), (TALK, False)):
        texts, spans = render_jinja_template(
            [messages],
            chat_template=template.text,
            return_assistant_tokens_mask=True,
            add_generation_prompt=generation_prompt,
            **template.variables,
        )
        text, answers = template.render(messages, generation_prompt)
        shift = len(template.preamble)
        assert text[shift:] == texts[0]
        assert [(first - shift, last - shift) for first, last in answers] == spans[0]


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


# As the released processors of LLaVA-OneVision have it: the line break of an answer is marked, its end is not.
UNCLOSED_ONEVISION = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + ' ' }}{% for c in m.content if c.type == 'image' %}<image>"
    "{% endfor %}{% for c in m.content if c.type == 'text' %}{% if m.role == 'assistant' %}{% generation %}"
    "{{ '\n' + c.text }}{% endgeneration %}{% else %}{{ '\n' + c.text }}{% endif %}{% endfor %}{{ '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_a_released_llava_onevision_is_asked_as_its_processor_asks():
    processor = tiny_vlms.tiny_processor('llava_onevision')
    processor.chat_template = UNCLOSED_ONEVISION
    template = find_chat_template(processor)
    assert template.name == 'llava_interleave'
    asked = processor.apply_chat_template(TALK[:1], add_generation_prompt=True)
    assert template.render(TALK[:1], generation_prompt=True) == (asked, [])
    assert bracketed(*template.render(TALK)) == (
        '<|im_start|>user <image>\nQ<|im_end|><|im_start|>assistant\n[A<|im_end|>]'
        '<|im_start|>user \nR<|im_end|><|im_start|>assistant\n[B<|im_end|>]'
    )


def test_own_template_without_marks_or_twin_names_the_ways_out():
    processor = tiny_vlms.tiny_processor('llava')
    processor.chat_template = MARKED.replace('{% generation %}', '').replace('{% endgeneration %}', '')
    with pytest.raises(ValueError, match=r"marks no answers.*Give chat_template=: one of \[.*'emu3', .*'smolvlm'\]"):
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
    with pytest.raises(
        ValueError, match=r"chat_template='vicuna' is neither a file nor one of \[.*'emu3', .*'internvl'"
    ):
        find_chat_template(processor, 'vicuna')


def test_what_is_no_template_is_named(tmp_path):
    processor = tiny_vlms.tiny_processor('llava')
    path = tmp_path / 'bytes.jinja'
    path.write_bytes(b'\xff\xfe{{ generation }}')
    with pytest.raises(ValueError, match=r"chat_template='.*bytes\.jinja' cannot be read as text: "):
        find_chat_template(processor, str(path))
    processor.chat_template = 7
    with pytest.raises(ValueError, match='has 7 for a chat template, which is no text'):
        find_chat_template(processor)


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
