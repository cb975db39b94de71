"""Writes the backbone of a trained classifier for a detector's `init_cfg`: every weight, fitted to its image size."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor

from mergemix_mm.engine import launch
from mergemix_mm.engine.weights import read_state_dict
from mergemix_mm.utils.files import replaced_file
from mergemix_mm.utils.text import shown

PREFIX = 'backbone.'


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="In the config: backbone=dict(..., init_cfg=dict(type='Pretrained', checkpoint=OUT))",
    )
    parser.add_argument('config', help='path of the config that is to start from the backbone, a detector for instance')
    parser.add_argument('checkpoint', type=Path, help='checkpoint of the classifier, a file of MMEngine')
    parser.add_argument('out', type=Path, help='the file to write; one that is there is replaced')
    parser.add_argument(
        '--backbone',
        default='model.backbone',
        metavar='KEY',
        help='where the backbone stands in the config (default: %(default)s); in a MultiBackbone for instance '
        'model.backbone.encoders.0.encoder',
    )
    parser.add_argument(
        '--drop', metavar='REGEX', help="weights that the backbone does without, for instance '^ln2' of a pooled output"
    )
    launch.add_trust_argument(parser)
    return parser.parse_args(argv)


def read_backbone(path: Path, drop: str | None = None, trust: bool = False) -> dict[str, Tensor]:
    """Read the weights of a classifier's backbone by their names in it; no code of the file runs without ``trust``.

    Raises:
        SystemExit: If this is no checkpoint with a backbone.
    """
    try:
        weights = read_state_dict(path, trust)
    except (OSError, ValueError) as error:
        raise launch.LaunchError(f'CHECKPOINT: {error}') from None
    found = {name.removeprefix(PREFIX): weight for name, weight in weights.items() if name.startswith(PREFIX)}
    if not found:
        raise launch.LaunchError(
            f'CHECKPOINT: {path} has no weights of a backbone (its first: {list(weights)[:3]}). Name a checkpoint of '
            'an ImageClassifier or MixupClassifier'
        )
    return {name: weight for name, weight in found.items() if drop is None or not re.search(drop, name)}


def find_backbone(cfg: Config, key: str) -> dict:
    """The part of the config at a dotted key, in which numbers count the entries of lists.

    Raises:
        SystemExit: If there is no config of a module.
    """
    part = cfg
    for name in key.split('.'):
        try:
            part = part[int(name)] if isinstance(part, list | tuple) else part[name]
        except (KeyError, IndexError, ValueError, TypeError):
            raise launch.LaunchError(f'--backbone {key}: the config has no {name!r} there') from None
    if not isinstance(part, dict) or 'type' not in part:
        raise launch.LaunchError(f'--backbone {key}: the config has {part!r} there, which is no dict(type=...)')
    return part


def convert(
    cfg: Config,
    checkpoint: Path,
    out: Path,
    key: str = 'model.backbone',
    drop: str | None = None,
    trust: bool = False,
) -> None:
    """Load the classifier's backbone into the one of the config, every weight of both, and write it."""
    weights = read_backbone(checkpoint, drop, trust)
    backbone = MODELS.build({**find_backbone(cfg, key), 'init_cfg': None})
    try:
        # MMPretrain's backbones resize the position embedding when they load it.
        backbone.load_state_dict(weights)
    except (RuntimeError, AssertionError) as error:
        raise launch.LaunchError(
            f'{checkpoint} and the {type(backbone).__name__} at {key} differ: {error}\n'
            'Give it the arch, patch_size and layers of the classifier; --drop leaves out weights that it does without'
        ) from None
    fitted = backbone.state_dict()
    for name, weight in weights.items():
        if weight.shape != fitted[name].shape:
            print(f'{shown(name)}: resized from {list(weight.shape)} to {list(fitted[name].shape)}')
    with replaced_file(out) as temporary:
        torch.save(dict(meta=dict(checkpoint=str(checkpoint)), state_dict=fitted), temporary)


def main(argv: Sequence[str] | None = None) -> None:
    """Convert and say where the result is."""
    args = parse_args(argv)
    cfg = launch.load_config(args.config)
    init_default_scope(cfg.default_scope)
    convert(cfg, args.checkpoint, args.out, args.backbone, args.drop, args.trust_checkpoint)
    print(f'Backbone written to {args.out}')


if __name__ == '__main__':
    main()
