"""A trained classifier with its test data, which can merge tokens at inference or not."""

import argparse
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.registry import MODELS
from mmengine.runner import Runner, load_checkpoint
from mmpretrain.models import ImageClassifier
from mmpretrain.models.backbones import VisionTransformer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ...models.backbones import ToMeVisionTransformer
from ...models.vision_encoders import build_vision_encoder
from ...utils.numbers import is_number
from ...utils.text import one_line
from .. import launch

HALF = 0.5


@dataclass
class TrainedClassifier:
    """A classifier in evaluation mode, and its test data.

    Args:
        name (str): What tables and figures call it.
        cfg (Config): Its config, with ``test_dataloader``.
        model (ImageClassifier): Loaded, without gradients of its weights.
        num_merge (int | float): Tokens that it merges when merging is on, as for :class:`ToMeVisionTransformer`; 0 if
            it is measured only without merging.
    """

    name: str
    cfg: Config
    model: nn.Module
    num_merge: int | float = 0
    # Height and width of the test images, known after the first batch.
    image_size: tuple[int, int] | None = field(default=None, init=False)

    @property
    def modes(self) -> tuple[bool, ...]:
        """Whether to merge, in the order of the table's rows."""
        return (False, True) if self.num_merge else (False,)

    @contextmanager
    def merging(self, on: bool) -> Iterator[None]:
        """Merge tokens, or do not, with the same weights."""
        backbone = self.model.backbone
        if not isinstance(backbone, ToMeVisionTransformer):
            assert not on
            yield
            return
        before, backbone.num_merge = backbone.num_merge, self.num_merge if on else 0
        try:
            yield
        finally:
            backbone.num_merge = before

    def merged_tokens(self, merge: bool) -> int:
        """How many tokens of a test image are merged, after the first batch."""
        if not merge:
            return 0
        if isinstance(self.num_merge, int):
            return self.num_merge
        assert self.image_size is not None
        patch = build_vision_encoder(self.model.backbone).patch_size
        return int(self.num_merge * math.prod(side // size for side, size in zip(self.image_size, patch)))

    @cached_property
    def _loader(self) -> DataLoader:
        return Runner.build_dataloader(self.cfg.test_dataloader, seed=0)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The test data: normalised images [B, 3, H, W] and labels [B], on the device of the model.

        Raises:
            LaunchError: If an image has no label, or several.
        """
        with launch.explain_corrupt_images('test'):
            for data in self._loader:
                data = self.model.data_preprocessor(data, False)
                labels = [sample.get('gt_label') for sample in data['data_samples']]
                if any(label is None or label.numel() != 1 for label in labels):
                    raise launch.LaunchError(
                        f'test_dataloader of {self.name}: each image needs one gt_label; use a test set with labels'
                    )
                self.image_size = tuple(data['inputs'].shape[-2:])
                yield data['inputs'], torch.cat(labels).to(data['inputs'].device)

    def curve_name(self, merge: bool) -> str:
        """The name of a curve or figure, after the first batch."""
        return f'{self.name}, {self.merged_tokens(True)} merged' if merge else self.name

    def logits(self, images: Tensor) -> Tensor:
        """The scores [B, C] of normalised images before the softmax.

        Raises:
            LaunchError: If the images have too few patches for ``num_merge``, or the head gives no scores of classes.
        """
        try:
            scores = self.model(images, mode='tensor')
        except ValueError as error:
            if not str(error).startswith(ToMeVisionTransformer.__name__):
                raise
            raise launch.LaunchError(f'--num-merge: {self.name}: {one_line(error)}') from error
        if not isinstance(scores, Tensor) or scores.ndim != 2:
            raise launch.LaunchError(
                f'CONFIG of {self.name}: model.head gives {type(scores).__name__}, and a measurement needs one score '
                'for each image and class'
            )
        return scores

    def pixel_scale(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [3, 1, 1] of the data preprocessor: pixels in 0..255 are images * std + mean."""
        preprocessor = self.model.data_preprocessor
        mean, std = (getattr(preprocessor, key, None) for key in ('mean', 'std'))
        if mean is None or std is None:
            return torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
        return mean.float(), std.float()


def add_arguments(parser: argparse.ArgumentParser, output: str) -> None:
    """Add what all measurements take: the classifiers, how many tokens they merge, the device and the output.

    Args:
        parser (argparse.ArgumentParser): The parser.
        output (str): The default of ``--output-dir``.
    """
    parser.add_argument(
        'classifiers',
        nargs='+',
        metavar='CONFIG CHECKPOINT',
        help='config and checkpoint; several pairs share the table and the figure',
    )
    parser.add_argument('--names', nargs='+', help='of the classifiers in table and figure (default: of the configs)')
    parser.add_argument(
        '--num-merge',
        type=_number,
        help='tokens merged over all layers at inference, or a share of the patches such as 0.25; 0: only without '
        'merging (default: num_merge of the backbone in the config, else half of the patches)',
    )
    add_run_arguments(parser, output)


def add_run_arguments(parser: argparse.ArgumentParser, output: str) -> None:
    """Add what a measurement of one classifier takes as well: the device, the output, and options of the config.

    Args:
        parser (argparse.ArgumentParser): The parser.
        output (str): The default of ``--output-dir``.
    """
    parser.add_argument('--device', help="e.g. 'cuda:1' or 'cpu' (default: the accelerator, if there is one)")
    parser.add_argument('-o', '--output-dir', default=output, help='folder of the results (default: %(default)s)')
    launch.add_trust_argument(parser)
    launch.add_config_options(parser)


def load_classifiers(args: argparse.Namespace) -> list[TrainedClassifier]:
    """Load what the flags of :func:`add_arguments` name.

    Raises:
        LaunchError: If configs and checkpoints are not pairs, the names do not fit, or one cannot be loaded.
    """
    paths = args.classifiers
    if len(paths) % 2:
        raise launch.LaunchError(
            f'CONFIG CHECKPOINT: found {len(paths)} paths, which are not pairs; give a checkpoint after each config: '
            'CONFIG CHECKPOINT [CONFIG CHECKPOINT ...]'
        )
    pairs = list(zip(paths[::2], paths[1::2]))
    names = args.names or _names(pairs)
    if len(names) != len(pairs) or len(set(names)) < len(names):
        raise launch.LaunchError(
            f'--names: {", ".join(names)} must be {len(pairs)} different names, one for each pair of config and '
            'checkpoint'
        )
    return [load_classifier(*pair, args, name) for pair, name in zip(pairs, names)]


def load_classifier(config: str, checkpoint: str, args: argparse.Namespace, name: str) -> TrainedClassifier:
    """Build a classifier as the Runner does, and load its checkpoint.

    Args:
        config (str): The path of its config.
        checkpoint (str): The path of its checkpoint, which must hold all of its weights.
        args (argparse.Namespace): The flags of :func:`add_arguments`.
        name (str): What tables and figures call it.

    Raises:
        LaunchError: If the config has no classifier or no test data, its backbone cannot merge but should, or the
            checkpoint is of another model.
    """
    cfg = launch.read_config(config, args.cfg_options)
    for key in ('model', 'test_dataloader'):
        if not cfg.get(key):
            raise launch.LaunchError(f'CONFIG: {config} has no {key}, which a measurement needs')
    launch.check_data_roots(cfg, 'test')
    launch.set_loader_defaults(cfg, 'test', pin_memory=False, persistent_workers=False)
    # Without this logger, MMEngine logs how every weight was initialized.
    MMLogger.get_instance('mmengine').setLevel('ERROR')
    num_merge = _set_merging(cfg, config, args.num_merge)
    # Mixers are for training, and some of them cannot stand beside a backbone that merges.
    cfg.model.pop('train_cfg', None)
    model = MODELS.build(cfg.model)
    if not isinstance(model, ImageClassifier):
        raise launch.LaunchError(
            f'CONFIG: model.type={type(model).__name__} of {config} is not an ImageClassifier, which is measured here'
        )
    with launch.safe_checkpoints(args.trust_checkpoint):
        try:
            load_checkpoint(model, checkpoint, map_location='cpu', strict=True)
        except RuntimeError as error:
            raise launch.LaunchError(
                f'CHECKPOINT: {checkpoint} is not of the model of {config}: {one_line(error)}'
            ) from error
    return TrainedClassifier(name, cfg, model.to(args.device or get_device()).requires_grad_(False).eval(), num_merge)


def _set_merging(cfg: Config, path: str, num_merge: int | float | None) -> int | float:
    """Turn a plain backbone into one that merges, which has the same weights; returns how many tokens it merges."""
    backbone: dict[str, Any] = cfg.model.get('backbone') or {}
    kind = backbone.get('type')
    with MODELS.switch_scope_and_registry(cfg.default_scope) as registry:
        found = registry.get(kind) if isinstance(kind, str) else kind
    merges = isinstance(found, type) and issubclass(found, ToMeVisionTransformer)
    if num_merge is None:
        num_merge = (backbone.get('num_merge') if merges else None) or HALF
    if merges or (num_merge and found is VisionTransformer):
        # Nothing merges outside of `TrainedClassifier.merging`.
        backbone.update(type='ToMeVisionTransformer', num_merge=0, merge_in=('train', 'test'))
        backbone.pop('_scope_', None)
    elif num_merge:
        raise launch.LaunchError(
            f'CONFIG: model.backbone.type={kind!r} of {path} cannot merge tokens, where VisionTransformer and '
            'ToMeVisionTransformer can; --num-merge 0 measures it without merging'
        )
    return num_merge


def _names(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """The names of the configs, with those of the checkpoints where a config is there several times."""
    configs = [Path(config).stem for config, _ in pairs]
    count = Counter(configs)
    return [
        config if count[config] == 1 else f'{config} {Path(checkpoint).parent.name}/{Path(checkpoint).stem}'
        for config, (_, checkpoint) in zip(configs, pairs)
    ]


def _number(text: str) -> int | float:
    try:
        value: int | float = int(text) if text.isdecimal() else float(text)
    except ValueError:
        value = -1
    if not (is_number(value, least=0, integer=True) or is_number(value, least=0, below=1)):
        raise argparse.ArgumentTypeError(f'{text} must be an integer >= 0, or a share of the patches in [0, 1)')
    return value
