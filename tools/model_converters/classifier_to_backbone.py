"""Writes all weights of the backbone of a trained classifier for the `init_cfg` of a detector, fitted to its images."""

import argparse
import ast
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.utils import to_2tuple
from mmpretrain.models.utils import resize_pos_embed
from torch import Tensor, nn

from mergemix_mm.engine import launch
from mergemix_mm.engine.weights import read_checkpoint, state_dict_of
from mergemix_mm.utils.files import replaced_file
from mergemix_mm.utils.text import shown

PREFIX = 'backbone.'
POSITION = 'pos_embed'


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="In the config: backbone=dict(..., init_cfg=dict(type='Pretrained', checkpoint=OUT))",
    )
    parser.add_argument('config', help='path of the config that will start from the backbone, e.g. of a detector')
    parser.add_argument('checkpoint', type=Path, help='checkpoint of the classifier, a file of MMEngine')
    parser.add_argument('out', type=Path, help='the file to write; an existing file is replaced')
    parser.add_argument(
        '--backbone',
        default='model.backbone',
        metavar='KEY',
        help='place of the backbone in the config (default: %(default)s); in a MultiBackbone for example '
        'model.backbone.encoders.0.encoder',
    )
    parser.add_argument(
        '--drop', metavar='REGEX', help="weights that the backbone does not have, for example '^ln2' of a pooled output"
    )
    parser.add_argument(
        '--grid',
        nargs=2,
        type=int,
        metavar=('ROWS', 'COLUMNS'),
        help='patches of an image of the classifier (default: from the config in the checkpoint, or square)',
    )
    launch.add_trust_argument(parser)
    args = parser.parse_args(argv)
    if args.grid is not None and min(args.grid) < 1:
        parser.error(f'--grid {args.grid[0]} {args.grid[1]}: rows and columns must be at least 1')
    try:
        re.compile(args.drop or '')
    except re.error as error:
        parser.error(f'--drop {shown(args.drop)}: not a regular expression: {error}')
    return args


def read_backbone(
    path: Path, drop: str | None = None, trust: bool = False
) -> tuple[dict[str, Tensor], list[tuple[int, int]]]:
    """Read the weights of the backbone of a classifier. No code of the file runs without ``trust``.

    Returns:
        tuple: The weights by their names in the backbone, and the result of :func:`read_grids`.

    Raises:
        SystemExit: If the file is not a checkpoint with a backbone.
    """
    try:
        content = read_checkpoint(path, trust)
        weights = state_dict_of(content, path)
    except (OSError, ValueError) as error:
        raise launch.LaunchError(f'CHECKPOINT: {error}') from None
    found = {name.removeprefix(PREFIX): weight for name, weight in weights.items() if name.startswith(PREFIX)}
    if not found:
        raise launch.LaunchError(
            f'CHECKPOINT: {path} has no weights of a backbone (its first: {list(weights)[:3]}). Name a checkpoint of '
            'an ImageClassifier or MixupClassifier'
        )
    kept = {name: weight for name, weight in found.items() if drop is None or not re.search(drop, name)}
    return kept, read_grids(content)


def read_grids(checkpoint: dict) -> list[tuple[int, int]]:
    """The patch grids that the config in the checkpoint of a classifier allows; none if there is no config.

    The config is a text, which is parsed and never run. There are two grids if the images do not consist of whole
    patches, because some backbones pad such images and others cut them.
    """
    meta = checkpoint.get('meta')
    text = meta.get('cfg') if isinstance(meta, dict) else None
    try:
        body = ast.parse(text).body if isinstance(text, str) else []
        models = [node.value for node in body if isinstance(node, ast.Assign) and ast.unparse(node.targets) == 'model']
        backbone = _plain(models[-1])['backbone'] if models else None
    except (SyntaxError, ValueError, KeyError, TypeError, RecursionError, MemoryError):
        return []
    if not isinstance(backbone, dict):
        return []
    sizes = [to_2tuple(backbone.get(key, default)) for key, default in (('img_size', 224), ('patch_size', 16))]
    if not all(len(size) == 2 and all(isinstance(n, int) and n > 0 for n in size) for size in sizes):
        return []
    padded, cut = ([divide(n, patch) for n, patch in zip(*sizes, strict=True)] for divide in (_up, int.__floordiv__))
    return list(dict.fromkeys([tuple(padded), tuple(cut)]))


def _plain(node: ast.AST) -> Any:
    """The value of ``dict(...)`` and of literals; None for anything else."""
    if isinstance(node, ast.Call) and getattr(node.func, 'id', None) == 'dict' and not node.args:
        return {keyword.arg: _plain(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.Dict):
        return {
            _plain(key): _plain(value) for key, value in zip(node.keys, node.values, strict=True) if key is not None
        }
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def _up(length: int, patch: int) -> int:
    return -(-length // patch)


def fit_position(
    weights: dict[str, Tensor], backbone: nn.Module, grids: Sequence[tuple[int, int]], given: tuple[int, int] | None
) -> dict[str, Tensor]:
    """The weights with the position embedding resized to the grid of the backbone.

    MMPretrain itself assumes that every grid is square.

    Args:
        weights (dict[str, Tensor]): The weights of the backbone of the classifier.
        backbone (nn.Module): The backbone that will load them. Without a grid of patches, the weights stay as they are.
        grids (Sequence[tuple[int, int]]): Rows and columns by the config in the checkpoint.
        given (tuple[int, int], optional): Rows and columns of the command line, which have priority.

    Raises:
        SystemExit: If the grid is unknown, or does not fit the weights.
    """
    found, own, target = (
        weights.get(POSITION),
        getattr(backbone, POSITION, None),
        getattr(backbone, 'patch_resolution', 0),
    )
    if found is None or not isinstance(own, Tensor) or not target or found.ndim != 3:
        return weights
    length, prefix = found.size(1), own.size(1) - math.prod(target)
    # The classifier may have a class token that the backbone does not have; it is left out.
    prefixes = [prefix] if getattr(backbone, 'cls_token', None) is not None else [prefix, prefix + 1]
    fits = {grid: n for grid in [given or (0, 0), *grids] for n in prefixes if math.prod(grid) == length - n > 0}
    grid = next(iter(fits), None)
    told = f'{length} position embeddings, of which {prefix} belong to no patch'
    if given is not None and grid != given:
        raise launch.LaunchError(f'--grid {given[0]} {given[1]}: {math.prod(given)} patches, but there are {told}')
    if grid is None:
        sides = {n: math.isqrt(length - n) for n in prefixes if length >= n}
        fits = {(side, side): n for n, side in sides.items() if 0 < side * side == length - n}
        grid = next(iter(fits), None)
        said = f', of which its config says {" or ".join(f"{a} x {b}" for a, b in grids)} patches' if grids else ''
        if grid is None or said:
            raise launch.LaunchError(f'CHECKPOINT: {told}{said}: name its patches with --grid ROWS COLUMNS')
        print(f'{POSITION}: assumed to be a square of {grid[0]} x {grid[1]} patches; if not, give --grid ROWS COLUMNS')
    patches = found[:, fits[grid] - prefix :]
    if grid != tuple(target):
        print(f'{POSITION}: from {grid[0]} x {grid[1]} patches to {target[0]} x {target[1]}')
        patches = resize_pos_embed(patches, grid, tuple(target), backbone.interpolate_mode, prefix)
    return weights | {POSITION: patches}


def find_backbone(cfg: Config, key: str) -> dict:
    """The part of the config at a dotted key, in which numbers are indices of lists.

    Raises:
        SystemExit: If there is no config of a module at this key.
    """
    part = cfg
    for name in key.split('.'):
        try:
            part = part[int(name)] if isinstance(part, list | tuple) else part[name]
        except (KeyError, IndexError, ValueError, TypeError):
            raise launch.LaunchError(f'--backbone {key}: the config has no {name!r} there') from None
    if not isinstance(part, dict) or 'type' not in part:
        raise launch.LaunchError(f'--backbone {key}: the config has {part!r} there, which is not dict(type=...)')
    return part


def convert(
    cfg: Config,
    checkpoint: Path,
    out: Path,
    key: str = 'model.backbone',
    drop: str | None = None,
    trust: bool = False,
    grid: tuple[int, int] | None = None,
) -> None:
    """Load all weights of the backbone of the classifier into that of the config, which must fit, and write it."""
    weights, grids = read_backbone(checkpoint, drop, trust)
    backbone = MODELS.build({**find_backbone(cfg, key), 'init_cfg': None})
    try:
        backbone.load_state_dict(fit_position(weights, backbone, grids, grid))
    except (RuntimeError, AssertionError) as error:
        what = ' '.join(str(error).split())
        raise launch.LaunchError(
            f'{checkpoint} and the {type(backbone).__name__} at {key} differ: {what} '
            'Give it the arch, patch_size and layers of the classifier; --drop leaves out weights that it does not have'
        ) from None
    fitted = backbone.state_dict()
    for name, weight in weights.items():
        if weight.shape != fitted[name].shape:
            print(f'{shown(name)}: resized from {list(weight.shape)} to {list(fitted[name].shape)}')
    with replaced_file(out) as temporary:
        torch.save(dict(meta=dict(checkpoint=str(checkpoint)), state_dict=fitted), temporary)


def main(argv: Sequence[str] | None = None) -> None:
    """Convert, and print the path of the result.

    Args:
        argv (Sequence[str], optional): The command line. Defaults to that of the process.
    """
    args = parse_args(argv)
    cfg = launch.read_config(args.config)
    grid = None if args.grid is None else tuple(args.grid)
    convert(cfg, args.checkpoint, args.out, args.backbone, args.drop, args.trust_checkpoint, grid)
    print(f'Backbone written to {args.out}')


if __name__ == '__main__':
    main()
