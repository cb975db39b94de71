"""Measures the cross-modal interaction of a model in each layer (https://arxiv.org/abs/2511.22663), over samples.

It writes a JSON file, which `AIAHook(preset=...)` reads as targets, and a figure beside it.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mmengine.registry import DATASETS, MODELS, init_default_scope
from torch.utils.data import Dataset

from mergemix_mm.datasets import (
    ConversationDataset,
    EncodeConversation,
    EncodeGeneration,
    RecordError,
    TextToImageDataset,
    UnifiedCollate,
    UnifiedDataset,
)
from mergemix_mm.datasets.io.json_records import JsonRecords
from mergemix_mm.datasets.text_to_image import PROMPT_KEYS
from mergemix_mm.engine import launch
from mergemix_mm.functional.preference import IGNORE_INDEX
from mergemix_mm.models.attention import InteractionRecorder, interaction_spans
from mergemix_mm.models.losses.aia_loss import TASKS, read_curves
from mergemix_mm.models.vlms import TEXT, VisionLanguageModel
from mergemix_mm.utils.files import write_json
from mergemix_mm.visualization import draw_interaction_curves, save_image

UNIFIED = dict(emu3='Emu3Model', janus='JanusModel')
TASK_NAMES = dict(gen='generation', und='understanding')
# Keys of records that may hold the kind of their prompt.
TYPE_KEYS = ('question_type', 'category')
# Words of the instructions of LLaVA-v1.5, and the kind of prompt that they mean.
INSTRUCTIONS = {'single word or phrase': 'short answer', "option's letter": 'multiple choice'}
OTHER_TYPE = dict(gen='prompt', und='open question')


@dataclass
class Sample:
    """The measurement of one sample.

    Args:
        intensity (np.ndarray): [layers] in [0, 1].
        kind (str): The kind of the prompt.
        length (int): The number of text tokens of the prompt.
    """

    intensity: np.ndarray
    kind: str
    length: int


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='Understanding: from answers to image tokens. Generation (Janus, Emu3): from image tokens to prompts.',
    )
    parser.add_argument('model', help="name on the hub, or folder, of a model in transformers' format")
    parser.add_argument(
        'data',
        nargs='+',
        type=Path,
        help='conversations or prompts with images (.json, .jsonl), or a config (.py), whose training dataset is used '
        'with its pipeline; one file, or two for both tasks',
    )
    parser.add_argument('--out', type=Path, required=True, help='the JSON file; the figure has the same name with .png')
    parser.add_argument(
        '--compare', nargs='+', type=Path, default=[], metavar='JSON', help='earlier results to draw in the same figure'
    )
    parser.add_argument('--num-samples', type=int, default=100, help='samples of each task (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='seed of the choice of samples (default: %(default)s)')
    parser.add_argument('--image-root', default='', help='folder of relative image paths (default: the current one)')
    parser.add_argument('--type-key', help='key of the kind of prompt (default: question_type or category)')
    launch.add_model_arguments(parser)
    launch.add_trust_argument(parser)
    args = parser.parse_args(argv)
    if args.num_samples < 1:
        parser.error(f'--num-samples {args.num_samples} must be at least 1')
    if args.out.suffix != '.json':
        parser.error(f'--out {args.out} must end with .json, as AIAHook expects of a curve')
    return args


def load_model(name: str, dtype: str, device: str, trust_remote_code: bool) -> VisionLanguageModel:
    """The model in evaluation mode, as a unified model if its family has a class for it.

    Raises:
        SystemExit: If the model cannot be found, or its family is unknown.
    """
    from transformers import AutoConfig

    options = dict(pretrained=name, dtype=dtype, trust_remote_code=trust_remote_code)
    try:
        model_type = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code).model_type
        vlm = MODELS.build(dict(type=UNIFIED.get(model_type, 'HFVisionLanguageModel'), **options))
    except (OSError, ValueError) as error:
        raise launch.LaunchError(f'MODEL: {error}') from error
    return vlm.to(device).eval()


def load_processor(vlm: VisionLanguageModel, name: str, trust_remote_code: bool):
    """The model's processor.

    Raises:
        SystemExit: If there is none.
    """
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise launch.LaunchError(f'MODEL: {name} has no processor: {error}') from error
    vlm.family.complete_processor(processor)
    return processor


def load_datasets(path: Path, vlm: VisionLanguageModel, args: argparse.Namespace) -> dict[str, Dataset]:
    """The datasets of a file by their task.

    Raises:
        SystemExit: If there is no such file, or it has no usable data.
    """
    if not path.is_file():
        raise launch.LaunchError(f'DATA: there is no file {path}')
    try:
        return _of_config(path) if path.suffix == '.py' else _of_records(path, vlm, args)
    except (OSError, ValueError, launch.LaunchError) as error:
        raise launch.LaunchError(f'DATA: {path}: {error}') from error


def _of_config(path: Path) -> dict[str, Dataset]:
    cfg = launch.load_config(path)
    init_default_scope(cfg.default_scope)
    if cfg.get('train_dataloader') is None:
        raise ValueError('the config has no train_dataloader, whose dataset would be taken')
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    if isinstance(dataset, UnifiedDataset):
        return dict(dataset.datasets)
    return {dataset[0]['inputs'].get('task', 'und'): dataset}


def _of_records(path: Path, vlm: VisionLanguageModel, args: argparse.Namespace) -> dict[str, Dataset]:
    processor = load_processor(vlm, args.model, args.trust_remote_code)
    options = dict(ann_file=str(path), data_prefix=dict(img_path=args.image_root))
    first = JsonRecords(path)[0]
    # A `prompt` that is a list of messages belongs to a conversation.
    if any(isinstance(first.get(key), str) for key in PROMPT_KEYS) and 'conversations' not in first:
        return dict(gen=TextToImageDataset(pipeline=[EncodeGeneration(processor)], **options))
    return dict(und=ConversationDataset(pipeline=[EncodeConversation(processor, args.chat_template)], **options))


def choose(dataset: Dataset, seed: int) -> Iterator[int]:
    """The indices of the records with images, shuffled."""
    with_images = np.flatnonzero(dataset.modalities)
    yield from np.random.default_rng(seed).permutation(with_images).tolist()


def kind_of(task: str, record: dict, type_key: str | None = None) -> str:
    """The kind of the prompt of a record, from its keys or from the usual instructions in its text.

    Raises:
        SystemExit: If the record lacks `type_key`.
    """
    if type_key is not None and type_key not in record:
        raise launch.LaunchError(f'--type-key: {record["source"]} has no {type_key!r}, only {sorted(record)}')
    for key in TYPE_KEYS if type_key is None else (type_key,):
        if key in record:
            return str(record[key])
    parts = [part for message in record.get('messages', []) for part in message['content'] if message['role'] == 'user']
    text = ' '.join(part.get('text', '') for part in parts)
    return next((kind for words, kind in INSTRUCTIONS.items() if words in text), OTHER_TYPE[task])


@torch.no_grad()
def measure(
    vlm: VisionLanguageModel,
    task: str,
    dataset: Dataset,
    num_samples: int = 100,
    seed: int = 0,
    type_key: str | None = None,
) -> list[Sample]:
    """Record samples one by one. Those without queries or keys are skipped.

    Args:
        vlm (VisionLanguageModel): The model in eval mode.
        task (str): ``'gen'`` or ``'und'``.
        dataset (Dataset): With ``get_data_info``, ``pipeline`` and ``modalities``.
        num_samples (int): The largest number of samples. Defaults to 100.
        seed (int): Seed of the choice of samples. Defaults to 0.
        type_key (str, optional): See :func:`kind_of`. Defaults to None.
    """
    collate, device, samples = UnifiedCollate(), next(vlm.parameters()).device, []
    with InteractionRecorder(vlm) as recorder:
        for index in choose(dataset, seed):
            record = dataset.get_data_info(index)
            inputs = collate([dataset.pipeline(record)])['inputs']
            batch = {key: value.to(device) if torch.is_tensor(value) else value for key, value in inputs.items()}
            batch = vlm.prepare(batch)
            modality, labels = vlm.modality(batch), batch['labels']
            recording = recorder.recording(*interaction_spans(task, modality, labels))
            if not recording.valid.item():
                continue
            vlm.hidden(batch, **recording.attention_kwargs)
            # Rounding lets sums of probabilities exceed 1.
            intensity = recording.intensity()[:, 0].clamp(0, 1).cpu().numpy().astype(np.float64)
            prompt = (modality == TEXT) & (labels == IGNORE_INDEX)
            samples.append(Sample(intensity, kind_of(task, record, type_key), int(prompt.sum())))
            if len(samples) == num_samples:
                break
    return samples


def summarize(samples: Sequence[Sample]) -> dict:
    """The curve of some samples: mean and standard deviation in each layer, and the number of samples."""
    values = np.stack([sample.intensity for sample in samples])
    return dict(mean=values.mean(0).tolist(), std=values.std(0).tolist(), samples=len(samples))


def length_range(length: int) -> str:
    """The range between powers of two that a length lies in, for example ``'17-32'``."""
    end = 1 << max(length - 1, 7).bit_length()
    return f'{end // 2 + 1}-{end}' if end > 8 else f'0-{end}'


def describe(samples: Sequence[Sample]) -> dict:
    """The curve over all samples, and the curves by kind and by length of the prompt."""
    by_kind, by_length = defaultdict(list), defaultdict(list)
    for sample in samples:
        by_kind[sample.kind].append(sample)
        by_length[length_range(sample.length)].append(sample)
    by_length = dict(sorted(by_length.items(), key=lambda item: int(item[0].split('-')[1])))
    return summarize(samples) | dict(
        by_type={kind: summarize(by_kind[kind]) for kind in sorted(by_kind)},
        by_length={span: summarize(chosen) for span, chosen in by_length.items()},
    )


def draw(path: Path, compare: Sequence[Path]) -> np.ndarray:
    """Draw the curves of this result and of others."""
    curves = {}
    for file in (path, *compare):
        for task, (mean, std) in read_curves(file).items():
            curves[f'{file.stem}: {TASK_NAMES[task]}'] = dict(mean=mean, std=std)
    return draw_interaction_curves(curves)


def report(result: dict) -> str:
    """A line for each task, and the correlation of the two."""
    lines = []
    for task in TASKS:
        if task in result:
            curve = result[task]
            lines.append(
                f'{TASK_NAMES[task]}: {curve["samples"]} samples, interaction {np.mean(curve["mean"]):.3f} in the mean '
                f'of {len(curve["mean"])} layers, standard deviation over samples {np.mean(curve["std"]):.3f}'
            )
    if set(TASKS) <= set(result) and min(np.std(result[task]['mean']) for task in TASKS) > 0:
        correlation = np.corrcoef(*(result[task]['mean'] for task in TASKS))[0, 1]
        lines.append(f'correlation of the two over the layers: {correlation:.2f}')
    return '\n'.join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write and draw.

    Args:
        argv (Sequence[str], optional): The command line. Defaults to that of the process.
    """
    args = parse_args(argv)
    try:
        for file in args.compare:
            read_curves(file)
    except ValueError as error:
        raise launch.LaunchError(f'--compare: {error}') from error
    device, dtype = launch.device_and_dtype(args.device, args.dtype)
    vlm = load_model(args.model, dtype, device, args.trust_remote_code)
    datasets = {}
    for path in args.data:
        with launch.safe_checkpoints(args.trust_checkpoint):
            found = load_datasets(path, vlm, args)
        if set(found) & set(datasets):
            raise launch.LaunchError(f'DATA: {path} is for {list(found)} as the one before it; name one per task')
        datasets |= found
    if 'gen' in datasets and not hasattr(vlm, 'generate_image'):
        raise launch.LaunchError(
            f'DATA: {args.model} generates no images; only {sorted(UNIFIED)} do. Name conversations'
        )
    result = dict(model=args.model, data=[str(path) for path in args.data])
    for task, dataset in sorted(datasets.items()):
        try:
            samples = measure(vlm, task, dataset, args.num_samples, args.seed, args.type_key)
        except (RecordError, ValueError) as error:
            raise launch.LaunchError(f'{TASK_NAMES[task]}: {error}') from error
        if not samples:
            raise launch.LaunchError(
                f'DATA: no record of {TASK_NAMES[task]} has both an image and a text to measure between'
            )
        result[task] = describe(samples)
    write_json(args.out, result)
    save_image(draw(args.out, args.compare), args.out.with_suffix('.png'))
    print(report(result))
    print(f'Written to {args.out} and {args.out.with_suffix(".png")}')


if __name__ == '__main__':
    main()
