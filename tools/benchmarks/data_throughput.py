"""How fast samples are read, encoded and collated, and where the time of a training step goes, padded and packed."""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lib.lengths import DISTRIBUTION, add_length_arguments, draw_records
from lib.measure import add_clock_argument, add_common_arguments, interleaved_times, prepare, write_json
from lib.steps import IMAGE, PATCH, TINY_LLAVA, build_llava, idle_optimizer, small_llava
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mergemix_mm.datasets import ConversationCollate, ConversationDataset, EncodeConversation
from mergemix_mm.functional.preference import IGNORE_INDEX
from mergemix_mm.models import VLMTuner
from mergemix_mm.utils.images import read_image
from mergemix_mm.utils.tables import markdown_table

DOCS = Path(__file__).resolve().parents[2] / 'docs'
PARTS = ('data', 'step')
SPECIAL_TOKENS = ['<pad>', '<s>', '</s>', '<unk>', '<image>']
# Sizes of --quick.
TINY = dict(TINY_LLAVA, samples=4, image=[40, 30], side=32, batch_size=2, rounds=1, workers=[0], median=8, longest=16)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='data: JPEG files of smooth noise, conversations of one question and one answer with words of this '
        "documentation, LLaVA's template, a byte-level BPE tokenizer trained on the documentation, CLIP's image "
        'processor. step: a small LLaVA with random weights, whose tower is frozen, on a batch of drawn lengths. '
        f'{DISTRIBUTION}',
    )
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=list(PARTS), help='(default: both)')
    parser.add_argument('--samples', type=int, default=256, help='records on disk (default: %(default)s)')
    parser.add_argument('--image', type=int, nargs=2, default=[640, 480], help='width, height (default: 640 480)')
    parser.add_argument('--side', type=int, default=336, help='of what the tower reads (default: %(default)s)')
    parser.add_argument('--workers', type=int, nargs='+', default=[0, 1, 2], help='(default: 0 1 2)')
    parser.add_argument('--batch-size', type=int, default=8, help='(default: %(default)s)')
    parser.add_argument('--rounds', type=int, default=3, help='(default: %(default)s)')
    parser.add_argument('--image-size', type=int, default=224, help='of the step, in pixels (default: %(default)s)')
    parser.add_argument('--vocabulary', type=int, default=32000, help='(default: %(default)s)')
    parser.add_argument('--width', type=int, default=384, help='(default: %(default)s)')
    parser.add_argument('--tower-layers', type=int, default=12, help='(default: %(default)s)')
    parser.add_argument('--text-layers', type=int, default=8, help='(default: %(default)s)')
    add_length_arguments(parser)
    add_common_arguments(parser)
    add_clock_argument(parser)
    args = parser.parse_args(argv)
    if args.quick:
        vars(args).update(TINY)
    return args


# --- Data -------------------------------------------------------------------------------------------------------------


def write_records(folder: Path, args: argparse.Namespace) -> Path:
    """Write images and a JSON file of conversations, each about one image."""
    rng = np.random.default_rng(args.seed)
    words = ' '.join(path.read_text() for path in sorted(DOCS.glob('*.md'))).replace('<', ' ').split()
    records = []
    for number, tokens in enumerate(draw_records(args.samples, args).text.tolist()):
        noise = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        noise.resize(args.image, Image.Resampling.BICUBIC).save(folder / f'{number}.jpg', quality=90)
        start = int(rng.integers(len(words)))
        text = ' '.join(np.resize(np.roll(words, -start), max(tokens * 2 // 3, 2)))
        turns = [{'from': 'human', 'value': '<image>\nWhat is this?'}, {'from': 'gpt', 'value': text}]
        records.append(dict(id=number, image=f'{number}.jpg', conversations=turns))
    path = folder / 'records.json'
    path.write_text(json.dumps(records))
    return path


def build_processor(side: int) -> Any:
    """The processor of a LLaVA of this image size, with a tokenizer that is trained on the documentation."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

    tokenizer = ByteLevelBPETokenizer()
    texts = [path.read_text() for path in sorted(DOCS.glob('*.md'))]
    tokenizer.train_from_iterator(texts, vocab_size=8000, special_tokens=SPECIAL_TOKENS, show_progress=False)
    pad, bos, eos, unk, image = SPECIAL_TOKENS
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        unk_token=unk,
        extra_special_tokens=dict(image_token=image),
        clean_up_tokenization_spaces=False,
        model_input_names=['input_ids', 'attention_mask'],
    )
    size = dict(height=side, width=side)
    return LlavaProcessor(
        CLIPImageProcessor(size=dict(shortest_edge=side), crop_size=size),
        fast,
        patch_size=PATCH if side % 14 else 14,
        vision_feature_select_strategy='default',
        num_additional_image_tokens=1,
    )


def measure_data(folder: Path, args: argparse.Namespace) -> dict[str, dict]:
    """Time the stages of a sample, and data loaders.

    Returns:
        dict: ``stages``, the median milliseconds per sample by stage, and ``loaders``, the samples per second of a data
        loader by its number of worker processes.
    """
    path = write_records(folder, args)
    encode = EncodeConversation(build_processor(args.side), chat_template='llava', max_length=2048)
    plain = ConversationDataset(str(path), data_prefix=dict(img_path=str(folder)))
    dataset = ConversationDataset(str(path), data_prefix=dict(img_path=str(folder)), pipeline=[encode])
    order = np.random.default_rng(args.seed).permutation(args.samples).tolist()
    records = [plain.get_data_info(index) for index in order[: args.batch_size]]
    texts = [_without_image(record) for record in records]
    samples = [dataset[index] for index in order[: args.batch_size]]
    images = encode.processor.image_processor
    stages: dict[str, Callable[[], object]] = {
        'record (JSON)': lambda: [plain.load_record(index) for index in order[: args.batch_size]],
        'image file': lambda: [read_image(folder / f'{index}.jpg') for index in order[: args.batch_size]],
        'image processor': lambda: [images(record['images'][0], return_tensors='pt') for record in records],
        'template and tokens': lambda: [encode(text) for text in texts],
        'whole sample': lambda: [dataset[index] for index in order[: args.batch_size]],
        'collate': lambda: ConversationCollate()(samples),
    }
    times = interleaved_times(stages, args.rounds, clock=args.clock)
    milliseconds = {name: statistics.median(values) * 1000 / args.batch_size for name, values in times.items()}
    loaders = {}
    for workers in args.workers:
        options = dict(num_workers=workers, collate_fn=ConversationCollate(), shuffle=True)
        loader: DataLoader = DataLoader(dataset, args.batch_size, **options)
        begin = time.perf_counter()
        for _ in loader:
            pass
        loaders[str(workers)] = args.samples / (time.perf_counter() - begin)
    return dict(stages=milliseconds, loaders=loaders)


def _without_image(record: dict) -> dict:
    """The same conversation of text only."""
    record = deepcopy({key: value for key, value in record.items() if key != 'images'})
    for message in record['messages']:
        message['content'] = [part for part in message['content'] if part['type'] == 'text']
    return dict(record, images=[])


# --- Step -------------------------------------------------------------------------------------------------------------


def ragged_conversations(config: dict[str, Any], args: argparse.Namespace) -> dict[str, Tensor]:
    """A batch of one image per sample, with drawn lengths of text; the second half of a text is the answer."""
    size, vocabulary = config['vision_config']['image_size'], config['text_config']['vocab_size']
    image = torch.full(((size // PATCH) ** 2,), IMAGE)
    rows, labels = [], []
    for length in draw_records(args.batch_size, args).text.tolist():
        rows.append(torch.cat([image, torch.randint(IMAGE + 1, vocabulary, (max(length, 2),))]))
        labels.append(rows[-1].clone())
        labels[-1][: len(rows[-1]) - max(length, 2) // 2] = IGNORE_INDEX
    pad = partial(nn.utils.rnn.pad_sequence, batch_first=True)
    return dict(
        input_ids=pad(rows),
        attention_mask=pad([torch.ones_like(row) for row in rows]),
        labels=pad(labels, padding_value=IGNORE_INDEX),
        pixel_values=torch.randn(args.batch_size, 3, size, size),
    )


class StepClock:
    """Seconds that the modules of a model spend in their forward, by name.

    Args:
        modules (dict[str, nn.Module]): The modules; none lies inside another.
        now (Callable): The time in seconds.
    """

    def __init__(self, modules: dict[str, nn.Module], now: Callable[[], float]) -> None:
        self.modules, self.now = modules, now
        self.seconds = dict.fromkeys(modules, 0.0)
        self._begin = 0.0

    @contextmanager
    def running(self) -> Iterator[dict[str, float]]:
        """Count within the block."""
        hooks = []
        for name, module in self.modules.items():
            hooks.append(module.register_forward_pre_hook(self._enter))
            hooks.append(module.register_forward_hook(partial(self._leave, name)))
        try:
            yield self.seconds
        finally:
            for hook in hooks:
                hook.remove()

    def _enter(self, *_) -> None:
        self._begin = self.now()

    def _leave(self, name: str, *_) -> None:
        self.seconds[name] += self.now() - self._begin


def profile_step(
    tuner: VLMTuner, batch: dict[str, Tensor], optimizer: torch.optim.Optimizer, now: Callable[[], float]
) -> dict[str, float]:
    """The seconds of each part of one training step, and their sum as ``'whole step'``."""
    family = tuner.vlm.family
    projector = family.model.get_submodule(family.parts['projector'][0])
    modules = {'vision tower': family.vision_tower, 'projector': projector, 'language model': family.language_model}
    times = [now()]
    with StepClock(modules, now).running() as seconds:
        loss = tuner(batch, mode='loss')['loss_sft']
    times.append(now())
    loss.backward()
    times.append(now())
    optimizer.step()
    optimizer.zero_grad()
    times.append(now())
    forward, backward, update = (end - begin for begin, end in pairwise(times))
    rest = {'answers: head and loss': forward - sum(seconds.values()), 'backward': backward, 'update': update}
    return {**seconds, **rest, 'whole step': times[-1] - times[0]}


def measure_steps(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The median seconds of the parts of a step, of a padded and of a packed batch of the same samples."""
    config = small_llava(**{key: getattr(args, key) for key in TINY_LLAVA})
    batch = ragged_conversations(config, args)
    tuner = build_llava(dict(type='HFVisionLanguageModel', config=config, packed=True))
    optimizer = idle_optimizer(tuner)
    now = time.process_time if args.clock == 'processor' else time.perf_counter
    found: dict[str, list[dict[str, float]]] = dict(padded=[], packed=[])
    for number in range(args.rounds + 1):
        for way, times in found.items():
            tuner.vlm.packed = way == 'packed'
            times.append(profile_step(tuner, batch, optimizer, now))
            if not number:
                times.clear()  # The first round warms up.
    return {
        way: {name: statistics.median(one[name] for one in times) for name in times[0]} for way, times in found.items()
    }


def main(argv: Sequence[str] | None = None) -> dict[str, dict]:
    """Measure the chosen parts, and print a table of each.

    Returns:
        dict: ``stages`` and ``loaders`` of :func:`measure_data`, and ``steps`` of :func:`measure_steps`.
    """
    args = parse_args(argv)
    prepare(args)
    found: dict[str, dict] = {}
    if 'data' in args.parts:
        with tempfile.TemporaryDirectory() as folder:
            found.update(measure_data(Path(folder), args))
        rows = [(name, f'{value:.2f}', f'{1000 / value:.0f}') for name, value in found['stages'].items()]
        print(markdown_table(('stage', 'ms per sample', 'samples per second'), rows))
        print('\n' + markdown_table(('worker processes', 'samples per second'), _numbers(found['loaders'])))
    if 'step' in args.parts:
        found['steps'] = steps = measure_steps(args)
        rows = [(name, *(f'{steps[way][name]:.3f}' for way in steps)) for name in steps['padded']]
        print('\n' + markdown_table(('part of the step', 'padded (s)', 'packed (s)'), rows))
    if args.output:
        write_json(args.output, dict(benchmark='data_throughput', options=vars(args), **found))
    return found


def _numbers(values: dict[str, float]) -> list[tuple[str, str]]:
    return [(name, f'{value:.1f}') for name, value in values.items()]


if __name__ == '__main__':
    main()
