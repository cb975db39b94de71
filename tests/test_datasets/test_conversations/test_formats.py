"""Tests of the conversation layouts."""

import pytest

from mergemix_mm.datasets.conversations.formats import other_keys, parse_conversation, text_of
from mergemix_mm.datasets.conversations.prompts import question_messages
from mergemix_mm.datasets.io.fields import has_images

IMAGE = dict(type='image')


def text(value):
    return dict(type='text', text=value)


def user(*parts):
    return dict(role='user', content=[text(part) if isinstance(part, str) else part for part in parts])


def answer(value):
    return dict(role='assistant', content=[text(value)])


def llava(*values, **raw):
    roles = ['human', 'gpt'] * len(values)
    return dict(conversations=[{'from': role, 'value': value} for role, value in zip(roles, values)], **raw)


def chat(*turns, **raw):
    """Turns as (role, content) or (role, content, dict of further keys)."""
    return dict(messages=[dict(role=role, content=content, **dict(*more)) for role, content, *more in turns], **raw)


QA = llava('Q', 'A')['conversations']
QB = llava('Q', 'B')['conversations']
PROMPT = [dict(role='user', content='<image>Where?')]
HERE, THERE = dict(role='assistant', content='here'), dict(role='assistant', content='there')


def test_llava_turns_become_messages_and_other_keys_stay():
    parsed = parse_conversation(llava('<image>\nWhat?', 'A cat.', 'Why?', ' Because.\n', image='a.jpg', id='7'))
    assert parsed == dict(
        messages=[user(IMAGE, 'What?'), answer('A cat.'), user('Why?'), answer(' Because.\n')], images=['a.jpg'], id='7'
    )


@pytest.mark.parametrize(
    'value, content',
    [
        ('What?\n<image>', ['What?', IMAGE]),
        ('<image> and <image>: which?', [IMAGE, ' and ', IMAGE, ': which?']),
        ('<image><image>', [IMAGE, IMAGE]),
        ('  <image>Q', [IMAGE, 'Q']),
        ('no placeholder', [IMAGE, IMAGE, 'no placeholder']),
        ('<image>\r\n  Q\r\n<image>', [IMAGE, '  Q', IMAGE]),
    ],
)
def test_placeholders_keep_their_places(value, content):
    images = ['a.jpg', 'b.jpg'][: sum(part is IMAGE for part in content)]
    parsed = parse_conversation(llava(value, 'x', images=images))
    assert (parsed['messages'][0], parsed['images']) == (user(*content), images)


def test_image_without_placeholder_goes_before_the_first_user_turn_only():
    raw = llava('One?', 'x', 'Two?', 'y', image='a.jpg')
    raw['conversations'].insert(0, {'from': 'system', 'value': 'Be brief.'})
    messages = parse_conversation(raw)['messages']
    assert [message['role'] for message in messages] == ['system', 'user', 'assistant', 'user', 'assistant']
    assert messages[1] == user(IMAGE, 'One?') and messages[3] == user('Two?')


def test_an_escaped_placeholder_is_text():
    parsed = parse_conversation(llava('<image>\nWhat does \\<image> do?', 'The tag \\<image> shows.', image='a.png'))
    assert parsed['messages'] == [user(IMAGE, 'What does <image> do?'), answer('The tag <image> shows.')]
    for name in ('video', 'audio'):
        parsed = parse_conversation(llava(f'What is \\<{name}>?', f'The tag <{name}>.'))
        assert parsed['messages'] == [user(f'What is <{name}>?'), answer(f'The tag <{name}>.')]


def test_white_space_of_texts_is_kept():
    code = '    def f():\n        return 1\n\n'
    raw = chat(('user', code), ('assistant', code), ('user', [text('  x ')]), ('assistant', [text(code)]))
    assert [text_of(message) for message in parse_conversation(raw)['messages']] == [code, code, '  x ', code]


@pytest.mark.parametrize('roles', [('Human', 'Assistant'), ('USER', 'bot'), ('user', 'model'), (' user ', 'GPT')])
def test_roles_of_every_spelling(roles):
    for raw in (
        dict(conversations=[{'from': role, 'value': value} for role, value in zip(roles, 'QA')]),
        dict(messages=[{'role': role, 'content': value, 'from': None} for role, value in zip(roles, 'QA')]),
    ):
        assert parse_conversation(raw) == dict(messages=[user('Q'), answer('A')], images=[])


@pytest.mark.parametrize(
    'raw',
    [
        dict(prompt='Q\nR', completion='A'),
        dict(prompt=[dict(role='user', content='Q\nR')], completion=[dict(role='assistant', content='A')]),
        dict(query='Q\nR', response='A', history=[]),
        dict(instruction='Q', input='R', output='A'),
        dict(instruction='Q\nR', input='', output='A'),
        dict(question='Q\nR', answer='A'),
        dict(messages=llava('Q\nR', 'A')['conversations'], prompt='Q\nR'),
        dict(conversation=llava('Q\nR', 'A')['conversations']),
    ],
)
def test_one_question_and_its_answer_of_every_layout(raw):
    assert parse_conversation(dict(raw, id=3)) == dict(messages=[user('Q\nR'), answer('A')], images=[], id=3)


def test_history_comes_before_the_question():
    parsed = parse_conversation(dict(query='Q', response='A', history=[['a', 'b']], system='S'))
    assert [text_of(message) for message in parsed['messages']] == ['S', 'a', 'b', 'Q', 'A']


def test_exchanges_may_be_an_object_of_lists():
    # What `datasets` makes of a Sequence of {user, assistant}.
    parsed = parse_conversation(dict(texts=dict(user=['Q', 'R'], assistant=['A', 'B'], source=['s', 's'])))
    assert parsed['messages'] == [user('Q'), answer('A'), user('R'), answer('B')]


def test_a_conversation_to_be_answered_may_end_with_a_question():
    raw = llava('<image>What?', image='a.png')
    assert parse_conversation(raw, answered=False)['messages'] == [user(IMAGE, 'What?')]
    with pytest.raises(ValueError, match='assistant answer'):
        parse_conversation(raw)


@pytest.mark.parametrize('key', ['system', 'system_prompt', 'system_message'])
def test_a_system_prompt_beside_the_turns_is_the_first_message(key):
    parsed = parse_conversation(llava('<image>Q', 'A', image='a.png', **{key: ' Be\n brief. '}))
    system = dict(role='system', content=[text(' Be\n brief. ')])
    assert parsed == dict(messages=[system, user(IMAGE, 'Q'), answer('A')], images=['a.png'])
    pair = parse_conversation(dict(prompt='Q', chosen='A', rejected='B', **{key: 'Be brief.'}))
    assert pair['messages'][0] == pair['rejected'][0] == dict(role='system', content=[text('Be brief.')])
    for more in ({key: 'Be brief.'}, dict(prompt='Q')):
        same = parse_conversation(chat(('system', 'Be brief.'), ('user', 'Q'), ('assistant', 'A'), **more))
        assert [message['role'] for message in same['messages']] == ['system', 'user', 'assistant']


@pytest.mark.parametrize('empty', [None, '', '  '])
def test_an_empty_system_prompt_is_none(empty):
    for raw in (llava('Q', 'A', system=empty), chat(('system', empty), ('user', 'Q'), ('assistant', 'A'))):
        assert parse_conversation(raw) == dict(messages=[user('Q'), answer('A')], images=[])


# Images.


@pytest.mark.parametrize(
    'part, image',
    [
        (dict(image='a.png'), 'a.png'),
        (dict(type='image', image='a.png', text=None), 'a.png'),
        (dict(type='image', path='a.png'), 'a.png'),
        (dict(type='image', url='a.png'), 'a.png'),
        (dict(type='image', base64='AAAA'), 'data:;base64,AAAA'),
        (dict(type='image_url', image_url=dict(url='data:image/png;base64,AAAA')), 'data:image/png;base64,AAAA'),
        (dict(type='image_url', image_url='a.png'), 'a.png'),
        (dict(type='image', image=dict(bytes=b'x', path=None)), dict(bytes=b'x', path=None)),
        (dict(type='image', source=dict(type='base64', media_type='image/png', data='AA')), 'data:image/png;base64,AA'),
    ],
)
def test_images_inside_parts_of_every_spelling(part, image):
    second = dict(type='image', path='b.png')
    raw = chat(
        ('user', [part, dict(text='Q', image=None)]),
        ('assistant', [text('x'), text('y')]),
        ('user', [second, text('R')]),
        ('assistant', dict(text='A')),
    )
    assert parse_conversation(raw) == dict(
        messages=[user(IMAGE, 'Q'), answer('xy'), user(IMAGE, 'R'), answer('A')], images=[image, 'b.png']
    )
    raw['messages'] = raw['messages'][:2]
    assert has_images(raw)


@pytest.mark.parametrize('value', ['a.png', b'x', dict(bytes=b'x', path='a.png'), dict(bytes=None, path='/a.png')])
def test_images_beside_the_turns_of_every_spelling(value):
    parts = chat(('user', [text('Which?'), dict(type='image')]), ('assistant', 'This'))
    for raw in (llava('<image>Q', 'A', image=value), llava('<image>Q', 'A', images=[value]), dict(parts, image=value)):
        assert parse_conversation(raw)['images'] == [value] and has_images(raw)
    assert parse_conversation(llava('Q', 'A', image=dict(bytes='AAAA', path='')))['images'] == ['data:;base64,AAAA']


def test_has_images_agrees_with_what_is_parsed():
    raws = [
        llava('<image>Q', 'A', image='a.png'),
        llava('Q', 'A', image=None),
        llava('Q', 'A', images=[]),
        llava('Q', 'A', image=dict(bytes=None, path=None)),
        llava('Q', 'A', image_size=[3, 4], num_images=0),
        dict(prompt=[dict(role='user', content=[dict(type='image', path='a.png')])], chosen='A', rejected='B'),
        dict(prompt='Q', chosen=HERE, rejected=THERE),
    ]
    found = [has_images(raw) for raw in raws]
    assert found == [bool(parse_conversation(raw)['images']) for raw in raws]
    assert found == [True, False, False, False, False, True, False]


@pytest.mark.parametrize('key', ['image_path', 'img', 'image_url', 'img_path', 'image_1', 'frames', 'chosen_images'])
def test_an_image_under_another_key_is_not_passed_over(key):
    with pytest.raises(ValueError, match=f"'{key}'"):
        parse_conversation(llava('Q', 'A', **{key: 'a.png'}))
    assert parse_conversation(llava('Q', 'A', image='a.png', **{key: 'b.png'}))[key] == 'b.png'


@pytest.mark.parametrize('key', ['image', 'images', 'img_path', 'image_url'])
def test_an_image_beside_the_text_of_a_turn_is_not_passed_over(key):
    turns = [dict(role='user', content='Q', **{key: ['a.png']}), dict(role='assistant', content='A')]
    for raw in (dict(messages=turns), dict(texts=[dict(user='Q', assistant='A', **{key: 'a.png'})])):
        with pytest.raises(ValueError, match=f"a turn .*'{key}'"):
            parse_conversation(raw)
    turns[0][key] = []
    assert parse_conversation(dict(messages=turns))['images'] == []


@pytest.mark.parametrize('raw', [{}, dict(image='a.png')])
def test_an_image_named_in_the_text_is_not_trained_as_text(raw):
    # The layout of Qwen-VL's own files.
    question = '<image>\nPicture 2: <img>b/c.jpg</img>\nQ' if raw else 'Picture 1: <img>b/c.jpg</img>\nQ'
    with pytest.raises(ValueError, match='<img>b/c.jpg</img>'):
        parse_conversation(llava(question, 'A', **raw))
    assert parse_conversation(llava('Write HTML: <img> and </img>', '<img>b/c.jpg</img>'))['images'] == []


@pytest.mark.parametrize('name', ['<image_1>', '<image 1>', '<ImageHere>', '<|image|>', '<img>a</img>', '<IMAGE>'])
def test_placeholders_of_other_tools_are_not_trained_as_text(name):
    with pytest.raises(ValueError, match='an image may be meant'):
        parse_conversation(llava(f'{name} What?', 'A', image='a.png'))
    assert parse_conversation(llava(f'What is {name}?', 'A'))['messages'][0] == user(f'What is {name}?')


def test_placeholders_of_objects_are_not_trained_as_text():
    raw = llava('<image>Find <ref-object>', '<bbox>', image='a.png', objects=dict(ref=['cat'], bbox=[[1, 2, 3, 4]]))
    with pytest.raises(ValueError, match="<ref-object> of 'objects'"):
        parse_conversation(raw)
    assert parse_conversation({**raw, 'objects': dict(ref=[], bbox=[])})['messages'][1] == answer('<bbox>')


# Preference pairs.


@pytest.mark.parametrize(
    'raw',
    [
        dict(prompt='<image>\nWhere?', chosen='here', rejected='there'),
        dict(prompt=PROMPT, chosen=[HERE], rejected=[THERE]),
        dict(prompt=PROMPT, chosen=HERE, rejected=THERE),
        dict(chosen=[*PROMPT, HERE], rejected=[*PROMPT, THERE]),
        dict(prompt='Where?', chosen='here', rejected='there'),
        dict(instruction='Where?', input='', chosen='here', rejected='there'),
        dict(prompt='<image>Where?', chosen=[*PROMPT, HERE], rejected=[*PROMPT, THERE]),
        dict(messages=[*PROMPT, HERE], chosen=HERE, rejected=THERE),
        # ultrafeedback_binarized holds its chosen conversation twice.
        dict(prompt=PROMPT, messages=[*PROMPT, HERE], chosen=[*PROMPT, HERE], rejected=[*PROMPT, THERE]),
        dict(
            conversations=[{'from': 'human', 'value': '<image>Where?'}],
            chosen={'from': 'gpt', 'value': 'here'},
            rejected={'from': 'gpt', 'value': 'there'},
        ),
    ],
)
def test_preference_pairs_of_every_layout(raw):
    parsed = parse_conversation(dict(raw, images=['a.png'], score=0.5))
    prompt = user(IMAGE, 'Where?')
    assert parsed == dict(
        messages=[prompt, answer('here')], rejected=[prompt, answer('there')], images=['a.png'], score=0.5
    )


def test_pairs_may_share_earlier_turns():
    turns = [dict(role='user', content='Hi'), dict(role='assistant', content='Hello'), dict(role='user', content='So?')]
    parsed = parse_conversation(dict(chosen=[*turns, HERE], rejected=[*turns, THERE]))
    assert parsed['messages'][:-1] == parsed['rejected'][:-1] and len(parsed['messages']) == 4


@pytest.mark.parametrize('rejected', ['B', ['B'], dict(role='assistant', content='B'), [{'from': 'gpt', 'value': 'B'}]])
@pytest.mark.parametrize('key', ['rejected_response', 'rejected_messages', 'rejected_answer', 'rejected_output'])
def test_a_rejected_response_shares_all_turns_but_the_last(key, rejected):
    turns = llava('<image>Q', 'x', 'R', 'A', image='a.png', system='S')
    parsed = parse_conversation(dict(turns, **{key: rejected}))
    assert parsed['messages'][-1] == answer('A') and parsed['rejected'][-1] == answer('B')
    assert parsed['messages'][:-1] == parsed['rejected'][:-1] and len(parsed['messages']) == 5
    assert set(parsed) == {'messages', 'images', 'rejected'}


@pytest.mark.parametrize('key', ['rejected_messages', 'rejected_conversations'])
def test_a_rejected_response_may_be_the_whole_conversation(key):
    for raw in (llava('Q', 'A', system='S'), chat(('system', 'S'), ('user', 'Q'), ('assistant', 'A'))):
        parsed = parse_conversation(dict(raw, **{key: QB}))
        assert parsed['rejected'] == [parsed['messages'][0], user('Q'), answer('B')] and key not in parsed
    assert parse_conversation(dict(llava('Q', 'A'), **{key: QB}))['rejected'] == [user('Q'), answer('B')]


def test_rejected_images_take_the_places_of_the_images():
    raw = llava('<image>Q', 'A', image='a.png', rejected_images=['b.png'])
    assert parse_conversation(dict(raw, rejected_response='B')) == dict(
        messages=[user(IMAGE, 'Q'), answer('A')],
        rejected=[user(IMAGE, 'Q'), answer('B')],
        images=['a.png'],
        rejected_images=['b.png'],
    )
    # The answers may be the same: the images make the difference.
    same = parse_conversation(raw)
    assert same['messages'] == same['rejected'] and same['rejected_images'] == ['b.png']
    assert parse_conversation(llava('<image>Q', 'A', image='a.png', rejected_image='b.png')) == same


# What is not trained, and what is refused.


@pytest.mark.parametrize(
    'key, no, yes',
    [('loss', False, True), ('train', False, True), ('weight', 0, 1), ('weight', 0.0, 1.0), ('loss_scale', 0.0, 1.0),
     ('training', False, None), ('loss', 0, 1), ('trainable', False, True)],
)  # fmt: skip
def test_an_answer_with_no_weight_is_marked_as_not_to_be_trained(key, no, yes):
    raw = chat(('user', 'Q'), ('assistant', 'A', {key: no}), ('user', 'R'), ('assistant', 'B', {key: yes}))
    unlabelled = dict(answer('A'), train=False)
    assert parse_conversation(raw)['messages'] == [user('Q'), unlabelled, user('R'), answer('B')]
    raw['messages'][0][key] = no
    assert parse_conversation(raw)['messages'][1] == unlabelled
    raw['messages'][3][key] = no
    with pytest.raises(ValueError, match='all its answers'):
        parse_conversation(raw)


@pytest.mark.parametrize('more', [dict(train=False), dict(loss=False), dict(weight=0), dict(loss_weight=0.0)])
def test_a_record_without_anything_to_train_is_refused(more):
    ((key, value),) = more.items()
    with pytest.raises(ValueError, match=f'{key}={value}'):
        parse_conversation(llava('Q', 'A', **more))
    assert parse_conversation(llava('Q', 'A', loss=2.5, weight=1, train='yes'))['loss'] == 2.5


@pytest.mark.parametrize('key', ['label', 'kto_tag'])
def test_an_answer_to_unlearn_is_not_trained(key):
    with pytest.raises(ValueError, match=f'{key}=False'):
        parse_conversation(dict(prompt='Q', completion='A', **{key: False}))
    assert parse_conversation(dict(prompt='Q', completion='A', **{key: True}))[key] is True


@pytest.mark.parametrize('empty', [None, [], '', '[]'])
def test_empty_keys_mean_nothing(empty):
    keys = ['video', 'videos', 'audio', 'audios', 'tools', 'functions']
    keys += [] if empty == '[]' else ['images', 'rejected_images', 'rejected_response']
    assert parse_conversation(llava('Q', 'A', **dict.fromkeys(keys, empty))) == parse_conversation(llava('Q', 'A'))


@pytest.mark.parametrize('key', ['System', 'Video', 'Images', 'MESSAGES', 'Rejected'])
def test_a_key_in_another_case_is_not_passed_over(key):
    with pytest.raises(ValueError, match=f"'{key}'.*'{key.lower()}'"):
        parse_conversation(llava('Q', 'A', **{key: 'x'}))
    with pytest.raises(ValueError, match="'assistant' has 'Loss'.*'loss'"):
        parse_conversation(chat(('user', 'Q'), ('assistant', 'A', dict(Loss=False))))


MEDIA = dict(video='videos', videos='videos', video_file='videos', audio='sound', audios='sound', sound='sound')
PARTS = [
    dict(type='video', video='a.mp4'),
    dict(video='a.mp4'),
    dict(type='video_url', video_url=dict(url='a')),
    dict(type='input_audio', input_audio={}),
    dict(type='tool_use'),
    dict(type='image', video='a.mp4'),
    dict(type='text', text='x', audio='a.wav'),
]


@pytest.mark.parametrize(
    'raw, message',
    [
        # Layouts.
        (dict(id=1, text='x'), r"'conversations'.*\['id', 'text'\]"),
        (dict(conversations=[{'from': 'robot', 'value': 'x'}]), "role 'robot'.*'assistant'"),
        (dict(conversations=[{'value': 'x'}]), 'role None'),
        (dict(messages=['x']), "'x'"),
        (dict(messages=[dict(role='user', content=7)]), 'content .* 7'),
        (dict(texts=dict(user=['Q', 'R'], assistant=['A'])), 'one length'),
        (dict(prompt=5, completion='A'), 'found 5'),
        (dict(instruction='Q', input=['R'], output='A'), r"'input'=\['R'\]"),
        # Turns.
        (llava('Q', 'A', 'Q'), 'does not end with'),
        (llava('Q', '  '), 'turn 2 is an empty answer'),
        (llava('', 'A'), 'turn 1 is an empty question'),
        (dict(conversations=[{'from': 'gpt', 'value': 'x'}]), r"alternate.*\['assistant'\]"),
        (dict(conversations=[{'from': 'human', 'value': 'x'}] * 2), r"alternate.*\['user', 'user'\]"),
        (dict(messages=[dict(role='system', content='x')]), 'no turns'),
        # Images.
        (chat(('user', [dict(type='text', text=5)]), ('assistant', 'A')), "'text': 5"),
        (chat(('user', [dict(type='text', text='x', image='a')]), ('assistant', 'A')), "'image': 'a'"),
        (llava('<image><image>', 'A', image='a.png'), '2 image placeholders, but 1 images'),
        (llava('What does <image> do?', 'A'), r'1 image placeholders, but 0 images.*\\<image>'),
        (llava('<image>Q', 'A', image='a', rejected_images=['b', 'c']), '1 image placeholders, but 2 images'),
        (llava('Q', 'see <image>', image='a.png'), 'turn 2 is an answer .* image'),
        (dict(chat(('system', '<image>S'), ('user', 'Q'), ('assistant', 'A')), image='a'), 'system prompt .* image'),
        (llava('Q', 'A', image=5), "'image': .* 5"),
        (llava('Q', 'A', images=['a', ['b']]), r"'images': .*\['b'\]"),
        (llava('Q', 'A', image='a.png', images=['b.png']), "'image' and 'images'"),
        (llava('Q', 'A', screenshot=dict(bytes=b'\x89PNG', path=None)), "'screenshot'"),
        # Pairs.
        (dict(prompt='Q', chosen='A'), "only 'chosen'"),
        (dict(chosen='Q: A', rejected='Q: B'), "need a 'prompt'"),
        (dict(prompt='Q', chosen='A', rejected='A'), 'the same'),
        (llava('Q', 'A', rejected_response='A'), 'the same'),
        (llava('<image>Q', 'A', image='a.png', rejected_images=['a.png']), 'the same'),
        (dict(prompt='Q', chosen='A', rejected=' '), 'turn 2 is an empty answer'),
        (llava('Q', 'A', rejected_response=['B', 'C']), '2 answers'),
        (dict(chosen=QA, rejected=[dict(role='user', content='Why?'), THERE]), 'share all turns'),
        (dict(prompt='R', chosen=QA, rejected=QB), "'chosen', which differ"),
        (dict(messages=QA, chosen=QB, rejected=QA), "'chosen', which differ"),
        (dict(messages=QA, chosen=THERE, rejected=HERE), "'chosen' is not the last answer"),
        (dict(prompt='Q', chosen='A', rejected='B', rejected_response='C'), "'rejected' and .*'rejected_response'"),
        (dict(prompt='Q', chosen=dict(HERE, loss=False), rejected='B'), 'not to be trained'),
        # Contradictions.
        (dict(llava('Q', 'A'), messages=llava('R', 'A')['conversations']), "turns .*'conversations' and 'messages'"),
        (dict(llava('Q', 'A'), prompt='R'), "'prompt' and 'conversations'"),
        (dict(prompt='Q', query='R', completion='A'), "'prompt' and 'query'"),
        (dict(prompt='Q', completion='A', response='B'), "'completion' and 'response'"),
        (dict(chat(('system', 'T'), ('user', 'Q'), ('assistant', 'A')), system='S'), "'system' and another"),
        (llava('Q', 'A', system=['S']), "'system' must be a text"),
        (dict(messages=[{'role': 'user', 'from': 'gpt', 'content': 'Q'}]), "'role' and 'from'"),
        (dict(messages=[{'role': 'user', 'content': 'Q', 'value': 'R'}]), "'content' and 'value'"),
        # Weights of turns.
        (chat(('user', 'Q', dict(loss=True)), ('assistant', 'A')), 'user turn has loss=True'),
        *(
            (chat(('user', 'Q'), ('assistant', 'A', more)), message)
            for more, message in [
                (dict(weight=0.5), 'weight=0.5'),
                (dict(loss=2), 'loss=2'),
                (dict(train='no'), "train='no'"),
                (dict(weight=float('nan')), 'weight=nan'),
                (dict(loss=[0]), r'loss=\[0\]'),
                (dict(loss=True, weight=0), "'loss': True, 'weight': False"),
                (dict(mask=True), "'assistant' has 'mask'"),
                (dict(train_detail=[1]), "'train_detail'"),
                (dict(reasoning_content='So'), "'reasoning_content'"),
                (dict(tool_calls=[dict(id=1)]), "'tool_calls'; tools"),
            ]
        ),
        # Video, sound and tools.
        *((llava('<image>Q', 'A', image='a.png', **{key: ['a']}), f"^has '{key}'; {MEDIA[key]}") for key in MEDIA),
        (llava('Q', 'A', available_tools=['f']), "^has 'available_tools'; tools"),
        (llava('Q', 'A', tools='[{"name": "f"}]'), "^has 'tools'; tools"),
        *((chat(('user', [part, text('Q')]), ('assistant', 'A')), 'a part .* cannot be trained') for part in PARTS),
        *((llava(f'<{name}>Q', 'A'), f'the placeholder <{name}>') for name in ('video', 'audio')),
        *(
            (chat(('user', 'Q'), (role, 'x'), ('assistant', 'A')), f"role '{role}'; tools")
            for role in ('tool', 'function_call', 'observation', 'Tool', 'ipython')
        ),
    ],
)
def test_what_cannot_be_trained_on_is_refused_by_name(raw, message):
    with pytest.raises(ValueError, match=message):
        parse_conversation(raw)


def test_other_keys_are_told_with_those_of_turns():
    raw = llava('Q', 'A', id=1, model='m', system='S', videos=[], rejected_response='B')
    raw['conversations'][0]['name'] = 'Bob'
    assert list(other_keys(raw)) == ['id', 'model', 'conversations[].name']
    assert list(other_keys(dict(prompt='Q', completion='A', score=1))) == ['score']
    raw = chat(('user', 'Q'), ('assistant', 'A', dict(checked=False, name='')))
    assert list(other_keys(raw)) == ['messages[].checked']


def test_errors_quote_no_payload():
    payload = 'QUJD' * 100_000
    for raw in (
        llava('Q', 'A', image=[payload, 5]),
        chat(('user', [dict(type='image', image=payload, text='x')]), ('assistant', 'A')),
        chat((payload, 'Q')),
        dict.fromkeys([payload, 'b'], 1),
        llava('Q', 'A', image=dict(bytes=payload, path=None, more=1)),
    ):
        with pytest.raises(ValueError) as error:
            parse_conversation(raw)
        assert len(str(error.value)) < 500


def test_question_messages_put_images_first():
    assert question_messages('Q?', 2, 'A') == [user(IMAGE, IMAGE, 'Q?'), answer('A')]
    assert question_messages('Q?') == [user('Q?')]
