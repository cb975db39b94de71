"""Restores names of transformers that MMPretrain imports and transformers 5 no longer has.

Needed by onedl-mmpretrain 1.3.6, its newest release, with transformers 5: BLIP, RAM and OFA import names that are gone,
so all of `mmpretrain.models` fails to import. docs/upstream/mmpretrain-transformers5.patch fixes MMPretrain; with it,
this module does nothing. Names that exist are never replaced, so with transformers 4 it does nothing either.

The package imports this before the first module of `mmpretrain.models`. A program that imports these itself has
to import `mergemix_mm` first.
"""

from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor


def find_pruneable_heads_and_indices(
    heads: Iterable[int], n_heads: int, head_size: int, already_pruned_heads: set[int]
) -> tuple[set[int], Tensor]:
    """Find the attention heads that are still to be pruned, and the rows of a projection that stay.

    Args:
        heads (Iterable[int]): Heads to prune, numbered as before any pruning.
        n_heads (int): Number of heads that the layer has now.
        head_size (int): Rows per head.
        already_pruned_heads (set[int]): Heads that were pruned before.

    Returns:
        tuple[set[int], Tensor]: The heads that were not pruned before, and int64 indices of the rows that stay.
    """
    new = set(heads) - already_pruned_heads
    gone = {head - sum(old < head for old in already_pruned_heads) for head in new}
    kept = torch.tensor([head for head in range(n_heads) if head not in gone], dtype=torch.long)
    rows = kept[:, None] * head_size + torch.arange(head_size)
    return new, rows.flatten()


def restore_names() -> list[str]:
    """Add the missing names to the modules of transformers that MMPretrain imports them from.

    Returns:
        list[str]: The added names with their modules; empty if transformers has them all, or if MMPretrain does not
            import it, because transformers or pycocotools is not installed.
    """
    if find_spec('transformers') is None or find_spec('pycocotools') is None:
        return []
    config = getattr(import_module('transformers.configuration_utils'), 'PretrainedConfig', None)
    wanted = {
        # Of blip/language_model.py and ram/bert.py.
        ('transformers.pytorch_utils', 'find_pruneable_heads_and_indices'): find_pruneable_heads_and_indices,
        # Of ofa/ofa_modules.py.
        ('transformers.modeling_utils', 'PretrainedConfig'): config,
    }
    added = []
    for (module, name), value in wanted.items():
        if not hasattr(import_module(module), name):
            setattr(import_module(module), name, value)
            added.append(f'{module}.{name}')
    return added


restore_names()
