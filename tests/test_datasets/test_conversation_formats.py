"""Tests of the conversation layouts."""

import pytest

from mergemix_mm.datasets.conversation_formats import has_images, parse_conversation, question_messages

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
        messages=[user(IMAGE, 'What?'), answer('A cat.'), user('Why?'), answer('Because.')], images=['a.jpg'], id='7'
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
        (dict(messages=[dict(role='user', content=[dict(type='video')])]), r"type 'text' or 'image', found \{'type'"),
        (llava('Q', 'A', 'Q'), 'does not end with an assistant answer'),
        (llava('Q', '  '), 'turn 2 is an empty answer'),
        (llava('', 'A'), 'turn 1 is an empty question'),
        (dict(conversations=[{'from': 'gpt', 'value': 'x'}]), r"must alternate, .* found \['assistant'\]"),
        (dict(conversations=[{'from': 'human', 'value': 'x'}] * 2), r"must alternate, .* found \['user', 'user'\]"),
        (dict(messages=[dict(role='system', content='x')]), 'has no turns'),
        (llava('<image><image>', 'A', image='a.png'), '2 image placeholders, but 1 images'),
        (llava('<image>', 'A'), '1 image placeholders, but 0 images'),
        (llava('Q', 'see <image>', image='a.png'), 'turn 2 is an answer that holds an image'),
        (llava('Q', 'A', image=dict(bytes='x')), "'image' and 'images' must hold paths"),
        (dict(prompt='Q', chosen='A'), "has 'chosen' alone"),
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
