"""The names of transformers that MMPretrain imports, put back where they are gone."""

import sys
from types import ModuleType

import torch
import transformers

from mergemix_mm import upstream


def test_mmpretrains_models_import_and_know_the_names():
    from mmpretrain.models.multimodal.blip import language_model
    from mmpretrain.models.multimodal.ofa import ofa_modules
    from mmpretrain.models.multimodal.ram import bert

    assert language_model.find_pruneable_heads_and_indices is bert.find_pruneable_heads_and_indices is not None
    assert ofa_modules.PretrainedConfig is transformers.PretrainedConfig


def test_names_that_are_gone_are_added_and_names_that_exist_are_left_alone(monkeypatch):
    gone, there = ModuleType('transformers.pytorch_utils'), ModuleType('transformers.modeling_utils')
    there.PretrainedConfig = 'as it was'
    monkeypatch.setitem(sys.modules, gone.__name__, gone)
    monkeypatch.setitem(sys.modules, there.__name__, there)
    assert upstream.restore_names() == ['transformers.pytorch_utils.find_pruneable_heads_and_indices']
    assert gone.find_pruneable_heads_and_indices is upstream.find_pruneable_heads_and_indices
    assert there.PretrainedConfig == 'as it was'
    assert upstream.restore_names() == []


def test_transformers_is_not_imported_where_mmpretrain_does_not_import_it(monkeypatch):
    monkeypatch.setattr(upstream, 'find_spec', lambda name: None if name == 'pycocotools' else sys)
    monkeypatch.setattr(upstream, 'import_module', None)
    assert upstream.restore_names() == []


def test_transformers_4_has_them_and_keeps_its_own():
    from transformers import pytorch_utils

    own = pytorch_utils.find_pruneable_heads_and_indices.__module__
    assert own == ('mergemix_mm.upstream' if transformers.__version__.startswith('5') else 'transformers.pytorch_utils')


def test_heads_to_prune_are_counted_without_those_that_are_gone():
    heads, rows = upstream.find_pruneable_heads_and_indices([1, 3], 4, 2, set())
    assert heads == {1, 3} and rows.tolist() == [0, 1, 4, 5] and rows.dtype == torch.int64
    # Head 1 of five went before: what was head 3 is now the third of four.
    heads, rows = upstream.find_pruneable_heads_and_indices({1, 3}, 4, 2, {1})
    assert heads == {3} and rows.tolist() == [0, 1, 2, 3, 6, 7]
