"""Feeds mutated files to every reader, and counts what they do: read, refuse in one line that names the file, or break.

    python tests/fuzz/readers.py --count 3000 --seed 0

A reader breaks if it raises anything but ValueError or OSError, if its message has several lines, control characters or
over 600 characters or does not name the file, if it takes over 10 s, or if a text of a record becomes a control token.
Each mutation is a function of (seed, reader, number): ``--reader NAME --number N`` repeats one of them.
"""

import argparse
import io
import json
import pickle
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / 'tests'), str(ROOT / 'tests' / 'fuzz')]

import mmengine  # noqa: E402
import numpy as np  # noqa: E402
import small_data  # noqa: E402
import tiny_vlms  # noqa: E402
import torch  # noqa: E402
from mutations import mutate_bytes, mutate_json  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import save as save_tensors  # noqa: E402

import mergemix_mm.datasets as data  # noqa: E402
from mergemix_mm.datasets.io.plain_pickle import load_plain_pickle  # noqa: E402
from mergemix_mm.engine.weights import StoredWeights, guarded_mmengine, load_checkpoint  # noqa: E402
from mergemix_mm.models.losses.aia_loss import read_curves  # noqa: E402
from mergemix_mm.models.vlms.sphinx.files import read_layout  # noqa: E402

SECONDS, LONGEST = 10, 600
DATA_URL = 'data:image/gif;base64,R0lGODdhAQABAIAAAP///////ywAAAAAAQABAAACAkQBADs='
MEMORY = 8 << 30  # Above what the program has at its start.


class TooSlowError(BaseException):
    """A reader took longer than it may."""


@dataclass
class Reader:
    """What is fuzzed: files, and what reads them.

    Attributes:
        files (dict[str, bytes | object]): Contents to mutate by the names of their files: bytes, or what becomes JSON.
        read (Callable[[Path], object]): Reads a file, and whatever a user does next with it.
    """

    files: dict[str, bytes | object]
    read: Callable[[Path], object]
    names_file: bool = True


@dataclass
class Outcome:
    """What happened to the mutations of a reader."""

    read: int = 0
    refused: int = 0
    slowest: float = 0.0
    broken: list[tuple[int, str]] = field(default_factory=list)


def _all_of(dataset: Sequence) -> None:
    for index in range(len(dataset)):
        dataset[index]


def _conversations() -> Reader:
    turns = [dict(role='user', content='<image>\nWhat is it?'), dict(role='assistant', content='  A cat.')]
    parts = [dict(type='image', image='0.png'), dict(type='text', text='Which?')]
    said = [{'from': 'human', 'value': '<image>\nWhat?'}, {'from': 'gpt', 'value': 'A dog', 'loss': True}]
    records = [
        dict(id='1', image='0.png', conversations=said),
        dict(id='2', conversations=[{'from': 'system', 'value': 'Be brief.'}, dict(said[0], value='Hi'), said[1]]),
        dict(messages=turns, images=['0.png'], system='Be brief.', rejected_response='A dog.'),
        dict(messages=[dict(role='user', content=parts), dict(role='assistant', content='This.', weight=1)]),
        dict(image='0.png', prompt='<image>Q', chosen='good', rejected='bad', source='web'),
        dict(conversations=said, image=DATA_URL, rejected_images=['1.png'], videos=[]),
        dict(conversations=said, image=dict(bytes=DATA_URL.partition(',')[2], path='0.png')),
        dict(instruction='Which?', input='', output='This.', history=[['a', 'b']]),
    ]

    def read(path: Path) -> None:
        _all_of(data.ConversationDataset(path.name, data_root=str(path.parent)))

    lines = '\n'.join(map(json.dumps, records)).encode()
    text = [dict(record) for record in records]
    return Reader(
        {'records.json': text, 'records.jsonl': lines, 'pretty.json': json.dumps(text, indent=1).encode()}, read
    )


def _tables() -> Reader:
    import pyarrow as pa
    import pyarrow.parquet as pq

    picture = io.BytesIO()
    tiny_vlms.random_image(9, 13, 0).save(picture, 'PNG')
    image = dict(bytes=picture.getvalue(), path=None)
    said = [{'from': 'human', 'value': '<image>\nWhat?'}, {'from': 'gpt', 'value': 'A dog'}]
    rows = [dict(id=i, image=image, conversations=said) for i in range(4)] + [
        dict(id=9, image=None, conversations=[dict(said[0], value='Hi'), said[1]])
    ]
    parts = [dict(image=image, text=None), dict(image=None, text='Which?')]
    turns = [dict(role='user', content=parts), dict(role='assistant', content=[dict(image=None, text='This.')])]
    files = {}
    for name, table, options in (
        ('rows.parquet', pa.Table.from_pylist(rows), dict(row_group_size=2)),
        ('plain.parquet', pa.Table.from_pylist(rows), dict(compression='none', use_dictionary=False)),
        ('parts.parquet', pa.Table.from_pylist([dict(messages=turns, images=[])] * 3), dict(compression='zstd')),
    ):
        sink = io.BytesIO()
        pq.write_table(table, sink, **options)
        files[name] = sink.getvalue()
        for kind, new in (('stream', pa.ipc.new_stream), ('file', pa.ipc.new_file)):
            sink = io.BytesIO()
            with new(sink, table.schema) as writer:
                writer.write_table(table, max_chunksize=2)
            files[f'{Path(name).stem}-{kind}.arrow'] = sink.getvalue()

    def read(path: Path) -> None:
        _all_of(data.ConversationDataset(path.name, data_root=str(path.parent)))

    return Reader(files, read)


def _images() -> Reader:
    picture = tiny_vlms.random_image(9, 13, 0)
    deep = Image.fromarray(np.arange(117, dtype=np.uint16).reshape(9, 13) * 500)
    files = {}

    def add(name: str, image: Image.Image, **kwargs: object) -> None:
        buffer = io.BytesIO()
        image.save(buffer, **kwargs)
        files[name] = buffer.getvalue()

    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ('JPEG', 'PNG', 'GIF', 'BMP', 'TIFF', 'WEBP', 'PPM', 'JPEG2000', 'AVIF'):
        if kind in Image.registered_extensions().values() and kind in Image.SAVE:
            add(f'{kind.lower()}.png', picture, format=kind)
    add('turned.jpg', picture, format='JPEG', exif=exif)
    add('deep.png', deep, format='PNG')
    add('deep.tiff', deep, format='TIFF')
    add('float.tiff', Image.fromarray(np.linspace(0, 1, 117, dtype=np.float32).reshape(9, 13)), format='TIFF')
    add('clear.png', picture.convert('RGBA'), format='PNG')
    add('palette.png', picture.convert('P'), format='PNG', transparency=0)
    add('lzw.tiff', picture, format='TIFF', compression='tiff_lzw')
    add('grey.png', picture.convert('L'), format='PNG', transparency=0)
    add('ink.jpg', picture.convert('CMYK'), format='JPEG')
    add('whole.tiff', Image.fromarray(np.arange(117, dtype=np.int32).reshape(9, 13) * 500), format='TIFF')
    for kind in ('GIF', 'TIFF', 'WEBP', 'PNG', 'MPO'):
        add(f'two_{kind.lower()}.png', picture, format=kind, save_all=True, append_images=[picture.rotate(90)])

    def read(path: Path) -> None:
        ann_file = path.parent / 'image.json'
        ann_file.write_text(json.dumps([dict(image=path.name, text='x')]))
        _all_of(data.TaskRecordDataset(ann_file.name, data_root=str(path.parent)))

    return Reader(files, read)


def _coco() -> Reader:
    boxes = [small_data._annotation(i, i // 2, [2 + i, 2.5, 20, 15], category=1 + i % 2) for i in range(4)]
    boxes[3] |= dict(iscrowd=1, segmentation=dict(counts=[1, 2], size=[30, 40]))
    content = small_data._coco(['0.png', '1.png'], boxes)

    def read(path: Path) -> None:
        _all_of(data.COCOTaskDataset(ann_file=path.name, kind='detection', data_root=str(path.parent)))

    return Reader({'instances.json': content, 'indented.json': json.dumps(content, indent=1).encode()}, read)


def _captions() -> Reader:
    content = [dict(image='0.png', caption='a red ring'), dict(image='1.png', text='two rings')]

    def read(path: Path) -> None:
        _all_of(data.TextToImageDataset(ann_file=path.name, data_root=str(path.parent)))

    return Reader({'captions.json': content, 'captions.jsonl': '\n'.join(map(json.dumps, content)).encode()}, read)


def _pope() -> Reader:
    lines = [dict(question_id=i, image=f'{i}.png', text='Is there a dog?', label=('yes', 'no')[i]) for i in range(2)]

    def read(path: Path) -> None:
        _all_of(data.POPEDataset(path.name, data_root=str(path.parent)))

    return Reader({'pope.json': '\n'.join(map(json.dumps, lines)).encode()}, read)


def _vqav2(folder: Path) -> Reader:
    small_data.write_vqav2(folder, 'val')
    questions, answers = (
        folder / f'v2_{name}.json' for name in ('OpenEnded_mscoco_val2014_questions', 'mscoco_val2014_annotations')
    )

    def read(path: Path) -> None:
        (path.parent / questions.name).write_bytes(questions.read_bytes())
        arguments = dict(data_root=str(path.parent), data_prefix=dict(img_path=str(folder / 'val2014')), test_mode=True)
        _all_of(data.VQAv2Dataset(questions.name, path.name, **arguments))

    return Reader({'annotations.json': json.loads(answers.read_text())}, read)


def _scienceqa(folder: Path) -> Reader:
    small_data.write_scienceqa(folder)

    def read(path: Path) -> None:
        (path.parent / 'pid_splits.json').write_bytes((folder / 'pid_splits.json').read_bytes())
        prefix = dict(img_path=str(folder / 'images'))
        _all_of(data.ScienceQADataset(split='test', ann_file=path.name, data_root=str(path.parent), data_prefix=prefix))

    return Reader({'problems.json': json.loads((folder / 'problems.json').read_text())}, read)


def _refcoco(folder: Path) -> Reader:
    small_data.write_refcoco(folder)
    refs = folder / 'refcoco/refs(unc).p'

    def read(path: Path) -> None:
        (path.parent / 'instances.json').write_bytes((refs.parent / 'instances.json').read_bytes())
        prefix = dict(img_path=str(folder / 'train2014'))
        _all_of(data.RefCOCODataset(path.name, data_root=str(path.parent), data_prefix=prefix))

    content = pickle.loads(refs.read_bytes())
    return Reader({'refs.p': refs.read_bytes(), 'refs0.p': pickle.dumps(content, 0), 'refs.json': content}, read)


def _pickles() -> Reader:
    content = [dict(a=1, b=[1.5, 'x', b'y', (None, True)], c={3, 4}), np.float64(2.5), np.int32(7), 10**30, 'long' * 99]
    return Reader({f'{protocol}.p': pickle.dumps(content, protocol) for protocol in range(6)}, load_plain_pickle)


def _checkpoints() -> Reader:
    buffer = io.BytesIO()
    weights = {'a.weight': torch.arange(6.0).reshape(2, 3), 'a.bias': torch.ones(2, dtype=torch.bfloat16)}
    torch.save(dict(meta=dict(epoch=1, score=np.float32(0.5)), state_dict=weights), buffer)
    return Reader({'epoch_1.pth': buffer.getvalue()}, load_checkpoint)


def _weights() -> Reader:
    tensors = {'a': torch.arange(6.0).reshape(2, 3), 'b': torch.ones(3, dtype=torch.int64), 'c': torch.zeros(0, 4)}

    def read(path: Path) -> None:
        for tensor in StoredWeights(path).tensors.values():
            tensor.read()

    return Reader({'model.safetensors': save_tensors(tensors, dict(format='pt'))}, read)


def _index() -> Reader:
    shards = {f'model-{i + 1:05}-of-00002.safetensors': {name: torch.ones(2)} for i, name in enumerate('ab')}
    index = dict(metadata=dict(total_size=16), weight_map={next(iter(t)): name for name, t in shards.items()})

    def read(path: Path) -> None:
        for name, tensors in shards.items():
            (path.parent / name).write_bytes(save_tensors(tensors))
        weights = StoredWeights(path.parent)
        listed = json.loads(path.read_bytes())['weight_map']
        assert weights.tensors.keys() == listed.keys(), 'a tensor of the index is lost'

    return Reader({'model.safetensors.index.json': index}, read)


def _sphinx_layout() -> Reader:
    vit = dict(type='mmpretrain.VisionTransformer', arch=dict(embed_dims=8), init_cfg=dict(type='Pretrained'))
    clip = dict(type='transformers.CLIPVisionModel', config=dict(model_type='clip_vision_model', hidden_size=8))
    backbone = dict(type='MultiBackbone', encoders=[dict(encoder=vit, frozen=True), dict(encoder=clip)])
    neck = dict(type='EmbeddingMixNeck', in_channels=[8, 8], out_channels=16, grid=2)
    content = dict(model_type='sphinx', backbone=backbone, neck=neck, image_token_id=260, grid=1)

    def read(path: Path) -> None:
        try:
            read_layout(path.parent)
        except OSError as error:  # Of a folder that is not of a SPHINX; it names the folder.
            assert str(path.parent) in str(error)

    return Reader({'config.json': content}, read)


def _annotations() -> Reader:
    content = dict(
        metainfo=dict(classes=('a', 'b')), data_list=[dict(img_path='a', box=np.ones((2, 4)), id=np.int64(3))]
    )
    files = {f'{protocol}.pkl': pickle.dumps(content, protocol) for protocol in range(5)}

    def read(path: Path) -> None:
        with guarded_mmengine():
            mmengine.load(path)

    return Reader(
        {**files, 'a.yaml': b'metainfo: {classes: [a, b]}\ndata_list:\n- {img_path: a, box: [1, 2.5]}\n'}, read
    )


def _curves() -> Reader:
    content = {task: dict(mean=[0.1, 0.2, 0.3], std=[0.1, 0.1, 0.1]) for task in ('gen', 'und')}
    return Reader({'curve.json': content}, read_curves)


def _answers() -> Reader:
    from mergemix_mm.evaluation import (
        MultipleChoiceMetric,
        POPEMetric,
        ReferringBoxMetric,
        TextDetectionMetric,
        VQAv2Accuracy,
    )
    from mergemix_mm.evaluation.metrics.answer_boxes import COORDINATES

    answers = [
        'The answer is B.',
        '(A) blue',
        '[0.1, 0.2, 0.5, 0.75]',
        'Yes, there is.',
        'B. Options A and C',
        '答案是B。',
        '<think>A?</think><answer>\\boxed{\\text{B}}</answer>',
        '```json\n{"answer": "B", "reason": ["A"]}\n```',
        "Two cats, 1,000 dogs; it's O'clock.",
        '<ref>it</ref><box>(100,200),(300,800)</box>',
        '[{"bbox_2d": [10, 20, 30, 40], "label": "x"}]',
        '<loc0205><loc0102><loc0819><loc0307> dog',
    ]

    def read(path: Path) -> None:
        answer = path.read_bytes().decode('utf-8', 'replace')
        sample = dict(pred_answer=answer, image_size=(30, 40), choices=['red', 'blue', 'green'])
        for metric, truth in ((MultipleChoiceMetric(), 'B'), (POPEMetric(), 'yes')):
            metric.process({}, [dict(sample, gt_answer=truth)])
        VQAv2Accuracy().process({}, [dict(sample, gt_answer=['2 cats'] * 4 + [answer] * 6)])
        for coordinates in COORDINATES:
            metric = ReferringBoxMetric(coordinates=coordinates)
            metric.process({}, [dict(sample, gt_boxes=[[1.0, 2, 3, 4]])])
        TextDetectionMetric().process({}, [dict(sample, gt_boxes=[[1.0, 2, 3, 4]], label='dog', image_id=1)])

    return Reader({f'{i}.txt': answer.encode() for i, answer in enumerate(answers)}, read, names_file=False)


def _encoding(family: str) -> Reader:
    encode = data.EncodeConversation(tiny_vlms.tiny_processor(family))
    # All added tokens, but for the places of PaliGemma, which are its answers.
    added = {content: number for number, content in encode.record_tokenizer.controls.items()}
    image = tiny_vlms.random_image(28, 28, 0)

    def counts(question: str, answer: str) -> list[int]:
        content = [dict(type='image'), dict(type='text', text=question)]
        reply = dict(role='assistant', content=[dict(type='text', text=answer)])
        record = dict(messages=[dict(role='user', content=content), reply], images=[image], source='text.txt')
        ids = encode(record)['inputs']['input_ids'].tolist()
        return [ids.count(number) for number in added.values()]

    plain = counts('x', 'x')

    def read(path: Path) -> None:
        question, _, answer = path.read_bytes().decode('utf-8', 'replace').partition('|')
        found = counts(question or 'x', answer or 'x')
        assert found == plain, 'a text became control tokens'

    control = list(added)
    texts = ['What is it?|A cat.', ' '.join(control[:3]) + '|' + ''.join(control[-3:]), '<s>old</s>|<image>', 'a\n|  b']
    return Reader({f'{i}.txt': text.encode() for i, text in enumerate(texts)}, read, names_file=False)


def _templates() -> Reader:
    """Chat templates of strangers: those of this package with comments, so that they are rendered as unknown ones."""
    processor = tiny_vlms.tiny_processor('llava')
    folder = Path(data.__file__).parents[1] / 'families' / 'chat_templates'
    files = {path.name: b'{#- changed -#}' + path.read_bytes() for path in sorted(folder.glob('*.jinja'))}
    image, text = dict(type='image'), dict(type='text', text='What </s> is it?')
    answer = dict(role='assistant', content=[dict(type='text', text='  A cat.')])
    record = dict(messages=[dict(role='user', content=[image, text]), answer], source='text.txt')
    record['images'] = [tiny_vlms.random_image(28, 28, 0)]

    def read(path: Path) -> None:
        encode = data.EncodeConversation(processor, str(path))
        inputs = encode(dict(record))['inputs']
        labelled = inputs['input_ids'][inputs['labels'] != -100]
        # What the record says ends nothing; what the template writes may be anything.
        text = encode.template.write(record['messages']).text
        assert (inputs['input_ids'] == 2).sum() == text.count('</s>') - text.count('What </s> is it?')
        assert len(labelled)

    return Reader(files, read)


def readers(folder: Path) -> dict[str, Callable[[], Reader]]:
    """All readers by name, built when they are called."""
    found = dict(
        conversations=_conversations,
        tables=_tables,
        images=_images,
        coco=_coco,
        captions=_captions,
        pope=_pope,
        vqav2=lambda: _vqav2(folder / 'vqav2'),
        scienceqa=lambda: _scienceqa(folder / 'scienceqa'),
        refcoco=lambda: _refcoco(folder / 'refcoco'),
        plain_pickle=_pickles,
        checkpoint=_checkpoints,
        safetensors=_weights,
        shard_index=_index,
        sphinx_layout=_sphinx_layout,
        annotations=_annotations,
        curves=_curves,
        answers=_answers,
        chat_template=_templates,
    )
    return found | {f'encode_{family}': lambda family=family: _encoding(family) for family in tiny_vlms.ALL_FAMILIES}


@contextmanager
def _limited_time() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TooSlowError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def mutate(reader: Reader, seed: int, name: str, number: int) -> tuple[str, bytes]:
    """The name and the content of a mutated file."""
    rng = random.Random(f'{seed} {name} {number}')
    file = rng.choice(sorted(reader.files))
    content = reader.files[file]
    as_bytes = {
        key: value if isinstance(value, bytes) else json.dumps(value).encode() for key, value in reader.files.items()
    }
    if not isinstance(content, bytes) and rng.random() < 0.5:
        return file, mutate_json(rng, content)
    return file, mutate_bytes(rng, as_bytes[file], list(as_bytes.values()))


def try_one(reader: Reader, folder: Path, file: str, content: bytes) -> str | None:
    """Read a mutated file: 'read', 'refused', or what is wrong with the way in which it was refused."""
    path = folder / file
    path.write_bytes(content)
    try:
        with _limited_time(), warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter('ignore')
            reader.read(path)
    except (ValueError, OSError) as error:
        text = str(error)
        # What the message of the reader's own may hold is decided here, not how it is written.
        if isinstance(error, UnicodeError) or type(error).__name__ == 'JSONDecodeError':
            return f'a bare {type(error).__name__}: {text[:100]!r}'
        if not text.isprintable():
            return f'several lines or control characters: {text[:200]!r}'
        if len(text) > LONGEST:
            return f'{len(text)} characters: {text[:100]!r}'
        if reader.names_file and str(folder) not in text:
            return f'the file is not named: {text[:200]!r}'
        return 'refused'
    except TooSlowError:
        return f'over {SECONDS} s'
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f'{type(error).__name__}: {str(error)[:150]!r} at {Path(place.filename).name}:{place.lineno}'
    return 'read'


def fuzz(name: str, build: Callable[[], Reader], count: int, seed: int, folder: Path) -> Outcome:
    """Try the mutations of one reader; `folder` holds the images that its files name."""
    reader, outcome = build(), Outcome()
    for i in range(2):
        small_data.draw(folder / f'{i}.png', i)
    for file, content in reader.files.items():  # What was not mutated is read.
        whole = content if isinstance(content, bytes) else json.dumps(content).encode()
        found = try_one(reader, folder, file, whole)
        if found != 'read':
            outcome.broken.append((-1, f'{file}, not mutated: {found}'))
    for number in range(count):
        start = time.perf_counter()
        file, content = mutate(reader, seed, name, number)
        found = try_one(reader, folder, file, content)
        outcome.slowest = max(outcome.slowest, time.perf_counter() - start)
        if found in ('read', 'refused'):
            setattr(outcome, found, getattr(outcome, found) + 1)
        else:
            outcome.broken.append((number, f'{file}: {found}'))
    return outcome


def main(argv: Sequence[str] | None = None) -> int:
    """Fuzz, and print a table and what broke."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--count', type=int, default=3000, help='mutations of each reader (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--reader', nargs='+', help='only these (default: all)')
    parser.add_argument('--number', type=int, help='only this mutation, with its traceback')
    args = parser.parse_args(argv)
    resource.setrlimit(resource.RLIMIT_AS, (_memory() + MEMORY,) * 2)
    with tempfile.TemporaryDirectory() as place:
        known = readers(Path(place))
        chosen = {name: known[name] for name in args.reader or known}
        if args.number is not None:
            (name, build), folder = next(iter(chosen.items())), Path(place, 'one')
            reader = build()
            for i in range(2):
                small_data.draw(folder / f'{i}.png', i)
            file, content = mutate(reader, args.seed, name, args.number)
            print(file, content[:2000], try_one(reader, folder, file, content), sep='\n')
            reader.read(folder / file)
            return 0
        print('| reader | read | refused | broken | slowest, s |\n| :-- | --: | --: | --: | --: |')
        broken = 0
        for name, build in chosen.items():
            folder = Path(place, f'files of {name}')
            folder.mkdir()
            outcome = fuzz(name, build, args.count, args.seed, folder)
            broken += len(outcome.broken)
            print(
                f'| {name} | {outcome.read} | {outcome.refused} | {len(outcome.broken)} | {outcome.slowest:.2f} |',
                flush=True,
            )
            seen = set()
            for number, text in outcome.broken:
                if (key := text.partition(': ')[2][:60]) not in seen and len(seen) < 12:
                    seen.add(key)
                    print(f'    {number}: {text}', file=sys.stderr)
    return int(broken > 0)


def _memory() -> int:
    """Bytes of address space that the program has now."""
    return int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()


if __name__ == '__main__':
    sys.exit(main())
