"""A few records of every data set that configs name, in the official layouts, on drawn images: the folder `data`."""

import json
import pickle

import tiny_vlms

HEIGHT = 30
INFO = dict(info=dict(version='2.0'), license=dict(name='none'), data_type='mscoco')
REFERENCES = {
    'refcoco/refs(unc).p': ('train', 'val', 'testA', 'testB'),
    'refcoco+/refs(unc).p': ('train', 'val', 'testA', 'testB'),
    'refcocog/refs(umd).p': ('train', 'val', 'test'),
}


def width(seed):
    """That of an image of :func:`draw`."""
    return 40 + 4 * seed


def draw(path, seed):
    """Draw an image of its own for every seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tiny_vlms.random_image(HEIGHT, width(seed), seed).save(path)


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_lines(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(map(json.dumps, records)) + '\n')


def write_llava(path, image, num_images, num_texts=0):
    """Conversations on images, and others or captions between them."""
    records = []
    for i in range(num_images):
        name = image.format(i)
        draw(path.parent / name, i)
        turns = [('human', '<image>\nWhat is it?'), ('gpt', 'A cat.'), ('human', 'Where?'), ('gpt', 'Here' + i * '!')]
        records.append(dict(id=str(i), image=name, conversations=[{'from': f, 'value': v} for f, v in turns]))
    turns = [('human', 'Who wrote Faust?'), ('gpt', 'Goethe.')]
    for i in range(num_texts):
        text = dict(id=f't{i}', conversations=[{'from': f, 'value': v} for f, v in turns])
        records.insert(2 * i + 1, text)
    write_json(path, records)


def write_captions(root, num_images):
    """Captions as LAION's, one folder of images."""
    names = [f'00000/{i:09d}.jpg' for i in range(num_images)]
    for i, name in enumerate(names):
        draw(root / name, i)
    write_lines(root / 'train.jsonl', [dict(image=name, caption=f'image {i}') for i, name in enumerate(names)])


def write_texts(root, num_texts):
    """Plain texts, of training and of validation."""
    for split in ('train', 'val'):
        write_lines(root / f'{split}.jsonl', [dict(text=f'{split} ' + 'word ' * (i + 1)) for i in range(num_texts)])


def write_pope(root):
    """Two questions of each kind on images of val2014."""
    names = [f'COCO_val2014_{i:012d}.jpg' for i in range(2)]
    for i, name in enumerate(names):
        draw(root / 'val2014' / name, i)
    question = dict(text='Is there a dog in the image?')
    for kind in ('random', 'popular', 'adversarial'):
        lines = [dict(question, question_id=i, image=names[i], label=('yes', 'no')[i]) for i in range(2)]
        write_lines(root / f'pope/coco_pope_{kind}.json', lines)


def write_vqav2(root, split):
    """Two questions on two images of `split`, 'train' or 'val'."""
    subset = f'{split}2014'
    for i in range(2):
        draw(root / subset / f'COCO_{subset}_{i:012d}.jpg', i)
    questions = [dict(image_id=i, question='What is it?', question_id=10 * i) for i in range(2)]
    answers = [dict(answer='cat', answer_confidence='yes', answer_id=k) for k in range(1, 11)]
    annotations = [
        dict(image_id=i, question_id=10 * i, question_type='what is', answer_type='other', answers=answers)
        | dict(multiple_choice_answer='cat')
        for i in range(2)
    ]
    info = dict(INFO, data_subtype=subset)
    write_json(root / f'v2_OpenEnded_mscoco_{subset}_questions.json', dict(info, questions=questions))
    write_json(root / f'v2_mscoco_{subset}_annotations.json', dict(info, annotations=annotations))


def write_scienceqa(root):
    """A problem with an image and one without, of each split."""
    problem = dict(question='Which is a cat?', choices=['this', 'that'], answer=1, hint='', grade='grade2')
    problem |= dict(subject='natural science', topic='biology', task='closed choice', lecture='', solution='')
    splits, problems = dict(train=['3', '4'], val=[], test=['1', '2']), {}
    for split, (seen, unseen) in (('train', splits['train']), ('test', splits['test'])):
        draw(root / f'images/{split}/{seen}/image.png', 1)
        problems |= {
            seen: dict(problem, split=split, image='image.png'),
            unseen: dict(problem, split=split, image=None),
        }
    write_json(root / 'problems.json', problems)
    write_json(root / 'pid_splits.json', splits)


def write_refcoco(root):
    """RefCOCO, RefCOCO+ and RefCOCOg, each with an expression per split and image of train2014."""
    images = [f'COCO_train2014_{i:012d}.jpg' for i in range(2)]
    for i, name in enumerate(images):
        draw(root / 'train2014' / name, i)
    for file, splits in REFERENCES.items():
        refs = [_reference(number, *one) for number, one in enumerate((split, i) for split in splits for i in (0, 1))]
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(refs, protocol=2))
        boxes = [_annotation(i, i, [2.5, 3, 20 + i, 15]) for i in (0, 1)]
        write_json(path.parent / 'instances.json', _coco(images, boxes))


def write_coco2017(root, split):
    """Instances, captions and persons on two images of `split`, 'train' or 'val'."""
    images = [f'{i:012d}.jpg' for i in range(2)]
    for i, name in enumerate(images):
        draw(root / f'{split}2017' / name, i)
    boxes = [_annotation(i, i // 2, [2 + i, 2.5, 20, 15], category=1 + i % 2) for i in range(4)]
    persons = [_annotation(i, i, [2, 3, 20, 15], keypoints=[4, 5, 2, 0, 0, 0], num_keypoints=1) for i in (0, 1)]
    captions = [dict(id=i, image_id=i, caption=f'A dog, {i}.\n') for i in (0, 1)]
    folder = root / 'annotations'
    write_json(folder / f'instances_{split}2017.json', _coco(images, boxes))
    write_json(folder / f'person_keypoints_{split}2017.json', _coco(images, persons))
    write_json(folder / f'captions_{split}2017.json', _coco(images, captions))


def write_publaynet(root):
    """Two pages."""
    pages = [f'PMC{i}_00000.jpg' for i in range(2)]
    for i, name in enumerate(pages):
        draw(root / 'train' / name, i)
    blocks = [_annotation(i, i // 2, [3, 4 + 8 * (i % 2), 30, 6], category=1 + i % 2) for i in range(4)]
    write_json(root / 'train.json', _coco(pages, blocks))


def _reference(number, split, image):
    sentence = dict(tokens=['the', 'dog'], raw='The dog!', sent_id=number, sent='the dog')
    return dict(
        ref_id=number,
        ann_id=image,
        image_id=image,
        file_name=f'COCO_train2014_{image:012d}_{image}.jpg',
        split=split,
        sentences=[sentence],
        sent_ids=[number],
        category_id=1,
    )


def _annotation(number, image, box, category=1, **fields):
    corners = [[box[0], box[1], box[0] + box[2], box[1] + box[3]]]
    return dict(id=number, image_id=image, category_id=category, bbox=box, iscrowd=0, segmentation=corners, **fields)


def _coco(images, annotations):
    """A file in COCO's layout; image i is that of seed i."""
    return dict(
        images=[dict(id=i, file_name=name, height=HEIGHT, width=width(i)) for i, name in enumerate(images)],
        annotations=annotations,
        categories=[dict(id=1, name='person', keypoints=['nose', 'left_eye'], skeleton=[]), dict(id=2, name='dog')],
    )
