"""How fast samples are read, encoded and collated; time and memory of a training step, padded and packed."""

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
from lib.lengths import DISTRIBUTION, add_length_arguments, draw_records, random_samples, to_batches
from lib.measure import add_clock_argument, add_common_arguments, interleaved_times, peak_memory, prepare, write_json
from lib.steps import PATCH, TINY_LLAVA, build_llava, idle_optimizer, small_llava
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mergemix_mm.datasets import ConversationCollate, ConversationDataset, EncodeConversation
from mergemix_mm.models import VLMTuner
from mergemix_mm.models.attention.packing import Packing
from mergemix_mm.models.vlms.family_model import FamilyModel
from mergemix_mm.utils.images import read_image
from mergemix_mm.utils.tables import markdown_table

DOCS = Path(__file__).resolve().parents[2] / 'docs'
PARTS = ('data', 'step')
WAYS = ('padded', 'packed', 'one row with a dense mask')
SPECIAL_TOKENS = ['<pad>', '<s>', '</s>', '<unk>', '<image>']
# Sizes of --quick.
TINY = dict(TINY_LLAVA, samples=4, image=[40, 30], side=32, batch_size=2, rounds=1, workers=[0], median=8, longest=16)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='data: JPEG files of smooth noise, conversations of one question and one answer with words of this '
        "documentation, LLaVA's template, a byte-level BPE tokenizer trained on the documentation, CLIP's image "
        'processor. step: a small LLaVA with random weights, whose tower is frozen, on a batch of drawn lengths; also '
        "in one row with transformers' own mask of several conversations. "
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
    parser.set_defaults(image_tokens=None)
    add_common_arguments(parser)
    add_clock_argument(parser)
    args = parser.parse_args(argv)
    if args.quick:
        vars(args).update(TINY)
    if args.image_tokens is not None:
        parser.error('--image-tokens: an image of the step has as many as --image-size gives it')
    args.image_tokens = (args.image_size // PATCH) ** 2
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


def one_row(vlm: FamilyModel, decoder: nn.Module, inputs: dict, **kwargs: Any) -> Tensor:
    """As the decoding of a packed model, but transformers masks the row: it finds conversations by their positions."""
    packing = Packing.of(inputs['attention_mask'])
    if packing is None:
        raise ValueError('the batch has no padding; draw other lengths')
    inputs = packing.inputs(inputs, vlm.family.positions(inputs)) | dict(attention_mask=None)
    return packing.unpack(decoder(**inputs, use_cache=False).last_hidden_state)


def build_tuner(config: dict[str, Any], way: str, seed: int) -> VLMTuner:
    """The same model for each of ``WAYS``."""
    torch.manual_seed(seed)
    tuner = build_llava(dict(type='HFVisionLanguageModel', config=config, packed=way == 'packed'))
    if way == 'one row with a dense mask':
        tuner.vlm._decode = partial(one_row, tuner.vlm)
    return tuner


def measure_steps(args: argparse.Namespace) -> dict[str, Any]:
    """A step on the same batch, computed in each of ``WAYS``.

    Returns:
        dict: ``steps``, the median seconds of the parts of a step; ``memory``, the peak of a step in MB; and
        ``conversations``, the tokens of each conversation of the batch.
    """
    config = small_llava(**{key: getattr(args, key) for key in TINY_LLAVA})
    (batch,) = to_batches(random_samples(config, draw_records(args.batch_size, args)), args.batch_size, grouped=False)
    tuners = {way: build_tuner(config, way, args.seed) for way in WAYS}
    losses = [tuner(batch, mode='loss')['loss_sft'].item() for tuner in tuners.values()]
    if max(losses) - min(losses) > 1e-4 * max(losses):
        raise AssertionError(f'the ways have the losses {losses}, so they do not compute the same')
    now = time.process_time if args.clock == 'processor' else time.perf_counter
    steps = {way: partial(profile_step, tuner, batch, idle_optimizer(tuner), now) for way, tuner in tuners.items()}
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for number in range(args.rounds + 1):
        for way, step in steps.items():
            parts = step()
            if number:  # The first round warms up.
                found[way].append(parts)
    return dict(
        steps={
            way: {name: statistics.median(step[name] for step in rounds) for name in rounds[0]}
            for way, rounds in found.items()
        },
        memory={way: peak_memory(step) for way, step in steps.items()},
        conversations=batch['attention_mask'].sum(dim=1).tolist(),
    )


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure the chosen parts, and print a table of each.

    Returns:
        dict: What :func:`measure_data` and :func:`measure_steps` return.
    """
    args = parse_args(argv)
    prepare(args)
    found: dict[str, Any] = {}
    if 'data' in args.parts:
        with tempfile.TemporaryDirectory() as folder:
            found.update(measure_data(Path(folder), args))
        rows = [(name, f'{value:.2f}', f'{1000 / value:.0f}') for name, value in found['stages'].items()]
        print(markdown_table(('stage', 'ms per sample', 'samples per second'), rows))
        print('\n' + markdown_table(('worker processes', 'samples per second'), _numbers(found['loaders'])))
    if 'step' in args.parts:
        found.update(measure_steps(args))
        steps, tokens = found['steps'], found['conversations']
        rows = [(f'{name} (s)', *(f'{steps[way][name]:.3f}' for way in WAYS)) for name in steps['packed']]
        rows.append(('peak memory (MB)', *(f'{found["memory"][way]:.0f}' for way in WAYS)))
        print(f'\n{len(tokens)} conversations of {min(tokens)} to {max(tokens)} tokens, {sum(tokens)} in all.\n')
        print(markdown_table(('part of the step', *WAYS), rows))
    if args.output:
        write_json(args.output, dict(benchmark='data_throughput', options=vars(args), **found))
    return found


def _numbers(values: dict[str, float]) -> list[tuple[str, str]]:
    return [(name, f'{value:.1f}') for name, value in values.items()]


if __name__ == '__main__':
    main()
