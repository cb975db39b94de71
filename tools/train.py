"""Trains a model from a config, with the flags of MMPretrain's tools/train.py."""

import argparse

from mmengine.config import Config

import mergemix_mm  # noqa: F401  registers the components
from mergemix_mm.engine.launch import (
    LaunchError,
    add_common_arguments,
    build_runner,
    check_data_roots,
    explain_corrupt_images,
    load_config,
    set_loader_defaults,
)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line, or ``arguments`` if given."""
    parser = argparse.ArgumentParser(description='Train a model')
    parser.add_argument('config', help='config file')
    add_common_arguments(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='resume from this checkpoint, or without a value from the latest one in the work directory',
    )
    parser.add_argument('--no-validate', action='store_true', help='train without validation')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate with the batch size')
    parser.add_argument('--no-persistent-workers', action='store_true', help='restart data loader workers each epoch')
    return parser.parse_args(arguments)


def merge_args(cfg: Config, args: argparse.Namespace) -> Config:
    """Apply the flags of training to the config."""
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if args.amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    if args.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            raise LaunchError(
                '--auto-scale-lr: the config has no auto_scale_lr.base_batch_size, the batch size that its learning '
                'rate is meant for; add auto_scale_lr=dict(base_batch_size=...)'
            )
        cfg.auto_scale_lr.enable = True
    set_loader_defaults(
        cfg, 'train', 'val', pin_memory=not args.no_pin_memory, persistent_workers=not args.no_persistent_workers
    )
    return cfg


def main() -> None:
    """Train."""
    args = parse_args()
    cfg = merge_args(load_config(args), args)
    check_data_roots(cfg, 'train', 'val')
    with explain_corrupt_images('train', 'val'):
        build_runner(cfg).train()


if __name__ == '__main__':
    main()
