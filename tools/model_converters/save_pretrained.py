"""Writes the vision-language model of an MMEngine checkpoint, and its processor, in transformers' format."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, TRANSFORMS

from mergemix_mm.engine import launch
from mergemix_mm.engine.weights import read_state_dict
from mergemix_mm.engine.weights.sharded_checkpoint import is_sharded
from mergemix_mm.models.precision import widen_trained
from mergemix_mm.models.vlms.hf.saving import check_replaceable, replaced_folder, save_processor
from mergemix_mm.models.vlms.quantization import is_quantized


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='path of the config that was trained')
    parser.add_argument('checkpoint', type=Path, help='its checkpoint, a file of MMEngine or a folder of FSDP2Strategy')
    parser.add_argument('out', type=Path, help='the folder to write; a model there is replaced')
    parser.add_argument(
        '--merge-lora', action='store_true', help='add the adapters to the weights and write the whole model'
    )
    launch.add_trust_argument(parser)
    parser.add_argument(
        '--dtype',
        choices=launch.DTYPES,
        help='of the saved weights (default: that of model.vlm; weights that trained in float32 are rounded to it)',
    )
    launch.add_config_options(parser)
    return parser.parse_args(argv)


def load_weights(path: Path, trust: bool = False) -> dict[str, torch.Tensor]:
    """Read the weights of ``vlm`` in a checkpoint. No code of the file runs without ``trust``.

    Raises:
        SystemExit: If the file is not a checkpoint of a tuned vision-language model.
    """
    if not path.is_file() and not is_sharded(path):
        raise launch.LaunchError(
            f'CHECKPOINT: {path} is neither a file nor a folder of FSDP2Strategy. Name a .pth file, or such a folder'
        )
    try:
        weights = read_state_dict(path, trust)
    except (OSError, ValueError) as error:
        raise launch.LaunchError(f'CHECKPOINT: {error}') from None
    # MMEngine also reads checkpoints whose names have the prefixes of wrappers.
    weights = {re.sub(r'^((module|_orig_mod)\.)+', '', name): weight for name, weight in weights.items()}
    found = {name.removeprefix('vlm.'): weight for name, weight in weights.items() if name.startswith('vlm.')}
    if not found:
        raise launch.LaunchError(
            f'CHECKPOINT: {path} has no weights of a vlm (its first: {list(weights)[:3]}). Name a checkpoint of a '
            'VLMTuner'
        )
    return found


def convert(
    cfg: Config, checkpoint: Path, out: Path, merge_lora: bool = False, trust: bool = False, dtype: str | None = None
) -> None:
    """Build the model of the config, load the checkpoint and write the folder."""
    try:
        check_replaceable(out)
    except OSError as error:
        raise launch.LaunchError(f'OUT: {error}') from None
    weights = load_weights(checkpoint, trust)
    if cfg.get('model') is None or cfg.model.get('vlm') is None:
        raise launch.LaunchError('CONFIG: there is no model.vlm; name the config of a VLMTuner')
    vlm = MODELS.build(cfg.model.vlm)
    # As in the tuner, so that loading does not round trained weights to the dtype of the frozen ones.
    widen_trained(vlm.parameters())
    try:
        vlm.load_state_dict(weights)
    except (RuntimeError, ValueError) as error:
        raise launch.LaunchError(f'CHECKPOINT: {checkpoint} is not of the model of this config: {error}') from None
    if merge_lora:
        if not hasattr(vlm.model, 'merge_and_unload'):
            raise launch.LaunchError('--merge-lora: the config has no model.vlm.lora; leave the flag out')
        if is_quantized(vlm.model):
            raise launch.LaunchError(
                '--merge-lora: the weights are quantized; add the adapters to the original ones, with --cfg-options '
                'model.vlm.quantization_config=None (SphinxModel: model.vlm.language_model.quantization_config=None)'
            )
        vlm.model = vlm.model.merge_and_unload()
    with replaced_folder(out) as folder:
        vlm.save_pretrained(folder, dtype)
        if cfg.model.get('processor') is not None:
            save_processor(TRANSFORMS.build(cfg.model.processor), folder)


def main(argv: Sequence[str] | None = None) -> None:
    """Convert, and print the path of the result.

    Args:
        argv (Sequence[str], optional): The command line. Defaults to that of the process.
    """
    args = parse_args(argv)
    cfg = launch.read_config(args.config, args.cfg_options)
    convert(cfg, args.checkpoint, args.out, args.merge_lora, args.trust_checkpoint, args.dtype)
    print(f'Model written to {args.out}')


if __name__ == '__main__':
    main()
