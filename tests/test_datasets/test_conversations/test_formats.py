"""Tests of the conversation layouts."""

import pytest

from mergemix_mm.datasets.conversations.formats import other_keys, parse_conversation, text_of
from mergemix_mm.datasets.conversations.prompts import question_messages
from mergemix_mm.datasets.io.images import has_images

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
        ('no placeholder', [IMAGE, IMAGE, 'no placeholder']),
    ],
)
def test_placeholders_keep_their_places(value, content):
    images = ['a.jpg', 'b.jpg'][: sum(part is IMAGE for part in content)]
    parsed = parse_conversation(llava(value, 'x', images=images))
    assert parsed['messages'][0] == user(*content)
    assert parsed['images'] == images


def test_image_without_placeholder_goes_before_the_first_user_turn_only():
    raw = llava('One?', 'x', 'Two?', 'y', image='a.jpg')
    raw['conversations'].insert(0, {'from': 'system', 'value': 'Be brief.'})
    messages = parse_conversation(raw)['messages']
    assert [message['role'] for message in messages] == ['system', 'user', 'assistant', 'user', 'assistant']
    assert messages[1] == user(IMAGE, 'One?') and messages[3] == user('Two?')


def test_text_only_has_no_images():
    parsed = parse_conversation(llava('Hi', 'Hello'))
    assert parsed['images'] == [] and parsed['messages'] == [user('Hi'), answer('Hello')]


def test_messages_with_images_beside_them():
    raw = dict(
        messages=[
            dict(role='user', content=[text('Which?'), dict(type='image')]),
            dict(role='assistant', content='This'),
        ],
        images=['a.png'],
    )
    assert parse_conversation(raw) == dict(messages=[user('Which?', IMAGE), answer('This')], images=['a.png'])


@pytest.mark.parametrize(
    'part',
    [
        dict(type='image', path='a.png'),
        dict(type='image', url='a.png'),
        dict(type='image', image='a.png'),
        dict(type='image_url', image_url=dict(url='a.png')),
    ],
)
def test_messages_with_images_inside_their_parts(part):
    raw = dict(
        messages=[
            dict(role='user', content=[part, text('One?')]),
            dict(role='assistant', content=[text('x'), text('y')]),
            dict(role='user', content=[dict(type='image', path='b.png'), text('Two?')]),
            dict(role='assistant', content='z'),
        ]
    )
    assert has_images(raw)
    parsed = parse_conversation(raw)
    assert parsed['images'] == ['a.png', 'b.png']
    assert parsed['messages'] == [user(IMAGE, 'One?'), answer('xy'), user(IMAGE, 'Two?'), answer('z')]


PROMPT = [dict(role='user', content='<image>Where?')]
HERE, THERE = dict(role='assistant', content='here'), dict(role='assistant', content='there')


@pytest.mark.parametrize(
    'raw',
    [
        dict(prompt='<image>\nWhere?', chosen='here', rejected='there'),
        dict(prompt=PROMPT, chosen=[HERE], rejected=[THERE]),
        dict(prompt=PROMPT, chosen=HERE, rejected=THERE),
        dict(chosen=[*PROMPT, HERE], rejected=[*PROMPT, THERE]),
        dict(prompt='Where?', chosen='here', rejected='there'),
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


def test_a_conversation_to_be_answered_may_end_with_a_question():
    raw = llava('<image>What?', image='a.png')
    assert parse_conversation(raw, answered=False)['messages'] == [user(IMAGE, 'What?')]
    with pytest.raises(ValueError, match='does not end with an assistant answer'):
        parse_conversation(raw)


@pytest.mark.parametrize(
    'raw, message',
    [
        (dict(id=1, text='x'), r"none of 'conversations', 'messages', 'chosen' and 'rejected'; .*\['id', 'text'\]"),
        (dict(conversations=[{'from': 'robot', 'value': 'x'}]), r"unknown role 'robot'; allowed are \['assistant',"),
        (dict(conversations=[{'value': 'x'}]), 'unknown role None'),
        (dict(messages=['x']), "a turn must be an object, found 'x'"),
        (dict(messages=[dict(role='user', content=7)]), 'must be a string or a list of parts, found 7'),
        (
            dict(messages=[dict(role='user', content=[dict(type='video')])]),
            r"'text' or 'image', found \{'type': 'video'",
        ),
        (llava('Q', 'A', 'Q'), 'does not end with an assistant answer'),
        (llava('Q', '  '), 'turn 2 is an empty answer'),
        (llava('', 'A'), 'turn 1 is an empty question'),
        (dict(conversations=[{'from': 'gpt', 'value': 'x'}]), r"must alternate, .* found \['assistant'\]"),
        (dict(conversations=[{'from': 'human', 'value': 'x'}] * 2), r"must alternate, .* found \['user', 'user'\]"),
        (dict(messages=[dict(role='system', content='x')]), 'has no turns'),
        (llava('<image><image>', 'A', image='a.png'), '2 image placeholders, but 1 images'),
        (llava('<image>', 'A'), '1 image placeholders, but 0 images'),
        (llava('Q', 'see <image>', image='a.png'), 'turn 2 is an answer that holds an image'),
        (llava('Q', 'A', image=5), "'image': an image must be given by the path of its file, found 5"),
        (llava('Q', 'A', images=['a', ['b']]), r"'images': an image must be given .* found \['b'\]"),
        (llava('Q', 'A', image='a.png', images=['b.png']), "different images under 'image' and 'images'"),
        (dict(prompt='Q', chosen='A'), "only 'chosen'"),
        (dict(chosen='Q: A', rejected='Q: B'), "plain strings, which need a 'prompt'"),
        (dict(prompt='Q', chosen='A', rejected='A'), 'are the same'),
        (dict(prompt='Q', chosen='A', rejected=' '), 'turn 2 is an empty answer'),
        (dict(chosen=[*PROMPT, HERE], rejected=[dict(role='user', content='Why?'), THERE]), '0 images|must share'),
    ],
)
def test_malformed_conversations_say_what_is_wrong(raw, message):
    with pytest.raises(ValueError, match=message):
        parse_conversation(raw)


def test_has_images_agrees_with_what_is_parsed():
    raws = [
        llava('<image>Q', 'A', image='a.png'),
        llava('Q', 'A', image=None),
        llava('Q', 'A', images=[]),
        llava('Q', 'A'),
        dict(prompt=[dict(role='user', content=[dict(type='image', path='a.png')])], chosen='A', rejected='B'),
        dict(prompt='Q', chosen=HERE, rejected=THERE),
    ]
    found = [has_images(raw) for raw in raws]
    assert found == [bool(parse_conversation(raw)['images']) for raw in raws]
    assert found == [True, False, False, False, True, False]


def test_question_messages_put_images_first():
    assert question_messages('Q?', 2, 'A') == [user(IMAGE, IMAGE, 'Q?'), answer('A')]
    assert question_messages('Q?') == [user('Q?')]


def chat(*turns, **raw):
    """Turns as (role, content) or (role, content, dict of further keys)."""
    return dict(messages=[dict(role=role, content=content, **dict(*more)) for role, content, *more in turns], **raw)


@pytest.mark.parametrize('key', ['system', 'system_prompt', 'system_message'])
def test_a_system_prompt_beside_the_turns_is_the_first_message(key):
    parsed = parse_conversation(llava('<image>Q', 'A', image='a.png', **{key: ' Be\n brief. '}))
    system = dict(role='system', content=[text(' Be\n brief. ')])
    assert parsed == dict(messages=[system, user(IMAGE, 'Q'), answer('A')], images=['a.png'])
    pair = parse_conversation(dict(prompt='Q', chosen='A', rejected='B', **{key: 'Be brief.'}))
    assert pair['messages'][0] == pair['rejected'][0] == dict(role='system', content=[text('Be brief.')])
    same = chat(('system', 'Be brief.'), ('user', 'Q'), ('assistant', 'A'), **{key: 'Be brief.'})
    assert [message['role'] for message in parse_conversation(same)['messages']] == ['system', 'user', 'assistant']


@pytest.mark.parametrize('empty', [None, '', '  '])
def test_an_empty_system_prompt_is_none(empty):
    assert parse_conversation(llava('Q', 'A', system=empty)) == parse_conversation(llava('Q', 'A'))
    assert parse_conversation(chat(('system', empty), ('user', 'Q'), ('assistant', 'A'))) == dict(
        messages=[user('Q'), answer('A')], images=[]
    )


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
    with pytest.raises(ValueError, match='all its answers are marked as not to be trained'):
        parse_conversation(raw)


@pytest.mark.parametrize(
    'more, message',
    [
        (dict(weight=0.5), r'weight=0.5 of a turn must be true or false, or 1 or 0'),
        (dict(loss=2), 'loss=2 of a turn'),
        (dict(train='no'), "train='no' of a turn"),
        (dict(weight=float('nan')), 'weight=nan'),
        (dict(loss=[0]), r'loss=\[0\]'),
        (dict(loss=True, weight=0), "'loss': True, 'weight': False.*contradict"),
        (dict(mask=True), "a turn of role 'assistant' has 'mask'; a mask of the loss cannot be trained on"),
        (dict(train_detail=[1]), "has 'train_detail'"),
        (dict(reasoning_content='So'), "has 'reasoning_content'; reasoning"),
        (dict(tool_calls=[dict(id=1)]), "has 'tool_calls'; tools"),
    ],
)
def test_what_would_change_the_labels_of_a_turn_is_refused_by_name(more, message):
    with pytest.raises(ValueError, match=message):
        parse_conversation(chat(('user', 'Q'), ('assistant', 'A', more)))


def test_a_question_cannot_be_trained():
    with pytest.raises(ValueError, match='a user turn has loss=True; only answers can be trained on'):
        parse_conversation(chat(('user', 'Q', dict(loss=True)), ('assistant', 'A')))


@pytest.mark.parametrize('rejected', ['B', ['B'], dict(role='assistant', content='B'), [{'from': 'gpt', 'value': 'B'}]])
@pytest.mark.parametrize('key', ['rejected_response', 'rejected_messages'])
def test_a_rejected_response_shares_all_turns_but_the_last(key, rejected):
    turns = llava('<image>Q', 'x', 'R', 'A', image='a.png', system='S')
    parsed = parse_conversation(dict(turns, **{key: rejected}))
    assert parsed['messages'][-1] == answer('A') and parsed['rejected'][-1] == answer('B')
    assert parsed['messages'][:-1] == parsed['rejected'][:-1] and len(parsed['messages']) == 5
    assert set(parsed) == {'messages', 'images', 'rejected'}


def test_rejected_messages_may_hold_the_whole_conversation():
    turns = [dict(role='user', content='Q'), dict(role='assistant', content='B')]
    parsed = parse_conversation(dict(llava('Q', 'A', system='S'), rejected_messages=turns))
    assert parsed['rejected'] == [parsed['messages'][0], user('Q'), answer('B')]


def test_rejected_images_take_the_places_of_the_images():
    raw = llava('<image>Q', 'A', image='a.png', rejected_images=['b.png'])
    assert parse_conversation(dict(raw, rejected_response='B')) == dict(
        messages=[user(IMAGE, 'Q'), answer('A')],
        rejected=[user(IMAGE, 'Q'), answer('B')],
        images=['a.png'],
        rejected_images=['b.png'],
    )
    # Then the answers may be the same: the images make the difference.
    same = parse_conversation(raw)
    assert same['messages'] == same['rejected'] and same['rejected_images'] == ['b.png']
    with pytest.raises(ValueError, match='1 image placeholders, but 2 images'):
        parse_conversation(dict(raw, rejected_images=['b.png', 'c.png']))
    with pytest.raises(ValueError, match="'chosen' and 'rejected' are the same"):
        parse_conversation(dict(raw, rejected_images=['a.png']))


@pytest.mark.parametrize('empty', [None, [], ''])
def test_empty_keys_mean_nothing(empty):
    keys = (
        'video',
        'videos',
        'audio',
        'audios',
        'tools',
        'images',
        'rejected_images',
        'rejected_response',
        'functions',
    )
    assert parse_conversation(llava('Q', 'A', **dict.fromkeys(keys, empty))) == parse_conversation(llava('Q', 'A'))


@pytest.mark.parametrize(
    'key, value, what',
    [
        ('video', 'a.mp4', 'videos'),
        ('videos', ['a.mp4'], 'videos'),
        ('audio', 'a.wav', 'sound'),
        ('audios', ['a.wav'], 'sound'),
        ('video_file', 'a.mp4', 'videos'),
        ('sound', 'a.wav', 'sound'),
        ('available_tools', ['f'], 'tools'),
        ('tools', '[{"name": "f"}]', 'tools'),
        ('functions', [dict(name='f')], 'tools'),
    ],
)
def test_video_sound_and_tools_are_refused_by_name(key, value, what):
    with pytest.raises(ValueError, match=f"^has '{key}'; {what} cannot be trained on"):
        parse_conversation(llava('<image>Q', 'A', image='a.png', **{key: value}))


@pytest.mark.parametrize('role', ['tool', 'function_call', 'observation', 'Tool', 'ipython'])
def test_turns_of_tools_are_refused_by_name(role):
    with pytest.raises(ValueError, match=f"a turn of role '{role}'; tools cannot be trained on"):
        parse_conversation(chat(('user', 'Q'), (role, 'x'), ('assistant', 'A')))


@pytest.mark.parametrize('name', ['video', 'audio'])
def test_placeholders_of_video_and_sound_are_refused_unless_they_are_escaped(name):
    with pytest.raises(ValueError, match=f'the placeholder <{name}>; video and sound cannot be trained on'):
        parse_conversation(llava(f'<{name}>Q', 'A'))
    parsed = parse_conversation(llava(f'What is \\<{name}>?', f'The tag <{name}>.'))
    assert parsed['messages'] == [user(f'What is <{name}>?'), answer(f'The tag <{name}>.')]


@pytest.mark.parametrize(
    'part', [dict(type='video', video='a.mp4'), dict(video='a.mp4'), dict(type='video_url', video_url=dict(url='a')),
             dict(type='input_audio', input_audio={}), dict(type='tool_use'), dict(type='image', video='a.mp4'),
             dict(type='text', text='x', audio='a.wav')]
)  # fmt: skip
def test_parts_of_another_kind_are_refused(part):
    with pytest.raises(ValueError, match="must have type 'text' or 'image', found .*cannot be trained on"):
        parse_conversation(chat(('user', [part, text('Q')]), ('assistant', 'A')))


@pytest.mark.parametrize(
    'part, image',
    [
        (dict(image='a.png'), 'a.png'),
        (dict(type='image', image='a.png', text=None), 'a.png'),
        (dict(type='image', url='a.png'), 'a.png'),
        (dict(type='image', base64='AAAA'), 'data:;base64,AAAA'),
        (dict(type='image_url', image_url=dict(url='data:image/png;base64,AAAA')), 'data:image/png;base64,AAAA'),
        (dict(type='image_url', image_url='a.png'), 'a.png'),
        (dict(type='image', image=dict(bytes=b'x', path=None)), dict(bytes=b'x', path=None)),
        (dict(type='image', source=dict(type='base64', media_type='image/png', data='AA')), 'data:image/png;base64,AA'),
    ],
)
def test_images_inside_parts_of_every_spelling(part, image):
    raw = chat(('user', [part, dict(text='Q', image=None)]), ('assistant', dict(text='A')))
    assert parse_conversation(raw) == dict(messages=[user(IMAGE, 'Q'), answer('A')], images=[image])
    assert has_images(raw)


@pytest.mark.parametrize('value', ['a.png', b'x', dict(bytes=b'x', path='a.png'), dict(bytes=None, path='/a.png')])
def test_images_beside_the_turns_of_every_spelling(value):
    for raw in (llava('<image>Q', 'A', image=value), llava('<image>Q', 'A', images=[value])):
        assert parse_conversation(raw)['images'] == [value] and has_images(raw)
    assert parse_conversation(llava('Q', 'A', image=dict(bytes='AAAA', path='')))['images'] == ['data:;base64,AAAA']
    assert not has_images(llava('Q', 'A', image=dict(bytes=None, path=None)))
    assert parse_conversation(llava('Q', 'A', image=dict(bytes=None, path=None)))['images'] == []


@pytest.mark.parametrize('key', ['image_path', 'img', 'image_url', 'img_path', 'image_1', 'frames', 'chosen_images'])
def test_an_image_under_another_key_is_not_passed_over(key):
    with pytest.raises(ValueError, match=f"no 'image', but '{key}', which is not read"):
        parse_conversation(llava('Q', 'A', **{key: 'a.png'}))
    assert parse_conversation(llava('Q', 'A', image='a.png', **{key: 'b.png'}))[key] == 'b.png'


def test_the_content_of_a_file_under_any_key_is_not_passed_over():
    raw = llava('Q', 'A', screenshot=dict(bytes=b'\x89PNG', path=None))
    with pytest.raises(ValueError, match="no 'image', but 'screenshot', which is not read"):
        parse_conversation(raw)
    assert parse_conversation(llava('Q', 'A', image_size=[3, 4], num_images=0, image=None))['images'] == []


@pytest.mark.parametrize('key', ['image', 'images', 'img_path', 'image_url'])
def test_an_image_beside_the_text_of_a_turn_is_not_passed_over(key):
    turns = [dict(role='user', content='Q', **{key: ['a.png']}), dict(role='assistant', content='A')]
    with pytest.raises(ValueError, match=f"a turn of role 'user' has '{key}', which is not read there"):
        parse_conversation(dict(messages=turns))
    with pytest.raises(ValueError, match=f"a turn has '{key}'"):
        parse_conversation(dict(texts=[dict(user='Q', assistant='A', **{key: 'a.png'})]))
    turns[0][key] = []
    assert parse_conversation(dict(messages=turns))['images'] == []


@pytest.mark.parametrize('raw', [{}, dict(image='a.png')])
def test_an_image_named_in_the_text_is_not_trained_as_text(raw):
    # The layout of Qwen-VL's own files.
    question = '<image>\nPicture 2: <img>b/c.jpg</img>\nQ' if raw else 'Picture 1: <img>b/c.jpg</img>\nQ'
    with pytest.raises(ValueError, match="holds the image '<img>b/c.jpg</img>'; write <image> there"):
        parse_conversation(llava(question, 'A', **raw))
    assert parse_conversation(llava('Write HTML: <img> and </img>', '<img>b/c.jpg</img>'))['images'] == []


def test_placeholders_of_objects_are_not_trained_as_text():
    raw = llava('<image>Find <ref-object>', '<bbox>', image='a.png', objects=dict(ref=['cat'], bbox=[[1, 2, 3, 4]]))
    with pytest.raises(ValueError, match="the placeholder <ref-object> of 'objects'"):
        parse_conversation(raw)
    assert parse_conversation({**raw, 'objects': dict(ref=[], bbox=[])})['messages'][1] == answer('<bbox>')


@pytest.mark.parametrize('key', ['label', 'kto_tag'])
def test_an_answer_to_unlearn_is_not_trained(key):
    with pytest.raises(ValueError, match=f'has {key}=False, an answer that must not be learned'):
        parse_conversation(dict(prompt='Q', completion='A', **{key: False}))
    assert parse_conversation(dict(prompt='Q', completion='A', **{key: True}))[key] is True


@pytest.mark.parametrize('more', [dict(train=False), dict(loss=False), dict(weight=0), dict(loss_weight=0.0)])
def test_a_record_without_anything_to_train_is_refused(more):
    with pytest.raises(ValueError, match=rf'has {next(iter(more))}=(False|0|0\.0): nothing of it is to be trained'):
        parse_conversation(llava('Q', 'A', **more))
    assert parse_conversation(llava('Q', 'A', loss=2.5, weight=1, train='yes'))['loss'] == 2.5


@pytest.mark.parametrize('key', ['System', 'Video', 'Images', 'MESSAGES', 'Rejected'])
def test_a_key_in_another_case_is_not_passed_over(key):
    with pytest.raises(ValueError, match=f"has '{key}', which is not read; write '{key.lower()}'"):
        parse_conversation(llava('Q', 'A', **{key: 'x'}))
    turns = [dict(role='user', content='Q'), dict(role='assistant', content='A', Loss=False)]
    with pytest.raises(ValueError, match="a turn of role 'assistant' has 'Loss', which is not read; write 'loss'"):
        parse_conversation(dict(messages=turns))


def test_a_false_key_of_a_turn_is_told():
    turns = [dict(role='user', content='Q'), dict(role='assistant', content='A', checked=False, name='')]
    assert list(other_keys(dict(messages=turns))) == ['messages[].checked']


def test_tools_that_are_an_empty_list_in_a_text_are_none():
    assert parse_conversation(llava('Q', 'A', tools='[]'))['messages'] == [user('Q'), answer('A')]


def test_one_rejected_image_makes_a_pair():
    parsed = parse_conversation(llava('<image>Q', 'A', image='a.png', rejected_image='b.png'))
    assert parsed['rejected_images'] == ['b.png'] and 'rejected_image' not in parsed


@pytest.mark.parametrize('key', ['rejected_conversations', 'rejected_answer', 'rejected_output'])
def test_rejected_answers_under_every_name_make_a_pair(key):
    turns = llava('<image>\nQ', 'B')['conversations']
    raw = llava('<image>\nQ', 'A', image='a.png', **{key: turns if key.endswith('conversations') else 'B'})
    parsed = parse_conversation(raw)
    assert parsed['rejected'] == [user(IMAGE, 'Q'), answer('B')] and key not in parsed


def test_exchanges_may_be_an_object_of_lists():
    # What `datasets` makes of a Sequence of {user, assistant}.
    parsed = parse_conversation(dict(texts=dict(user=['Q', 'R'], assistant=['A', 'B'], source=['s', 's'])))
    assert parsed['messages'] == [user('Q'), answer('A'), user('R'), answer('B')]
    with pytest.raises(ValueError, match='lists of one length'):
        parse_conversation(dict(texts=dict(user=['Q', 'R'], assistant=['A'])))


def test_a_pair_may_stand_beside_its_chosen_conversation():
    # The layout of ultrafeedback_binarized.
    chosen, rejected = [user('Q'), answer('A')], [user('Q'), answer('B')]
    parsed = parse_conversation(dict(prompt='Q', messages=chosen, chosen=chosen, rejected=rejected, score_chosen=8.0))
    assert (parsed['messages'], parsed['rejected']) == (chosen, rejected)
    with pytest.raises(ValueError, match="the prompt and 'chosen', which differ"):
        parse_conversation(dict(messages=chosen, chosen=rejected, rejected=chosen))


@pytest.mark.parametrize('name', ['<image_1>', '<image 1>', '<ImageHere>', '<|image|>', '<img>a</img>', '<IMAGE>'])
def test_placeholders_of_other_tools_are_not_trained_as_text(name):
    with pytest.raises(ValueError, match='where an image may be meant; write <image>'):
        parse_conversation(llava(f'{name} What?', 'A', image='a.png'))
    assert parse_conversation(llava(f'What is {name}?', 'A'))['messages'][0] == user(f'What is {name}?')


def test_an_escaped_placeholder_is_text():
    parsed = parse_conversation(llava('<image>\nWhat does \\<image> do?', 'The tag \\<image> shows.', image='a.png'))
    assert parsed['messages'] == [user(IMAGE, 'What does <image> do?'), answer('The tag <image> shows.')]
    with pytest.raises(ValueError, match=r'1 image placeholders, but 0 images .*writes \\<image>'):
        parse_conversation(llava('What does <image> do?', 'A'))


CODE = '    def f():\n        return 1\n\n'


def test_indentation_and_white_space_of_texts_are_kept():
    parsed = parse_conversation(
        chat(('user', CODE), ('assistant', CODE), ('user', [text('  x ')]), ('assistant', [text(CODE)]))
    )
    assert [text_of(message) for message in parsed['messages']] == [CODE, CODE, '  x ', CODE]
    windows = parse_conversation(llava('<image>\r\n  Q\r\n<image>', 'A', images=['a', 'b']))
    assert windows['messages'][0] == user(IMAGE, '  Q', IMAGE)


@pytest.mark.parametrize('roles', [('Human', 'Assistant'), ('USER', 'bot'), ('user', 'model'), (' user ', 'GPT')])
def test_roles_of_every_spelling(roles):
    raw = dict(conversations=[{'from': role, 'value': value} for role, value in zip(roles, 'QA')])
    assert parse_conversation(raw)['messages'] == [user('Q'), answer('A')]
    raw = dict(messages=[{'role': role, 'content': value, 'from': None} for role, value in zip(roles, 'QA')])
    assert parse_conversation(raw)['messages'] == [user('Q'), answer('A')]


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


@pytest.mark.parametrize(
    'raw',
    [
        dict(instruction='Q', input='', chosen='A', rejected='B'),
        dict(question='Q', chosen='A', rejected='B'),
        dict(prompt='Q', chosen=llava('Q', 'A')['conversations'], rejected=llava('Q', 'B')['conversations']),
        dict(messages=llava('Q', 'A')['conversations'], chosen=dict(role='assistant', content='A'),
             rejected=dict(role='assistant', content='B')),
    ],
)  # fmt: skip
def test_pairs_may_repeat_their_prompt(raw):
    assert parse_conversation(raw) == dict(
        messages=[user('Q'), answer('A')], rejected=[user('Q'), answer('B')], images=[]
    )


@pytest.mark.parametrize(
    'raw, message',
    [
        (dict(llava('Q', 'A'), messages=chat(('user', 'R'), ('assistant', 'A'))['messages']), 'different turns under'),
        (dict(llava('Q', 'A'), prompt='R'), "'prompt' and 'conversations', which differ"),
        (dict(prompt='Q', query='R', completion='A'), "questions under 'prompt' and 'query'"),
        (dict(prompt='Q', completion='A', response='B'), "answers under 'completion' and 'response'"),
        (
            dict(prompt='R', chosen=llava('Q', 'A')['conversations'], rejected=llava('Q', 'B')['conversations']),
            'differ',
        ),
        (llava('Q', 'A', rejected_response=['B', 'C']), 'holds 2 answers'),
        (llava('Q', 'A', rejected_response='A'), 'are the same'),
        (dict(chat(('system', 'T'), ('user', 'Q'), ('assistant', 'A')), system='S'), "under 'system' and another one"),
        (llava('Q', 'A', system=['S']), "'system' must be a text"),
        (
            dict(chat(('system', '<image>S'), ('user', 'Q'), ('assistant', 'A')), image='a'),
            'is a system prompt that holds',
        ),
        (dict(messages=[{'role': 'user', 'from': 'gpt', 'content': 'Q'}]), "roles under 'role' and 'from'"),
        (dict(messages=[{'role': 'user', 'content': 'Q', 'value': 'R'}]), "contents under 'content' and 'value'"),
        (dict(prompt='Q', chosen=dict(HERE, loss=False), rejected='B'), 'marked as not to be trained'),
        (dict(prompt=5, completion='A'), 'turns must be a text, an object or a list of objects, found 5'),
    ],
)
def test_contradictions_are_refused(raw, message):
    with pytest.raises(ValueError, match=message):
        parse_conversation(raw)


def test_other_keys_are_told_with_those_of_turns():
    raw = llava('Q', 'A', id=1, model='m', system='S', videos=[], rejected_response='B')
    raw['conversations'][0]['name'] = 'Bob'
    assert list(other_keys(raw)) == ['id', 'model', 'conversations[].name']
    assert list(other_keys(dict(prompt='Q', completion='A', score=1))) == ['score']


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
