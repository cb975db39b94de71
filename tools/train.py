"""Trains a model from a config, with the flags of MMPretrain's tools/train.py."""

import argparse

from mmengine.config import Config

from mergemix_mm.engine import launch


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description='Train a model')
    parser.add_argument('config', help='config file')
    launch.add_common_arguments(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='resume from this checkpoint; without a value, from the newest one in the work directory that loads',
    )
    parser.add_argument('--no-validate', action='store_true', help='train without validation')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate by the total batch size')
    parser.add_argument('--no-persistent-workers', action='store_true', help='restart data loader workers each epoch')
    return parser.parse_args(arguments)


def merge_args(cfg: Config, args: argparse.Namespace) -> Config:
    """Apply the flags to the config, and ``--cfg-options`` after them."""
    launch.merge_common_args(cfg, args)
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if args.amp:
        launch.use_amp(cfg)
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    if args.auto_scale_lr:
        cfg.auto_scale_lr = dict(cfg.get('auto_scale_lr') or {}, enable=True)
    launch.set_loader_defaults(
        cfg, 'train', 'val', pin_memory=not args.no_pin_memory, persistent_workers=not args.no_persistent_workers
    )
    launch.merge_options(cfg, args.cfg_options)
    if args.auto_scale_lr and 'base_batch_size' not in cfg.auto_scale_lr:
        raise launch.LaunchError(
            '--auto-scale-lr: the config has no auto_scale_lr.base_batch_size, the batch size that its learning '
            'rate is meant for; add auto_scale_lr=dict(base_batch_size=...)'
        )
    return cfg


def main() -> None:
    """Train."""
    args = parse_args()
    cfg = merge_args(launch.load_config(args.config), args)
    launch.check_data_roots(cfg, 'train', 'val')
    launch.check_resume(cfg)
    with (
        launch.safe_checkpoints(args.trust_checkpoint),
        launch.explain_corrupt_images('train', 'val'),
        launch.explain_stops(cfg),
    ):
        launch.build_runner(cfg).train()


if __name__ == '__main__':
    main()
