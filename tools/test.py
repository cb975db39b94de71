"""Tests a checkpoint with a config, with the flags of MMPretrain's tools/test.py."""

import argparse

import mmengine
from mmengine.config import Config
from mmengine.evaluator import DumpResults

from mergemix_mm.engine import launch


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description='Test a model')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help="checkpoint file, or 'none' for the weights of model.vlm.pretrained")
    launch.add_common_arguments(parser)
    parser.add_argument('--out', help='file for the results (.pkl, .json or .yaml)')
    parser.add_argument('--out-item', choices=['metrics', 'pred'], help='what --out holds (default: pred)')
    parser.add_argument('--show-dir', help='folder for drawn predictions')
    parser.add_argument('--show', action='store_true', help='show the predictions in a window')
    parser.add_argument('--interval', type=int, default=1, help='draw every n-th sample')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds that a window stays open')
    parser.add_argument(
        '--tta',
        action='store_true',
        help='test-time augmentation with tta_model and tta_pipeline of the config, by default the mean over flips',
    )
    args = parser.parse_args(arguments)
    if args.out_item is not None and args.out is None:
        parser.error('--out-item needs --out, the file to write to')
    return args


def merge_args(cfg: Config, args: argparse.Namespace) -> Config:
    """Apply the flags to the config, and ``--cfg-options`` after them."""
    launch.merge_common_args(cfg, args)
    cfg.load_from = args.checkpoint
    if args.amp:
        cfg.test_cfg.fp16 = True
    if args.show or args.show_dir is not None:
        if 'visualization' not in (cfg.get('default_hooks') or {}):
            raise launch.LaunchError(
                '--show and --show-dir: the config has no default_hooks.visualization; add '
                "visualization=dict(type='VisualizationHook') to its default_hooks"
            )
        cfg.default_hooks.visualization.update(
            enable=True, show=args.show, wait_time=args.wait_time, out_dir=args.show_dir, interval=args.interval
        )
    launch.set_loader_defaults(cfg, 'test', pin_memory=not args.no_pin_memory)
    launch.merge_options(cfg, args.cfg_options)
    if cfg.load_from == 'none':
        launch.use_own_weights(cfg)
    # This wraps the model, so it comes last: the keys of --cfg-options are the same with and without --tta.
    if args.tta:
        _use_test_time_augmentation(cfg)
    return cfg


def _use_test_time_augmentation(cfg: Config) -> None:
    """Average over views of each image, by default over the image and its mirror image.

    This follows MMPretrain's tools/test.py (Apache-2.0), which has the same keys and the same default.
    """
    dataset = cfg.test_dataloader.dataset
    pipeline = cfg.get('tta_pipeline')
    if pipeline is None:
        *transforms, pack = dataset.pipeline
        mirror = [dict(type='RandomFlip', prob=prob) for prob in (1.0, 0.0)]
        pipeline = [*transforms, dict(type='TestTimeAug', transforms=[mirror, [pack]])]
    dataset.pipeline = pipeline
    average = cfg.get('tta_model') or dict(type='mmpretrain.AverageClsScoreTTA')
    cfg.model = dict(average, module=cfg.model)


def main() -> None:
    """Test, print the metrics, and write what ``--out`` asks for."""
    args = parse_args()
    cfg = merge_args(launch.load_config(args.config), args)
    launch.check_data_roots(cfg, 'test')
    with launch.safe_checkpoints(args.trust_checkpoint), launch.explain_corrupt_images('test'):
        runner = launch.build_runner(cfg)
        if args.out and args.out_item != 'metrics':
            runner.test_evaluator.metrics.append(DumpResults(out_file_path=args.out))
        metrics = runner.test()
    if args.out and args.out_item == 'metrics':
        mmengine.dump(metrics, args.out)


if __name__ == '__main__':
    main()
