"""Prints which tokens of the first samples of a config would be trained, and draws their images, clean and mixed.

Weights are loaded only if the vision tower of the VLM itself has to score patches for the mixer. --no-images leaves
the figure out.
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS
from mmengine.runner import Runner, load_checkpoint, set_random_seed
from mmpretrain.registry import BATCH_AUGMENTS

from mergemix_mm.datasets.transforms.image_tokens import ImageTokens
from mergemix_mm.engine import launch
from mergemix_mm.functional.preference import IGNORE_INDEX
from mergemix_mm.models.batch_augments import MergeMix
from mergemix_mm.models.tuners import CanvasMix, VLMTuner
from mergemix_mm.models.vlms import IMAGE, PAD, TEXT
from mergemix_mm.utils.text import RecordError, printable
from mergemix_mm.visualization import draw_mixed_samples, format_labels, pixel_scale, save_image


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='path of a config whose train_dataloader yields encoded conversations')
    parser.add_argument('-n', '--number', type=int, default=4, help='samples to show (default: %(default)s)')
    parser.add_argument(
        '-o',
        '--output-dir',
        default='work_dirs/browse_labels',
        help='a folder for the figure, or a file that ends in .png (default: %(default)s)',
    )
    parser.add_argument('--no-images', action='store_true', help='only print: nothing is mixed, no weights are loaded')
    parser.add_argument(
        '--no-colour',
        action='store_true',
        help='mark trained tokens with « » instead of green, as is done outside of a terminal',
    )
    parser.add_argument('--seed', type=int, default=0, help='seed of the mixing (default: %(default)s)')
    launch.add_trust_argument(parser)
    launch.add_config_options(parser)
    args = parser.parse_args(argv)
    if args.number < 1:
        parser.error(f'--number {args.number} must be at least 1')
    return args


def load_samples(cfg: Config, number: int) -> tuple[list[dict], dict, Any]:
    """The first samples that a run on one device would read.

    Args:
        cfg (Config): The whole config. Its seed orders the samples.
        number (int): The number of samples.

    Returns:
        tuple[list[dict], dict, ProcessorMixin]: The samples, a batch of them, and the processor that encoded them.

    Raises:
        LaunchError: If there are no samples, one of them cannot be used, or EncodeConversation did not make them.
    """
    loader_cfg = cfg.train_dataloader
    launch.read_in_this_process(loader_cfg)
    loader = Runner.build_dataloader(loader_cfg, seed=(cfg.get('randomness') or {}).get('seed'))
    indices = list(islice(chain.from_iterable(loader.batch_sampler), number))
    if not indices:
        raise launch.LaunchError(
            f'train_dataloader: not one batch of batch_size={loader_cfg.get("batch_size")} comes from the '
            f'{len(loader.dataset)} samples; lower it, or set drop_last=False'
        )
    processor = find_processor(loader.dataset)
    if processor is None:
        raise launch.LaunchError(
            'train_dataloader.dataset.pipeline: no transform has a processor, so there are no labels to show. Add '
            'dict(type="EncodeConversation", processor=...); what a classifier mixes is drawn by '
            'tools/visualization/browse_mix.py'
        )
    try:
        samples = [loader.dataset[index] for index in indices]
    except RecordError as error:
        raise launch.LaunchError(f'train_dataloader.dataset: {error}') from error
    return samples, loader.collate_fn(samples), processor


def find_processor(dataset):
    """The processor of the first transform that has one, also in datasets around datasets; None if there is none."""
    for transform in getattr(getattr(dataset, 'pipeline', None), 'transforms', ()):
        if hasattr(transform, 'processor'):
            return transform.processor
    inner = [getattr(dataset, 'dataset', None), *getattr(dataset, 'datasets', ())]
    found = (find_processor(each) for each in inner if each is not None)
    return next((processor for processor in found if processor is not None), None)


def build_vlm(model: dict) -> torch.nn.Module | None:
    """Build the VLM without weights, on torch's ``meta`` device: it knows its tokens and images, and takes no memory.

    Returns:
        nn.Module | None: None if the model has no VLM of transformers.
    """
    vlm = model.get('vlm') or {}
    if vlm.get('type') != 'HFVisionLanguageModel':
        return None
    plain = dict(type=vlm.type, config=vlm.get('config') or vlm.get('pretrained'))
    with torch.device('meta'):
        return MODELS.build(dict(plain, trust_remote_code=vlm.get('trust_remote_code', False)))


def build_tuner(model: dict, load_from: str | None = None) -> VLMTuner | None:
    """Build the tuner. Its VLM gets weights only if it has to score patches.

    Args:
        model (dict): Its config.
        load_from (str, optional): The checkpoint that a run would start from. Defaults to None.

    Returns:
        VLMTuner | None: None if the config has no model.
    """
    if model.get('vlm') is None:
        return None
    vlm = None if _scores_itself(model.get('mixer')) else build_vlm(model)
    if vlm is not None:
        return MODELS.build({**model, 'vlm': vlm}).eval()
    print(
        f'Loading the whole model ({model.vlm.get("pretrained") or "random weights"}), as its own vision tower scores '
        'the patches. This takes the time and memory of its weights (half of it with --cfg-options '
        '"model.vlm.trainable=[]" model.vlm.dtype=bfloat16); with --no-images labels are printed without them.',
        flush=True,
    )
    tuner = MODELS.build(model)
    tuner.init_weights()
    if load_from:
        load_checkpoint(tuner, load_from, map_location='cpu')
    return tuner.eval()


def _scores_itself(mixer: dict | None) -> bool:
    """Whether a mixer scores with the vision tower of the VLM itself."""
    if mixer is None:
        return False
    mixer_class = BATCH_AUGMENTS.get(mixer.type) if isinstance(mixer.type, str) else mixer.type
    return issubclass(mixer_class, MergeMix) and mixer.get('encoder') is None


def token_texts(tokenizer, ids: Sequence[int]) -> list[str]:
    """The text that each token adds, including spaces.

    A token is decoded after the one before it, because tokenizers drop the space at the start of a text. A character of
    several tokens is given to the last one of them.
    """
    texts, first, shown = [], 0, ''
    for last in range(len(ids)):
        text = tokenizer.decode(ids[first : last + 1], clean_up_tokenization_spaces=False)
        if text.endswith('\ufffd') and last + 1 < len(ids):
            texts.append('')
            continue
        texts.append(text[len(shown) :])
        first, shown = last, tokenizer.decode([ids[last]], clean_up_tokenization_spaces=False)
    return texts


def kinds_of(inputs: dict, vlm: torch.nn.Module | None, image_token_id: int) -> torch.Tensor:
    """The modality of each token of a batch, [B, L]. Without a VLM, only the id of the image token tells images."""
    if vlm is not None:
        return vlm.modality(inputs)
    kinds = torch.where(inputs['input_ids'] == image_token_id, IMAGE, TEXT)
    return torch.where(inputs['attention_mask'] == 0, PAD, kinds)


def count_line(inputs: dict, row: int, num_images: int) -> str:
    """The line with the counts of one sample of a batch."""
    tokens, labelled = int(inputs['attention_mask'][row].sum()), int((inputs['labels'][row] != IGNORE_INDEX).sum())
    return f'{tokens} tokens, {labelled} labelled, {num_images} image{"" if num_images == 1 else "s"}'


def show_sample(tokenizer, inputs: dict, kinds: torch.Tensor, row: int, colour: bool) -> str:
    """The text of one sample of a batch, without padding, with its trained tokens marked."""
    real = inputs['attention_mask'][row] != 0
    ids, labels = inputs['input_ids'][row][real].tolist(), inputs['labels'][row][real].tolist()
    return format_labels(token_texts(tokenizer, ids), labels, kinds[row][real].tolist(), colour=colour)


def mixing_line(result: CanvasMix, row: int, margin: str | float) -> str:
    """The line that says how the images of one sample were mixed."""
    own = result.owner == row
    if not result.mixed[own].any():
        return 'not mixed: no preference term'
    ratio = float(result.ratio[own].mean())
    text = f'ratio {ratio:.3f}, margin {1 - ratio if margin == "mixing" else margin:.3f}'
    partners = {int(result.owner[index]) + 1 for index in result.partner[own & result.mixed]} - {row + 1}
    return text + (f', partner {", ".join(f"#{partner}" for partner in sorted(partners))}' if partners else '')


def mix(tuner: VLMTuner, inputs: dict) -> CanvasMix | None:
    """Mix the images of a batch. Without a mixer they stay as the model sees them. None if the batch is only text."""
    if 'pixel_values' not in inputs:
        return None
    result = tuner.mix(inputs) if tuner.mixer is not None else None
    if result is None:
        canvases, owner = tuner.vlm.canvases(inputs)
        unmixed = torch.zeros_like(owner, dtype=torch.bool)
        result = CanvasMix(canvases, canvases, torch.arange(len(owner)), torch.ones(len(owner)), owner, unmixed)
    return result


def print_samples(
    processor,
    samples: Sequence[dict],
    inputs: dict,
    vlm: torch.nn.Module | None,
    mixing: Sequence[str] | None,
    colour: bool,
) -> None:
    """Print the source, the counts, the mixing and the tokens of each sample, and of a pair the tokens of both answers.

    Args:
        processor (ProcessorMixin): Has the tokenizer.
        samples (Sequence[dict]): The samples.
        inputs (dict): The batch of these samples.
        vlm (nn.Module, optional): The model, which knows the modality of each token.
        mixing (Sequence[str], optional): The line of :func:`mixing_line` for each sample.
        colour (bool): Whether the terminal shows colours.
    """
    tokenizer, image_token_id = processor.tokenizer, ImageTokens(processor).token_id
    passes = {'': inputs}
    if 'rejected' in inputs:
        passes = {'chosen: ': inputs, 'rejected: ': {**inputs, **inputs['rejected']}}
    kinds = {name: kinds_of(each, vlm, image_token_id) for name, each in passes.items()}
    for row, sample in enumerate(samples):
        print(printable(f'#{row + 1} {sample["data_samples"].get("source", "")}'))
        if mixing is not None:
            print(mixing[row])
        for name, each in passes.items():
            print(name + count_line(each, row, len(sample['inputs']['original_sizes'])))
            print(show_sample(tokenizer, each, kinds[name], row, colour).rstrip('\n'), end='\n\n', flush=True)


def main(argv: Sequence[str] | None = None) -> Path | None:
    """Print the samples and write the figure.

    Args:
        argv (Sequence[str], optional): The command line. Defaults to that of the process.

    Returns:
        Path | None: The file of the figure; None with ``--no-images``, or if no sample has an image.
    """
    args = parse_args(argv)
    cfg = launch.read_config(args.config, args.cfg_options)
    if cfg.get('train_dataloader') is None:
        raise launch.LaunchError(f'CONFIG: {args.config} has no train_dataloader to take samples from; add one')
    launch.check_data_roots(cfg, 'train')
    # Without this logger, MMEngine logs how every weight was initialized.
    MMLogger.get_instance('browse_labels').setLevel('WARNING')

    with launch.safe_checkpoints(args.trust_checkpoint):
        samples, batch, processor = load_samples(cfg, args.number)
        inputs, model = batch['inputs'], cfg.get('model') or {}
        tuner = None if args.no_images else build_tuner(model, cfg.get('load_from'))
    vlm = build_vlm(model) if tuner is None else tuner.vlm
    set_random_seed(args.seed)
    result = None if tuner is None else mix(tuner, inputs)
    mixing = None
    if result is not None and tuner.mixer is not None:
        mixing = [mixing_line(result, row, tuner.head.margin) for row in range(len(samples))]
    print_samples(processor, samples, inputs, vlm, mixing, colour=sys.stdout.isatty() and not args.no_colour)
    if result is not None:
        return write_page(result, processor, args)
    if not args.no_images:
        print('No figure is written: the samples have no images, or the config has no model.vlm.', flush=True)
    return None


def write_page(result: CanvasMix, processor, args: argparse.Namespace) -> Path:
    """Draw the images of a batch, with the numbers of the printed samples as labels."""
    mean, std = pixel_scale(processor, result.clean)
    names = [f'#{row + 1}' for row in result.owner.tolist()]
    page = draw_mixed_samples(result, mean, std, labels=names, max_rows=len(names))
    output = launch.figure_path(args.output_dir, args.config)
    print(f'Images written to {save_image(page, output)}', flush=True)
    return output


if __name__ == '__main__':
    main()
