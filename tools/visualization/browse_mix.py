"""Draws the mixed samples of a config without training: clean images, partners, saliency, masks and mixed images."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS
from mmengine.runner import Runner, load_checkpoint, set_random_seed

from mergemix_mm.engine import launch
from mergemix_mm.visualization import draw_mixed_samples, labels_of, save_image

IMAGES_PER_BATCH = 4
MAX_UNMIXED = 50


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='path of a config whose model is a MixupClassifier')
    parser.add_argument(
        '-o',
        '--output-dir',
        default='work_dirs/browse_mix',
        help='a folder, or a file that ends in .png (default: %(default)s)',
    )
    parser.add_argument(
        '--num-images', type=int, default=8, help='rows of the figure, or of each of --augments (default: %(default)s)'
    )
    parser.add_argument(
        '--checkpoint',
        help='weights of the model whose encoder scores (default: load_from of the config, or random weights)',
    )
    parser.add_argument(
        '--augments',
        nargs='+',
        metavar='TYPE',
        help='batch augments to compare, with their defaults, instead of those of the config; all mix the same images',
    )
    launch.add_trust_argument(parser)
    parser.add_argument(
        '--channel-order',
        choices=('rgb', 'bgr'),
        default='rgb',
        help='of the images that the model reads (default: %(default)s)',
    )
    parser.add_argument('--seed', type=int, default=0, help='of images and mixing (default: %(default)s)')
    launch.add_config_options(parser)
    args = parser.parse_args(argv)
    if args.num_images < 1:
        parser.error(f'--num-images {args.num_images} must be at least 1')
    return args


def build_model(cfg: Config, checkpoint: str | None) -> torch.nn.Module:
    """Build the model in evaluation mode.

    Args:
        cfg (Config): The whole config.
        checkpoint (str, optional): Path or URL of its weights. Defaults to ``load_from`` of the config.

    Raises:
        LaunchError: If the model cannot mix a batch by itself.
    """
    model = MODELS.build(cfg.model)
    if not hasattr(model, 'mix'):
        raise launch.LaunchError(
            f'CONFIG: browse_mix draws what a MixupClassifier mixes, but model.type={type(model).__name__} has no '
            "mix(). Set model.type='MixupClassifier' and move the batch augments from data_preprocessor.batch_augments "
            'to model.train_cfg; add encoder=dict(...) to MergeMix if the backbone itself cannot score.'
        )
    model.init_weights()
    checkpoint = checkpoint or cfg.get('load_from')
    if checkpoint:
        load_checkpoint(model, checkpoint, map_location='cpu')
    else:
        print('No --checkpoint given: the encoder that scores has random weights.', flush=True)
    return model.eval()


def mix_batches(model: torch.nn.Module, dataloader, num_images: int) -> tuple[list, list]:
    """Mix batches until enough images are mixed.

    Args:
        model (torch.nn.Module): A MixupClassifier.
        dataloader (Iterable): Yields the batches.
        num_images (int): The number of images to draw.

    Returns:
        tuple[list, list]: The MixResult of each batch, and its labels.

    Raises:
        LaunchError: If the data ends, or too many batches stay unmixed, before anything was mixed.
    """
    results, labels, unmixed = [], [], 0
    for data_batch in dataloader:
        with torch.no_grad():
            batch = model.data_preprocessor(data_batch, training=True)
            inputs = batch['inputs']
            result = model.mix(inputs, data_samples=batch['data_samples'])
        if result is None:
            unmixed += 1
            if unmixed == MAX_UNMIXED:
                break
            continue
        results.append(result)
        labels.append(labels_of(data_batch, len(inputs)))
        if sum(len(done.images) for done in results) >= num_images:
            break
    if not results:
        raise launch.LaunchError(
            f'CONFIG: none of {unmixed} batches was mixed. Check model.train_cfg: it needs augments, probs '
            'above 0, and batches of at least 2 images.'
        )
    return results, labels


def compare_augments(model: torch.nn.Module, dataloader, names: Sequence[str], seed: int) -> tuple[list, list]:
    """Mix the first batch with each of several augments.

    Args:
        model (torch.nn.Module): A MixupClassifier.
        dataloader (Iterable): Yields the batches.
        names (Sequence[str]): Types of batch augments.
        seed (int): Of each augment.

    Returns:
        tuple[list, list]: The MixResult of each augment, and the labels of its images.
    """
    from mmpretrain.models.utils.batch_augments import RandomBatchAugment  # After mergemix_mm, which prepares it.

    data_batch = next(iter(dataloader))
    batch = model.data_preprocessor(data_batch, training=True)
    results = []
    for name in names:
        set_random_seed(seed)
        with torch.no_grad():
            augments = RandomBatchAugment(dict(type=name))
            results.append(model.mix(batch['inputs'], augments, batch['data_samples']))
    return results, [labels_of(data_batch, len(batch['inputs']))] * len(names)


def main(argv: Sequence[str] | None = None) -> Path:
    """Write the figure and print its path.

    Args:
        argv (Sequence[str], optional): The command line. Defaults to that of the process.

    Returns:
        Path: The file.
    """
    args = parse_args(argv)
    cfg = launch.read_config(args.config, args.cfg_options)
    if cfg.get('train_dataloader') is None:
        raise launch.LaunchError(f'CONFIG: {args.config} has no train_dataloader to take images from; add one')
    launch.check_data_roots(cfg, 'train')
    # Without this logger, MMEngine logs how every weight was initialized.
    MMLogger.get_instance('browse_mix').setLevel('WARNING')
    set_random_seed(args.seed)
    with launch.safe_checkpoints(args.trust_checkpoint):
        model = build_model(cfg, args.checkpoint)

    # Several small batches show several mixing ratios, and no more images are loaded than drawn.
    loader_cfg = cfg.train_dataloader
    batch_size = max(2, min(IMAGES_PER_BATCH, args.num_images, loader_cfg.get('batch_size', IMAGES_PER_BATCH)))
    loader_cfg.update(batch_size=batch_size, drop_last=True)
    launch.read_in_this_process(loader_cfg)
    with launch.safe_checkpoints(args.trust_checkpoint), launch.explain_corrupt_images('train'):
        dataloader = Runner.build_dataloader(loader_cfg, seed=args.seed)
        if args.augments is None:
            results, labels, titles = *mix_batches(model, dataloader, args.num_images), None
        else:
            results, labels = compare_augments(model, dataloader, args.augments, args.seed)
            titles = args.augments
    page = draw_mixed_samples(
        results,
        titles=titles,
        mean=getattr(model.data_preprocessor, 'mean', None),
        std=getattr(model.data_preprocessor, 'std', None),
        labels=labels,
        classes=getattr(dataloader.dataset, 'metainfo', {}).get('classes'),
        max_rows=args.num_images * len(titles or [1]),
        channel_order=args.channel_order,
    )
    output = launch.figure_path(args.output_dir, args.config)
    print(f'Mixed samples written to {save_image(page, output)}', flush=True)
    return output


if __name__ == '__main__':
    main()
