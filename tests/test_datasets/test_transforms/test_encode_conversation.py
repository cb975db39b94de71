"""Tests of EncodeConversation, for the real processor of every family."""

import pickle
from functools import cache

import pytest
import tiny_vlms
import torch

from mergemix_mm.datasets import EncodeConversation, RecordError
from mergemix_mm.datasets.conversations.formats import parse_conversation
from mergemix_mm.families.base import family_of

FAMILIES = tiny_vlms.ALL_FAMILIES
IMAGE = dict(type='image')
CLOSING = tiny_vlms.CLOSING


@cache
def processor(family):
    return tiny_vlms.tiny_processor(family)


def turn(role, *parts):
    return dict(role=role, content=[part if part is IMAGE else dict(type='text', text=part) for part in parts])


def record(*messages, sizes=None, **extra):
    num = sum(part is IMAGE for message in messages for part in message['content'])
    sizes = sizes or [(40, 60), (70, 30), (28, 28)][:num]
    images = [tiny_vlms.random_image(*size, seed) for seed, size in enumerate(sizes)]
    return dict(messages=list(messages), images=images, source='talk.json:3', **extra)


def single():
    return record(turn('user', IMAGE, 'What is it?'), turn('assistant', 'A cät, 猫.'), id='one')


def text_only():
    return record(turn('system', 'Be brief.'), turn('user', 'Hi'), turn('assistant', 'Hello'))


def multi():
    return record(
        turn('user', IMAGE, 'What is it?'),
        turn('assistant', 'A cät, 猫.'),
        turn('user', 'And', IMAGE, IMAGE, 'these?'),
        turn('assistant', 'Two dogs\nin a row'),
    )


RECORDS = dict(single=single, text_only=text_only, multi=multi)


def encode(family, record, **kwargs):
    return EncodeConversation(processor(family), **kwargs)(record)['inputs']


def labelled_runs(family, inputs):
    """The texts of neighbouring labelled tokens."""
    runs, previous = [], False
    for token in inputs['labels'].tolist():
        if token != -100:
            runs[-1:] = [runs[-1] + [token]] if previous else [*runs[-1:], [token]]
        previous = token != -100
    return [processor(family).tokenizer.decode(run) for run in runs]


def image_token_id(family):
    return tiny_vlms.token_id(family, tiny_vlms.feature_token(family))


def answers_of(family, record):
    found = [message['content'][0]['text'] for message in record['messages'] if message['role'] == 'assistant']
    return [text + CLOSING[family] for text in found]


@pytest.mark.parametrize('kind', RECORDS)
@pytest.mark.parametrize('family', FAMILIES)
def test_exactly_the_answers_and_their_end_tokens_are_labelled(family, kind):
    given = RECORDS[kind]()
    inputs = encode(family, given)
    # The space behind a role is generated too, where the template has one.
    space = ' ' if '[ A' in tiny_vlms.WRITTEN[family] else ''
    assert labelled_runs(family, inputs) == [space + answer for answer in answers_of(family, given)]
    at = inputs['labels'] != -100
    assert torch.equal(inputs['labels'][at], inputs['input_ids'][at])
    assert inputs['input_ids'].shape == inputs['labels'].shape == inputs['attention_mask'].shape
    assert inputs['attention_mask'].all()


@pytest.mark.parametrize('kind', RECORDS)
@pytest.mark.parametrize('family', [family for family in FAMILIES if family not in ('paligemma', 'emu3')])
def test_tokens_and_images_are_those_of_the_processor(family, kind):
    given = RECORDS[kind]()
    encoder = EncodeConversation(processor(family))
    text, _ = encoder.template.render(given['messages'])
    images = dict(images=tiny_vlms.given_images(family, [given['images']])) if given['images'] else {}
    bos = processor(family).tokenizer.bos_token
    output = processor(family)(
        text=[text], return_tensors='pt', add_special_tokens=not (bos and text.startswith(bos)), **images
    )
    inputs = encoder(given)['inputs']
    for made in ('mm_token_type_ids', 'token_type_ids'):  # Families make them of the placeholders.
        output.pop(made, None)
    for key, value in output.items():
        assert torch.equal(inputs[key], value[0] if key in ('input_ids', 'attention_mask') else value), key
    assert set(inputs) - set(output) == {'labels', 'original_sizes', 'pad_token_id'}


def test_emu3_matches_its_processor_which_writes_the_first_token_itself():
    given = single()
    encoder = EncodeConversation(processor('emu3'))
    text, _ = encoder.template.render(given['messages'])
    output = processor('emu3')(text=[text.removeprefix('<|extra_203|>')], images=given['images'], return_tensors='pt')
    inputs = encoder(given)['inputs']
    assert set(output) == {'input_ids', 'attention_mask', 'pixel_values', 'image_sizes'}
    for key, value in output.items():
        assert torch.equal(inputs[key], value[0] if key in ('input_ids', 'attention_mask') else value), key
    # Its own sizes for images of one sample, which the processor alone would not give.
    assert encode('emu3', multi())['image_sizes'].tolist() == [[6, 8], [12, 4], [8, 8]]


def test_paligemma_matches_its_processor_with_prefix_and_suffix():
    given = single()
    output = processor('paligemma')(
        text='<image>What is it?', images=given['images'], suffix='A cät, 猫.', return_tensors='pt'
    )
    inputs = encode('paligemma', given)
    assert set(output) == {'input_ids', 'attention_mask', 'token_type_ids', 'pixel_values', 'labels'}
    for key, value in output.items():
        assert torch.equal(inputs[key], value if key == 'pixel_values' else value[0]), key


def test_paligemma_has_everything_behind_the_first_answer_in_its_suffix():
    inputs = encode('paligemma', multi())
    first = int((inputs['labels'] != -100).nonzero()[0])
    assert inputs['token_type_ids'].tolist() == [0] * first + [1] * (len(inputs['input_ids']) - first)
    assert encode('paligemma', multi(), generate=True)['token_type_ids'].shape == (
        len(encode('paligemma', multi(), generate=True)['input_ids']),
    )


@pytest.mark.parametrize('family', FAMILIES)
def test_original_sizes_are_height_and_width_of_each_image(family):
    assert encode(family, multi())['original_sizes'].tolist() == [[40, 60], [70, 30], [28, 28]]
    inputs = encode(family, text_only())
    assert inputs['original_sizes'].shape == (0, 2)
    assert not any('pixel' in key or 'grid' in key for key in inputs)


@pytest.mark.parametrize('family', FAMILIES)
def test_truncation_at_every_length_never_cuts_an_image(family):
    if family_of(processor(family)).tiles_single_images:
        pytest.skip('the tokens of an image depend on the others: test_llava_onevision.py')
    given = record(
        turn('user', IMAGE, 'Q'),
        turn('assistant', 'Yes'),
        turn('user', IMAGE, IMAGE, 'R'),
        turn('assistant', 'No'),
        sizes=[(28, 28), (40, 60), (28, 30)],
    )
    whole = encode(family, given)
    start, end = (mark or None for mark in tiny_vlms.image_text(family).split(tiny_vlms.image_token(family)))
    spans = image_spans(family, given, start, end)
    assert len(spans) == 3
    kept_counts = set()
    encoder = EncodeConversation(processor(family))
    for max_length in range(1, len(whole['input_ids']) + 1):
        encoder.max_length = max_length
        cut = next((first for first, last in spans if last > max_length), max_length)
        expected = whole['input_ids'][: min(cut, max_length)]
        if (whole['labels'][: len(expected)] == -100).all():
            with pytest.raises(RecordError, match=f'talk.json:3: all answers are cut off by max_length={max_length}'):
                encoder(given)
            continue
        inputs = encoder(given)['inputs']
        assert torch.equal(inputs['input_ids'], expected)
        assert torch.equal(inputs['labels'], whole['labels'][: len(expected)])
        num_kept = sum(last <= max_length for _, last in spans)
        kept_counts.add(num_kept)
        assert len(inputs['original_sizes']) == num_kept
        fewer = dict(given, images=given['images'][:num_kept], messages=[turn('user', *[IMAGE] * num_kept, 'x'),
                     turn('assistant', 'y')])  # fmt: skip
        for key, value in encode(family, fewer).items():
            if 'pixel' in key or key in ('image_sizes', 'image_grid_thw'):
                assert torch.equal(inputs[key], value), key
    assert kept_counts == {1, 2, 3}


def image_spans(family, given, start, end):
    """First and last (exclusive) token of each image with its marks, by encoding one image after the other alone."""
    tokenizer = processor(family).tokenizer
    lengths = []
    for image in given['images']:
        one = dict(given, images=[image], messages=[turn('user', IMAGE, 'x'), turn('assistant', 'y')])
        text, _ = EncodeConversation(processor(family)).template.render(one['messages'])
        text = text.replace(tiny_vlms.image_token(family), tiny_vlms.feature_token(family))
        bos = tokenizer.bos_token
        special = family != 'paligemma' and not (bos and text.startswith(bos))
        around = len(''.join(tiny_vlms.margins(family)))
        lengths.append(len(encode(family, one)['input_ids']) - len(tokenizer(text, add_special_tokens=special)['input_ids']) + 1 - around)  # fmt: skip # noqa: E501
    ids = encode(family, given)['input_ids'].tolist()
    spans, place, frame = [], 0, tiny_vlms.FRAMES.get(family, ())
    for length in lengths:
        begin = next(i for i in range(place, len(ids)) if ids[i] == image_token_id(family))
        # Marks of the processor stand directly before its first placeholder.
        while tokenizer.convert_ids_to_tokens(ids[begin - 1]) in (
            '<img>', '<begin_of_image>', '<fake_token_around_image>', '<global-img>', '<row_1_col_1>',
            'TILE_1', 'TILE_GLOBAL', '<|image start|>', *'0123456789*', '<|image token|>',
            *(frame if start is None else ())
        ):  # fmt: skip
            if begin - 1 < place:
                break
            begin -= 1
        place = begin + length
        first, last = begin, place
        if start is not None:
            assert tokenizer.convert_ids_to_tokens([ids[first - 1], ids[last]]) == [start, end]
            first, last = first - 1, last + 1
        spans.append((first, last))
    return spans


@pytest.mark.parametrize('family', FAMILIES)
def test_generation_gets_the_prompt_and_the_answer_beside_it(family):
    given = multi()
    encoder = EncodeConversation(processor(family), generate=True)
    output = encoder(given)
    whole = encode(family, given)
    # The prompt is what precedes the last labelled run.
    last = max(i for i in range(1, len(whole['labels'])) if whole['labels'][i] != -100 and whole['labels'][i - 1] == -100)  # fmt: skip # noqa: E501
    assert torch.equal(output['inputs']['input_ids'], whole['input_ids'][:last])
    assert 'labels' not in output['inputs']
    assert output['data_samples'].gt_answer == 'Two dogs\nin a row'
    assert encoder(dict(given, gt_answer=['a', 'b']))['data_samples'].gt_answer == ['a', 'b']
    question = dict(given, messages=given['messages'][:-1])
    asked = encoder(question)
    assert torch.equal(asked['inputs']['input_ids'], output['inputs']['input_ids'])
    assert 'gt_answer' not in asked['data_samples']


def test_a_prompt_that_does_not_fit_is_refused():
    length = len(encode('llava', single(), generate=True)['input_ids'])
    encode('llava', single(), generate=True, max_length=length)
    with pytest.raises(RecordError, match=f'the prompt has {length} tokens, more than max_length={length - 1}'):
        encode('llava', single(), generate=True, max_length=length - 1)


@pytest.mark.parametrize('family', FAMILIES)
def test_pairs_label_their_last_answers_only(family):
    given = multi()
    given['rejected'] = [*given['messages'][:-1], turn('assistant', 'Nothing')]
    inputs = encode(family, given)
    assert [run.strip() for run in labelled_runs(family, inputs)] == ['Two dogs\nin a row' + CLOSING[family]]
    rejected = inputs['rejected']
    assert [run.strip() for run in labelled_runs(family, rejected)] == ['Nothing' + CLOSING[family]]
    shared = int((rejected['labels'] != -100).nonzero()[0])
    assert torch.equal(rejected['input_ids'][:shared], inputs['input_ids'][:shared])
    alone = encode(family, dict(multi(), messages=given['rejected']))
    assert set(rejected) == {key for key in alone if key.endswith(('_ids', '_mask', 'labels')) and 'pixel' not in key}
    assert torch.equal(rejected['input_ids'], alone['input_ids'])
    assert 'rejected' not in encode(family, given, generate=True)


def test_pairs_are_cut_together_or_refused():
    given = single()
    given['rejected'] = [given['messages'][0], turn('assistant', 'A very long and wrong answer')]
    chosen_length = len(encode('llava', given)['input_ids'])
    inputs = encode('llava', given, max_length=chosen_length)
    assert len(inputs['rejected']['input_ids']) == chosen_length
    first = int((inputs['labels'] != -100).nonzero()[0])
    with pytest.raises(RecordError, match=f'all answers are cut off by max_length={first}'):
        encode('llava', given, max_length=first)


def test_other_entries_become_fields_of_the_data_sample():
    output = EncodeConversation(processor('llava'))(dict(single(), keys='taken', category=['a'], img_path=['x.png']))
    sample = output['data_samples']
    assert (sample.id, sample.source, sample.category, sample.img_path) == ('one', 'talk.json:3', ['a'], ['x.png'])
    assert callable(sample.keys)
    assert not {'messages', 'images'} & set(sample.keys())


@pytest.mark.parametrize('family', [family for family in FAMILIES if family != 'emu3'])
def test_several_images_in_a_text_are_those_of_the_processor(family):
    given = record(turn('user', 'Image 1: ', IMAGE, ' Image 2: ', IMAGE, ' Which?'), turn('assistant', 'This'))
    encoder = EncodeConversation(processor(family), generate=True)
    inputs = encoder(given)['inputs']
    text = encoder.template.render(given['messages'][:1], generation_prompt=True)[0]
    bos, token = processor(family).tokenizer.bos_token, tiny_vlms.image_token(family)
    special = {} if family == 'paligemma' else dict(add_special_tokens=not (bos and text.startswith(bos)))
    if family == 'paligemma':  # Its processor writes the begin of sequence and the line break.
        text = text.replace(bos, '').removesuffix('\n')
        assert text == 'Image 1: <image> Image 2: <image> Which?'
    images = tiny_vlms.given_images(family, [given['images']])
    output = processor(family)(text=[text], images=images, return_tensors='pt', **special)
    assert inputs['input_ids'].tolist() == output['input_ids'][0].tolist()
    # The images stand between the texts, in their order.
    ids, pieces = inputs['input_ids'].tolist(), ['']
    for number in ids:
        pieces[-1:] = [pieces[-1], ''] if number == image_token_id(family) and pieces[-1] else pieces[-1:]
        pieces[-1] += '' if number == image_token_id(family) else processor(family).tokenizer.decode([number])
    text = ' '.join(pieces)
    assert text.index('Image 1:') < text.index('Image 2:') < text.index('Which?')
    assert token not in pieces


def test_emu3_keeps_several_images_in_a_text_too():
    given = record(turn('user', 'One: ', IMAGE, ' two: ', IMAGE, '?'), turn('assistant', 'x'), sizes=[(28, 28)] * 2)
    text = processor('emu3').tokenizer.decode(encode('emu3', given)['input_ids'])
    image = '<|image start|>4*4<|image token|>' + '<image>' * 20 + '<|extra_201|><|image end|>'
    assert text == f'<|extra_203|>USER: One: {image} two: {image}? ASSISTANT: x<|extra_204|>'


@pytest.mark.parametrize('family', FAMILIES)
def test_leading_white_space_of_answers_is_learnt(family):
    answer = '    if x:\n\t\treturn 1'
    inputs = encode(family, record(turn('user', IMAGE, 'Code?'), turn('assistant', answer)))
    (run,) = labelled_runs(family, inputs)
    space = ' ' if '[ A' in tiny_vlms.WRITTEN[family] else ''
    assert run == space + answer + CLOSING[family]
    generated = EncodeConversation(processor(family), generate=True)(
        record(turn('user', IMAGE, 'Code?'), turn('assistant', answer))
    )
    assert generated['data_samples'].gt_answer == answer


@pytest.mark.parametrize('family', FAMILIES)
def test_answers_that_are_not_trained_have_no_labels(family):
    given = multi()
    whole = encode(family, given)
    for number, answers in ((1, ['Two dogs\nin a row']), (3, ['A cät, 猫.'])):
        messages = [dict(message) for message in given['messages']]
        messages[number]['train'] = False
        messages[4 - number]['train'] = True
        inputs = encode(family, dict(given, messages=messages))
        assert torch.equal(inputs['input_ids'], whole['input_ids'])
        assert [run.strip() for run in labelled_runs(family, inputs)] == [one + CLOSING[family] for one in answers]
    messages[1]['train'] = False
    with pytest.raises(RecordError, match=r'talk\.json:3: the conversation has no answer to learn from'):
        encode(family, dict(given, messages=messages))
    pair = dict(given, messages=messages, rejected=[*given['messages'][:-1], turn('assistant', 'Nothing')])
    with pytest.raises(RecordError, match='last answers of a preference pair .*train=False'):
        encode(family, pair)
    rejected = [dict(message, train=False) for message in pair['rejected']]
    with pytest.raises(RecordError, match='last answers of a preference pair .*train=False'):
        encode(family, dict(given, rejected=rejected))


def test_rejected_answers_that_do_not_train_earlier_turns_are_labelled_last():
    given = multi()
    messages = [dict(message) for message in given['messages']]
    messages[1]['train'] = False
    pair = dict(given, messages=messages, rejected=[*messages[:-1], turn('assistant', 'Nothing')])
    inputs = encode('llava', pair)
    assert labelled_runs('llava', inputs) == [' Two dogs\nin a row</s>']
    assert labelled_runs('llava', inputs['rejected']) == [' Nothing</s>']


@pytest.mark.parametrize('family', FAMILIES)
def test_a_rejected_answer_may_have_images_of_its_own(family):
    given = single()
    images = [tiny_vlms.random_image(70, 30, 8)]
    rejected = [given['messages'][0], turn('assistant', 'No')]
    inputs = encode(family, dict(given, rejected=rejected, rejected_images=images))
    alone = encode(family, dict(messages=rejected, images=images))
    alone.pop('pad_token_id')
    assert set(inputs['rejected']) == set(alone)
    assert all(torch.equal(value, inputs['rejected'][key]) for key, value in alone.items())
    first = encode(family, given)
    assert all(torch.equal(value, inputs[key]) for key, value in first.items() if key != 'pad_token_id')
    sample = EncodeConversation(processor(family))(dict(given, rejected=rejected, rejected_images=images))
    assert 'rejected_images' not in sample['data_samples']
    # Another number of images, or none at all.
    more = dict(rejected=[turn('user', IMAGE, IMAGE, 'What is it?'), rejected[1]], rejected_images=images * 2)
    none = dict(rejected=[turn('user', 'What is it?'), rejected[1]], rejected_images=[])
    for extra, sizes in ((more, [[70, 30]] * 2), (none, [])):
        found = encode(family, dict(given, **extra))
        assert found['rejected']['original_sizes'].tolist() == sizes
        assert found['original_sizes'].tolist() == [[40, 60]]
    with pytest.raises(RecordError, match=r'has 2 images, and the chat template .* writes 1 times'):
        encode(family, dict(given, rejected=rejected, rejected_images=images * 2))


def from_file(raw, answered=True):
    """A record as a file has it, with drawn images in the place of its paths."""
    parsed = parse_conversation(raw, answered)
    for key in ('images', 'rejected_images'):
        if key in parsed:
            parsed[key] = [tiny_vlms.random_image(28, 28, seed) for seed in range(len(parsed[key]))]
    return parsed


@pytest.mark.parametrize('family', FAMILIES)
def test_an_escaped_placeholder_is_the_word_in_questions_and_answers_of_files(family):
    word = 'the tag \\<image> means'
    raw = dict(
        image='a.png',
        conversations=[
            {'from': 'human', 'value': f'<image>\nWhat does {word}?'},
            {'from': 'gpt', 'value': f'It says: {word} an image.'},
        ],
        rejected_response=f'No, {word} nothing.',
    )
    inputs = encode(family, from_file(raw))
    said = word.replace('\\', '')
    given = single()
    given['images'] = [tiny_vlms.random_image(28, 28, 0)]
    tokens = [one['input_ids'].tolist().count(image_token_id(family)) for one in (inputs, encode(family, given))]
    assert tokens[0] == tokens[1] > 0
    assert labelled_runs(family, inputs)[0].strip() == f'It says: {said} an image.{CLOSING[family]}'
    assert labelled_runs(family, inputs['rejected'])[0].strip() == f'No, {said} nothing.{CLOSING[family]}'
    prompt = EncodeConversation(processor(family), generate=True)(from_file(raw))
    assert f'What does {said}?' in processor(family).tokenizer.decode(prompt['inputs']['input_ids'])
    assert prompt['data_samples'].gt_answer == f'It says: {said} an image.'
    # The same in a list of parts.
    parts = [dict(type='image', image='a.png'), dict(type='text', text=f'What does {word}?')]
    listed = dict(
        messages=[dict(role='user', content=parts), dict(role='assistant', content=f'It says: {word} an image.')]
    )
    assert torch.equal(encode(family, from_file(listed))['input_ids'], inputs['input_ids'])


@pytest.mark.parametrize('family', FAMILIES)
def test_system_weights_and_indentation_of_files_reach_the_tokens(family):
    raw = dict(
        system='Write <s>Python</s>.',
        messages=[
            dict(role='user', content='One?'),
            dict(role='assistant', content='1', weight=0),
            dict(role='user', content='Two?'),
            dict(role='assistant', content='    return 2\n        # two', loss=True),
        ],
    )
    inputs = encode(family, from_file(raw))
    text = processor(family).tokenizer.decode(inputs['input_ids'])
    places = [text.index(said) for said in ('Write <s>Python</s>.', 'One?', 'Two?')]
    assert places[0] < places[2] and (places[1] < places[0]) == (family in tiny_vlms.LATE_SYSTEM)
    (run,) = labelled_runs(family, inputs)
    space = ' ' if '[ A' in tiny_vlms.WRITTEN[family] else ''
    assert run == f'{space}    return 2\n        # two{CLOSING[family]}'


def test_a_template_that_swallows_a_turn_is_an_error_of_the_record():
    given = text_only()
    with pytest.raises(RecordError, match=r"talk\.json:3: the chat template 'plain' leaves out .*system: 'Be brief\.'"):
        encode('llava', given, chat_template='plain')
    with pytest.raises(RecordError, match="'plain' leaves out"):
        encode('llava', given, chat_template='plain', generate=True)


def test_conversation_without_answer_is_an_error_of_the_record():
    with pytest.raises(RecordError, match=r'talk\.json:3: the conversation has no answer to learn from'):
        encode('llava', record(turn('user', 'Hi')))


@pytest.mark.parametrize('family', FAMILIES)
def test_images_of_one_size_and_neighbouring_images(family):
    sizes = [(40, 60), (40, 60), (28, 90)]
    given = record(turn('user', IMAGE, IMAGE, IMAGE, 'Which?'), turn('assistant', 'This'), sizes=sizes)
    inputs = encode(family, given)
    assert labelled_runs(family, inputs)[0].strip() == 'This' + CLOSING[family]


def test_an_image_that_the_processor_refuses_is_an_error_of_the_record():
    given = record(turn('user', IMAGE, 'Q'), turn('assistant', 'x'), sizes=[(2, 900)])
    with pytest.raises(RecordError, match=r'talk\.json:3: Qwen2_5_VLProcessor refuses the images: .*aspect ratio'):
        encode('qwen2_5_vl', given)


def test_plain_template_labels_the_caption():
    given = single()
    inputs = encode('llava', given, chat_template='plain')
    assert labelled_runs('llava', inputs) == ['A cät, 猫.\n']
    decoded = processor('llava').tokenizer.decode(inputs['input_ids'])
    assert decoded == '<s>' + '<image>' * 16 + 'A cät, 猫.\n'


def test_janus_default_system_prompt_is_part_of_the_prompt():
    janus = tiny_vlms.tiny_processor('janus')
    janus.use_default_system_prompt = True
    encoder = EncodeConversation(janus)
    given = single()
    inputs = encoder(given)['inputs']
    text = encoder.template.render(given['messages'])[0].removeprefix(encoder.template.preamble)
    assert encoder.template.preamble and janus.use_default_system_prompt
    assert torch.equal(inputs['input_ids'], janus(text=text, images=given['images'])['input_ids'][0])


def test_processor_that_writes_other_text_is_refused():
    class Strange(type(processor('llava'))):
        def __call__(self, text=None, **kwargs):
            return super().__call__(text=[one + '!' for one in text], **kwargs)

    strange = tiny_vlms.tiny_processor('llava')
    strange.__class__ = Strange
    encoder = EncodeConversation(strange, 'llava')
    for given in (single(), multi()):
        with pytest.raises(RuntimeError, match='Strange tokenizes'):
            encoder(given)


def test_a_token_across_the_border_belongs_to_the_answer():
    """A tokenizer may join the last character of the prompt with the first of the answer."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import LlavaProcessor, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({'<unk>': 0, '</s>': 1, '<image>': 2, 'ASSISTANT:Yes': 3}, '<unk>'))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ('</s>', '<image>')])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token='</s>', unk_token='<unk>')
    images = processor('llava').image_processor
    joined = LlavaProcessor(images, fast, patch_size=7, vision_feature_select_strategy='full', chat_template=(
        '{% for m in messages %}{% if m.role == "user" %}<image> {{ m.content[1].text }} ASSISTANT:'
        '{% else %}{% generation %}'
        '{{ m.content[0].text }}</s>{% endgeneration %}{% endif %}{% endfor %}'))  # fmt: skip
    given = record(turn('user', IMAGE, 'Q'), turn('assistant', 'Yes'))
    inputs = EncodeConversation(joined)(given)['inputs']
    assert inputs['input_ids'].tolist() == [2] * 16 + [0, 3, 1]
    assert inputs['labels'].tolist() == [-100] * 17 + [3, 1]
    assert inputs['pad_token_id'] == 1  # no padding token: the end token


@cache
def subword_processor(prefix):
    """LLaVA's processor over a trained sub-word tokenizer that writes spaces as Llama's do: '▁' before a word."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import LlamaTokenizerFast, LlavaProcessor

    special = ['<unk>', '<s>', '</s>', '<image>']
    tokenizer = Tokenizer(models.BPE(unk_token='<unk>', byte_fallback=True))
    if prefix == 'normalizer':
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme='first', split=False)
    words = 'USER: ASSISTANT: What is it? Two dogs in a row. A cat sat here. these And'
    alphabet = [f'<0x{byte:02X}>' for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special + alphabet, show_progress=False)
    tokenizer.train_from_iterator([words, *words.split()] * 3, trainer)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(' ', 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    fast = LlamaTokenizerFast(tokenizer_object=tokenizer, bos_token='<s>', eos_token='</s>', unk_token='<unk>')
    images = processor('llava').image_processor
    return LlavaProcessor(
        images, fast, patch_size=7, vision_feature_select_strategy='default', num_additional_image_tokens=1
    )


@pytest.mark.parametrize('prefix', ['normalizer', 'pre_tokenizer'])
def test_labels_are_exact_with_subwords_and_prefix_spaces(prefix):
    given = multi()
    llava = subword_processor(prefix)
    inputs = EncodeConversation(llava)(given)['inputs']
    tokenizer = llava.tokenizer
    assert len(inputs['input_ids']) < 16 * 3 + 80  # words are tokens, not characters
    labels = inputs['labels'].tolist()
    runs = [[]]
    for token in labels:
        runs[-1:] = [runs[-1] + [token]] if token != -100 else [runs[-1], []] if runs[-1] else [[]]
    assert [tokenizer.decode(run).strip() for run in runs if run] == ['A cät, 猫.</s>', 'Two dogs\nin a row</s>']
    first = next(i for i, token in enumerate(labels) if token != -100)
    assert tokenizer.decode(inputs['input_ids'][:first]).endswith('ASSISTANT:')
    prompt = EncodeConversation(llava, generate=True)(
        dict(given, messages=given['messages'][:2], images=given['images'][:1])
    )
    assert prompt['inputs']['input_ids'].tolist() == inputs['input_ids'][:first].tolist()


def test_processor_can_be_a_config_and_the_transform_pickles():
    encoder = EncodeConversation(dict(type='ShapesProcessor'), max_length=300)
    given = record(turn('user', IMAGE, 'how many circles are there?'), turn('assistant', 'two'))
    inputs = encoder(given)['inputs']
    assert encoder.template.name == 'of the processor'
    assert encoder.tokenizer.decode(inputs['labels'][inputs['labels'] != -100]) == 'two </s>'
    again = pickle.loads(pickle.dumps(encoder))(given)['inputs']
    assert all(torch.equal(inputs[key], again[key]) for key in ('input_ids', 'labels', 'pixel_values'))


def test_processor_is_loaded_from_a_folder(tmp_path):
    processor('llava').save_pretrained(tmp_path)
    kind = 'transformers.AutoProcessor.from_pretrained'
    encoder = EncodeConversation(dict(type=kind, pretrained_model_name_or_path=str(tmp_path)))
    assert torch.equal(encoder(single())['inputs']['input_ids'], encode('llava', single())['input_ids'])


def test_slow_tokenizers_and_bad_arguments_are_refused():
    class Slow:
        image_token = '<image>'

        class tokenizer:
            is_fast = False

    with pytest.raises(ValueError, match='type gives no character offsets'):
        EncodeConversation(Slow)
    with pytest.raises(ValueError, match='max_length=0 must be at least 1, or None'):
        EncodeConversation(processor('llava'), max_length=0)
