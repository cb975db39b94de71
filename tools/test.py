"""Tests a checkpoint with a config, with the flags of MMPretrain's tools/test.py."""

import argparse
import copy

import mmengine
from mmengine.config import Config, ConfigDict
from mmengine.evaluator import DumpResults

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
    parser = argparse.ArgumentParser(description='Test a model')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    add_common_arguments(parser)
    parser.add_argument('--out', help='file for the results (.pkl, .json or .yaml)')
    parser.add_argument('--out-item', choices=['metrics', 'pred'], help='what --out holds; predictions if left out')
    parser.add_argument('--show-dir', help='folder for drawn predictions')
    parser.add_argument('--show', action='store_true', help='show the predictions in a window')
    parser.add_argument('--interval', type=int, default=1, help='draw every n-th sample')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds that a window stays')
    parser.add_argument(
        '--tta',
        action='store_true',
        help='test-time augmentation: tta_model and tta_pipeline of the config, or else the mean over flips',
    )
    args = parser.parse_args(arguments)
    if args.out_item is not None and args.out is None:
        parser.error('--out-item needs --out, the file to write to')
    return args


def merge_args(cfg: Config, args: argparse.Namespace) -> Config:
    """Apply the flags of testing to the config."""
    cfg.load_from = args.checkpoint
    if args.amp:
        cfg.test_cfg.fp16 = True
    if args.show or args.show_dir is not None:
        if 'visualization' not in (cfg.get('default_hooks') or {}):
            raise LaunchError(
                '--show and --show-dir: the config has no default_hooks.visualization; add '
                "visualization=dict(type='VisualizationHook') to its default_hooks"
            )
        cfg.default_hooks.visualization.update(
            enable=True, show=args.show, wait_time=args.wait_time, out_dir=args.show_dir, interval=args.interval
        )
    if args.tta:
        _use_test_time_augmentation(cfg)
    set_loader_defaults(cfg, 'test', pin_memory=not args.no_pin_memory)
    return cfg


def _use_test_time_augmentation(cfg: Config) -> None:
    dataset = cfg.test_dataloader.dataset
    if 'tta_model' not in cfg:
        cfg.tta_model = dict(type='mmpretrain.AverageClsScoreTTA')
    if 'tta_pipeline' not in cfg:
        *transforms, pack = copy.deepcopy(dataset.pipeline)
        flips = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
        cfg.tta_pipeline = [*transforms, dict(type='TestTimeAug', transforms=[flips, [pack]])]
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    dataset.pipeline = cfg.tta_pipeline


def main() -> None:
    """Test, print the metrics, and write what ``--out`` asks for."""
    args = parse_args()
    cfg = merge_args(load_config(args), args)
    check_data_roots(cfg, 'test')
    runner = build_runner(cfg)
    if args.out and args.out_item != 'metrics':
        runner.test_evaluator.metrics.append(DumpResults(out_file_path=args.out))
    with explain_corrupt_images('test'):
        metrics = runner.test()
    if args.out and args.out_item == 'metrics':
        mmengine.dump(metrics, args.out)


if __name__ == '__main__':
    main()
