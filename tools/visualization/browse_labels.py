"""Prints what would be trained for the first samples of a config, and draws their images, clean and mixed.

Without --no-images, a page of images is written as well. Weights are loaded only if the VLM's own tower has to score
patches for the mixer.
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import chain, islice
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, TRANSFORMS, init_default_scope
from mmengine.runner import Runner, set_random_seed

from mergemix_mm.engine import launch
from mergemix_mm.models.tuners import CanvasMix
from mergemix_mm.models.vlms import IMAGE, PAD, TEXT
from mergemix_mm.visualization import draw_mixed_samples, format_labels, pixel_scale, save_image

META_VLM = 'HFVisionLanguageModel'


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='path of a config whose train_dataloader yields encoded conversations')
    parser.add_argument('-n', '--number', type=int, default=4, help='samples to show (default: %(default)s)')
    parser.add_argument(
        '-o',
        '--output-dir',
        default='work_dirs/browse_labels',
        help='a folder for the images, or a file that ends in .png (default: %(default)s)',
    )
    parser.add_argument('--no-images', action='store_true', help='print only: nothing is mixed, no weights are loaded')
    parser.add_argument('--no-colour', action='store_true', help='mark what is trained with « » instead of green')
    parser.add_argument('--seed', type=int, default=0, help='of the mixing (default: %(default)s)')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='config keys to override, key=value')
    args = parser.parse_args(argv)
    if args.number < 1:
        parser.error(f'--number {args.number} must be at least 1')
    return args


def load_samples(cfg: Config, number: int) -> tuple[list[dict], dict]:
    """The samples that a run on one device begins with.

    Args:
        cfg (Config): The whole config; its seed orders the samples.
        number (int): Samples that are wanted.

    Returns:
        tuple[list[dict], dict]: The samples one by one, and one batch of them.

    Raises:
        LaunchError: If there are none, or they are not of EncodeConversation.
    """
    loader_cfg = cfg.train_dataloader
    loader_cfg.update(num_workers=0, persistent_workers=False)
    for key in ('prefetch_factor', 'timeout', 'worker_init_fn'):
        loader_cfg.pop(key, None)
    seed = (cfg.get('randomness') or {}).get('seed')
    loader = Runner.build_dataloader(loader_cfg, seed=seed)
    indices = list(islice(chain.from_iterable(loader.batch_sampler), number))
    if not indices:
        raise launch.LaunchError(
            f'train_dataloader: not one batch of batch_size={loader_cfg.get("batch_size")} comes from the '
            f'{len(loader.dataset)} samples; lower it, or set drop_last=False'
        )
    samples = [loader.dataset[index] for index in indices]
    if not isinstance(samples[0], dict) or 'labels' not in samples[0].get('inputs', ()):
        raise launch.LaunchError(
            'train_dataloader: the samples have no labels of tokens. Put dict(type="EncodeConversation", '
            'processor=...) into train_dataloader.dataset.pipeline; pictures of classification are drawn by '
            'tools/visualization/browse_mix.py'
        )
    return samples, loader.collate_fn(samples)


def find_processor(cfg: Config):
    """The processor that encodes the samples.

    Raises:
        LaunchError: If neither pipeline nor model has one.
    """
    dataset = cfg.train_dataloader.dataset
    while dataset is not None:
        for transform in dataset.get('pipeline') or ():
            if isinstance(transform, dict) and transform.get('processor') is not None:
                return _build(transform.processor)
        dataset = dataset.get('dataset') or next(iter(dataset.get('datasets') or ()), None)
    if (cfg.get('model') or {}).get('processor') is not None:
        return _build(cfg.model.processor)
    raise launch.LaunchError('train_dataloader.dataset.pipeline: no transform has a processor to read the tokens with')


def _build(processor):
    return TRANSFORMS.build(processor) if isinstance(processor, dict) else processor


def needs_weights(model: dict | None) -> bool:
    """Whether patches are scored by the VLM's own tower."""
    mixer = (model or {}).get('mixer')
    if mixer is None:
        return False
    from mmpretrain.registry import BATCH_AUGMENTS

    from mergemix_mm.models.batch_augments import MergeMix

    mixer_class = BATCH_AUGMENTS.get(mixer['type']) if isinstance(mixer['type'], str) else mixer['type']
    return issubclass(mixer_class, MergeMix) and mixer.get('encoder') is None


def build_model(cfg: Config, images: bool) -> torch.nn.Module | None:
    """Build the tuner, with weights only if they are needed.

    Without them the VLM lies on torch's ``meta`` device: it knows its tokens and its images, and takes no memory.

    Args:
        cfg (Config): The whole config.
        images (bool): Whether images are to be mixed.

    Returns:
        nn.Module | None: None if there is no model that can be built without weights, and none are needed.
    """
    model = cfg.get('model')
    if model is None or model.get('vlm') is None:
        return None
    if images and (needs_weights(model) or model.vlm.get('type') != META_VLM):
        source = model.vlm.get('pretrained') or 'a config, with random weights'
        print(
            f"Building the whole model ({source}), since {model.mixer.type if model.get('mixer') else 'it'} works with "
            'its own vision tower. This takes the time and memory of its weights (half of it with --cfg-options '
            'model.vlm.dtype=bfloat16); --no-images prints labels without them.',
            flush=True,
        )
        return MODELS.build(model).eval()
    if model.vlm.get('type') != META_VLM:
        return None
    vlm = dict(type=META_VLM, config=model.vlm.get('config') or model.vlm.get('pretrained'))
    with torch.device('meta'):
        vlm = MODELS.build(dict(vlm, trust_remote_code=model.vlm.get('trust_remote_code', False)))
    if not images:
        model = dict(type=model.type)
    return MODELS.build({**model, 'vlm': vlm}).eval()


def token_texts(tokenizer, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text, spaces included.

    A token is decoded behind the one before it, since tokenizers drop the space in front of a text. A character of
    several tokens is with the last one of them.
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


def kinds_of(inputs: dict, model: torch.nn.Module | None, image_token_id: int) -> torch.Tensor:
    """What each token of a batch is, [B, L]; without a model, image tokens are told by their id alone."""
    if model is not None:
        return model.vlm.modality(inputs)
    kinds = torch.where(inputs['input_ids'] == image_token_id, IMAGE, TEXT)
    return torch.where(inputs['attention_mask'] == 0, PAD, kinds)


def count_line(inputs: dict, row: int, num_images: int) -> str:
    """The numbers of one sample of a batch."""
    tokens, labelled = int(inputs['attention_mask'][row].sum()), int((inputs['labels'][row] != -100).sum())
    return f'{tokens} tokens, {labelled} labelled, {num_images} image{"" if num_images == 1 else "s"}'


def show_sample(tokenizer, inputs: dict, kinds: torch.Tensor, row: int, colour: bool) -> str:
    """The tokens of one sample of a batch, without padding."""
    real = inputs['attention_mask'][row] != 0
    ids, labels = inputs['input_ids'][row][real].tolist(), inputs['labels'][row][real].tolist()
    return format_labels(token_texts(tokenizer, ids), labels, kinds[row][real].tolist(), colour=colour)


def mixing_line(result: CanvasMix, row: int, margin: str | float) -> str:
    """How the images of one sample were mixed."""
    own = result.owner == row
    if not result.mixed[own].any():
        return 'not mixed: no preference term'
    ratio = float(result.ratio[own].mean())
    text = f'ratio {ratio:.3f}, margin {1 - ratio if margin == "mixing" else margin:.3f}'
    partners = {int(result.owner[index]) + 1 for index in result.partner[own & result.mixed]} - {row + 1}
    return text + (f', partner {", ".join(f"#{partner}" for partner in sorted(partners))}' if partners else '')


def mix(model: torch.nn.Module, inputs: dict) -> CanvasMix | None:
    """Mix the images of a batch; without a mixer they stay as the model sees them. None for text alone."""
    if 'pixel_values' not in inputs:
        return None
    result = model.mix(inputs) if model.mixer is not None else None
    if result is None:
        canvases, owner = model.vlm.canvases(inputs)
        index = torch.arange(len(canvases))
        ones = torch.ones(len(canvases))
        result = CanvasMix(canvases, canvases, index, ones, owner, torch.zeros_like(owner, dtype=torch.bool))
    return result


def main(argv: Sequence[str] | None = None) -> Path | None:
    """Print the samples and write the page.

    Args:
        argv (Sequence[str], optional): The command line. Defaults to that of the process.

    Returns:
        Path | None: The page; None with ``--no-images``, or where there is no image.
    """
    args = parse_args(argv)
    cfg = launch.load_config(args.config)
    launch.merge_options(cfg, args.cfg_options)
    if cfg.get('train_dataloader') is None:
        raise launch.LaunchError(f'browse_labels: {args.config} has no train_dataloader; add one to the config')
    launch.check_data_roots(cfg, 'train')
    init_default_scope(cfg.default_scope)
    MMLogger.get_instance('browse_labels').setLevel('WARNING')
    set_random_seed(args.seed)

    processor = find_processor(cfg)
    samples, batch = load_samples(cfg, args.number)
    inputs = batch['inputs']
    model = build_model(cfg, images=not args.no_images)
    with torch.no_grad():
        result = mix(model, inputs) if model is not None and not args.no_images else None
    print_samples(processor, samples, inputs, model, result, colour=not args.no_colour)
    if result is None:
        if not args.no_images:
            print('No page is written: there is no image, or no model.vlm that knows how to show one.', flush=True)
        return None
    mean, std = pixel_scale(processor, result.clean)
    names = [f'#{row + 1}' for row in result.owner.tolist()]
    page = draw_mixed_samples(result, mean, std, labels=names, max_rows=len(names))
    output = Path(args.output_dir)
    if output.suffix.lower() != '.png':
        output = output / f'{Path(args.config).stem}.png'
    print(f'Images written to {save_image(page, output)}', flush=True)
    return output


def print_samples(
    processor, samples: list[dict], inputs: dict, model: torch.nn.Module | None, result: CanvasMix | None, colour: bool
) -> None:
    """Print each sample: source, numbers, mixing, tokens; of a pair both answers."""
    from mergemix_mm.datasets.transforms.image_tokens import ImageTokens

    tokenizer, image_token_id = processor.tokenizer, ImageTokens(processor).token_id
    rejected = {**inputs, **inputs['rejected']} if 'rejected' in inputs else None
    passes = dict(chosen=inputs, rejected=rejected) if rejected else {'': inputs}
    kinds = {name: kinds_of(each, model, image_token_id) for name, each in passes.items()}
    for row, sample in enumerate(samples):
        print(f'#{row + 1} {sample["data_samples"].get("source", "")}')
        num_images = len(sample['inputs'].get('original_sizes', ()))
        for name, each in passes.items():
            print(f'{name + ": " if name else ""}{count_line(each, row, num_images)}')
            if result is not None and model.mixer is not None and num_images:
                print(mixing_line(result, row, model.head.margin))
            print(show_sample(tokenizer, each, kinds[name], row, colour), end='\n\n', flush=True)


if __name__ == '__main__':
    main(sys.argv[1:])
