"""What moved: old names of modules, exported names and configs resolve to the new ones, with a warning."""

import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_PACKAGE = __name__.rpartition('.')[0]
# Modules of this package, old name -> new name. A module below a package of the table moved with it.
MODULES = {
    'datasets.boxes': 'datasets.io.boxes',
    'datasets.coco_file': 'datasets.io.coco_file',
    'datasets.coco_task_dataset': 'datasets.coco_tasks',
    'datasets.conversation_dataset': 'datasets.conversation',
    'datasets.conversation_formats': 'datasets.conversations.formats',
    'datasets.digits': 'toy.digits',
    'datasets.drawn_dataset': 'toy.conversations',
    'datasets.image_sources': 'datasets.io.fields',
    'datasets.json_records': 'datasets.io.json_records',
    'datasets.llava_padding': 'datasets.processors.llava_padding',
    'datasets.plain_pickle': 'datasets.io.plain_pickle',
    'datasets.pope_dataset': 'datasets.pope',
    'datasets.prompts': 'datasets.conversations.prompts',
    'datasets.record_dataset': 'datasets.base',
    'datasets.record_error': 'utils.text',
    'datasets.record_files': 'datasets.io.records',
    'datasets.refcoco_dataset': 'datasets.refcoco',
    'datasets.samplers': 'datasets.mixtures',
    'datasets.samplers.modality_sampler': 'datasets.mixtures.samplers',
    'datasets.samplers.task_mix_sampler': 'datasets.mixtures.samplers',
    'datasets.scienceqa_dataset': 'datasets.scienceqa',
    'datasets.shapes': 'toy.conversations',
    'datasets.shapes_coco': 'toy.coco',
    'datasets.shapes_coco_dataset': 'toy.coco',
    'datasets.shapes_drawing': 'toy.drawing',
    'datasets.shapes_facts': 'toy.scenes',
    'datasets.shapes_generation': 'toy.generation',
    'datasets.shapes_janus_processor': 'toy.processors',
    'datasets.shapes_processor': 'toy.processors',
    'datasets.shapes_scene': 'toy.scenes',
    'datasets.shapes_task_fields': 'toy.tasks',
    'datasets.shapes_task_tokenizer': 'toy.processors',
    'datasets.shapes_tasks': 'toy.tasks',
    'datasets.sphinx_processor': 'datasets.processors.sphinx',
    'datasets.table_records': 'datasets.io.parquet',
    'datasets.task_mix_dataset': 'datasets.mixtures.task_mix',
    'datasets.task_record_dataset': 'datasets.task_record',
    'datasets.text_to_image_dataset': 'datasets.text_to_image',
    'datasets.transforms.bounded_rendering': 'datasets.conversations.bounded_rendering',
    'datasets.transforms.chat_template': 'datasets.conversations.chat_template',
    'datasets.transforms.jinja_worker': 'datasets.conversations.jinja_worker',
    'datasets.transforms.tasks.caption': 'datasets.transforms.tasks.answers',
    'datasets.transforms.tasks.chart_to_table': 'datasets.transforms.tasks.answers',
    'datasets.transforms.tasks.classification': 'datasets.transforms.tasks.answers',
    'datasets.transforms.tasks.detection': 'datasets.transforms.tasks.coordinates',
    'datasets.transforms.tasks.grounded_caption': 'datasets.transforms.tasks.coordinates',
    'datasets.transforms.tasks.grounding': 'datasets.transforms.tasks.coordinates',
    'datasets.transforms.tasks.language_modelling': 'datasets.transforms.tasks.answers',
    'datasets.transforms.tasks.layout': 'datasets.transforms.tasks.coordinates',
    'datasets.transforms.tasks.multiple_choice': 'datasets.transforms.tasks.answers',
    'datasets.transforms.tasks.pose': 'datasets.transforms.tasks.coordinates',
    'datasets.transforms.tasks.region_caption': 'datasets.transforms.tasks.coordinates',
    'datasets.transforms.tasks.short_answer': 'datasets.transforms.tasks.answers',
    'datasets.transforms.tasks.text_only': 'datasets.transforms.tasks.answers',
    'datasets.transforms.tasks.text_spotting': 'datasets.transforms.tasks.coordinates',
    'datasets.transforms.tasks.vqa': 'datasets.transforms.tasks.answers',
    'datasets.transforms.sample': 'datasets.transforms.record_tokenizer',
    'datasets.unified_collate': 'datasets.collate',
    'datasets.unified_dataset': 'datasets.mixtures.unified',
    'datasets.vqav2_dataset': 'datasets.vqav2',
    'engine.backbone_layer_decay_constructor': 'engine.optim_wrappers',
    'engine.fsdp_optim_wrapper': 'engine.optim_wrappers',
    'engine.planning.parts': 'engine.planning.weightless',
    'engine.resuming': 'engine.launch.resuming',
    'engine.weights.safetensors_file': 'engine.weights.files',
    'engine.weights.state_dict': 'engine.weights.stored_weights',
    'engine.weights.stored_tensor': 'engine.weights.files',
    'engine.weights.torch_file': 'engine.weights.files',
    'evaluation.metrics.answer_accuracy': 'evaluation.metrics.text_match',
    'evaluation.metrics.answer_calibration_error': 'evaluation.metrics.calibration_error',
    'evaluation.metrics.shapes_generation': 'toy.generation',
    'models.attention.recording': 'models.attention.interaction_attention',
    'models.attention.spans': 'models.attention.alignment',
    'models.batch_augments.mix_result': 'models.batch_augments.base',
    'models.batch_augments.salient_blur': 'models.batch_augments.losers',
    'models.batch_augments.swap_images': 'models.batch_augments.losers',
    'models.heads.answer_scores': 'models.heads.base',
    'models.losses.interaction_targets': 'models.losses.aia_loss',
    'models.vision_encoders.sharding': 'models.vision_encoders.forward',
    'models.vision_encoders.base': 'families.vision_encoder',
    'models.vision_encoders.transformers': 'families.towers',
    'models.vlms.data_preprocessor': 'models.vlms.base',
    'models.vlms.emu3_model': 'models.vlms.unified.emu3',
    'models.vlms.families': 'families',
    'models.vlms.freezing': 'models.vlms.adapting',
    'models.vlms.hf_vision_language_model': 'models.vlms.hf.hf_vision_language_model',
    'models.vlms.janus_model': 'models.vlms.unified.janus',
    'models.vlms.loading': 'models.vlms.hf.loading',
    'models.vlms.lora': 'models.vlms.adapting',
    'models.vlms.mosaic_codes': 'toy.mosaic_codes',
    'models.vlms.nearest_code': 'families.nearest_code',
    'models.vlms.saving': 'models.vlms.hf.saving',
    'models.vlms.sphinx.view_encoder': 'models.vlms.sphinx.network',
    'models.vlms.sphinx_model': 'models.vlms.sphinx.model',
    'models.vlms.vision_merge': 'models.vlms.hf.vision_merge',
    'models.weight_names': 'models.vlms.weight_names',
    'utils.errors': 'utils.text',
    'visualization.beta_sweep': 'visualization.curves',
    'visualization.interaction_curves': 'visualization.curves',
    'visualization.labels': 'visualization.mixed_samples',
    'visualization.pixel_scale': 'visualization.mixed_samples',
    'visualization.reward_curves': 'visualization.curves',
}
# Files below configs/, old path -> new path, for `config_path`.
CONFIGS = {
    '_base_/default_runtime.py': '_base_/runtimes/default_runtime.py',
    '_base_/deit-small_mergemix_finetune.py': '_base_/common/deit-small_mergemix_finetune.py',
    '_base_/deit-small_mergemix_transfer.py': '_base_/plugins/deit-small_mergemix_transfer.py',
    '_base_/fsdp.py': '_base_/strategies/fsdp.py',
    '_base_/mergemix.py': '_base_/plugins/mergemix.py',
    '_base_/tiny_detection.py': '_base_/common/tiny_detection.py',
    '_base_/vit-base_finetune.py': '_base_/plugins/vit-base_finetune.py',
    '_base_/runtimes/vlm_sharded_runtime.py': '_base_/runtimes/vlm_runtime.py',
    '_base_/vlm_runtime.py': '_base_/runtimes/vlm_runtime.py',
    '_base_/zero3.py': '_base_/strategies/fsdp.py',
    '_base_/strategies/zero2.py': '_base_/strategies/fsdp.py',
    '_base_/strategies/zero3.py': '_base_/strategies/fsdp.py',
    # FSDP2 trains the same models.
    **{
        f'{recipe}-{stage}_{data}.py': f'{recipe}-fsdp_{data}.py'
        for recipe, stage, data in (
            ('aia/emu3-8b_32xb4-aia-coslr-1e', 'zero3', 'llava-mix665k-t2i'),
            ('aia/emu3-8b_32xb4-ntp-coslr-1e', 'zero3', 'llava-mix665k-t2i'),
            ('aia/janus-pro-7b_8xb16-aia-coslr-1e', 'zero3', 'llava-mix665k-t2i'),
            ('aia/janus-pro-7b_8xb16-ntp-coslr-1e', 'zero3', 'llava-mix665k-t2i'),
            ('mergemix/deit-small_4xb256-mergemix-coslr-300e', 'zero2', 'in1k'),
            ('simpo/llava-v1.5-7b_8xb16-simpo-mergemix-coslr-1e', 'zero2', 'llava-mix665k'),
        )
    },
}


def moved_names(package: str, names: Sequence[str], new: str) -> Callable[[str], Any]:
    """A package's ``__getattr__`` for names that it exported once.

    Args:
        package (str): The package, its ``__name__``.
        names (Sequence[str]): What moved.
        new (str): Where it is today, below ``mergemix_mm``.

    Returns:
        Callable: ``__getattr__`` of the module; it warns with a ``FutureWarning``.
    """

    def __getattr__(name: str) -> Any:
        if name not in names:
            raise AttributeError(f'module {package!r} has no attribute {name!r}')
        _warn(f'{package}.{name}', f'{_PACKAGE}.{new}.{name}')
        return getattr(import_module(f'{_PACKAGE}.{new}'), name)

    return __getattr__


def new_config(relative: str) -> str:
    """Today's path of a config, and a warning if it moved.

    Args:
        relative (str): Path below ``configs/``.

    Returns:
        str: The path below ``configs/`` today: `relative` itself if the config did not move.
    """
    new = CONFIGS.get(relative)
    if new is None:
        return relative
    # The warning belongs to `config_path`: MMEngine runs a config file several times, each time as a module of its own.
    _warn(f'configs/{relative}', f'configs/{new}')
    return new


class _MovedModules(MetaPathFinder, Loader):
    """Imports a module of the table under its old name: the same module object, so its classes are the same."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return None if _new_name(fullname) is None else ModuleSpec(fullname, self)

    def exec_module(self, module: ModuleType) -> None:
        new = _new_name(module.__name__)
        assert new is not None
        _warn(module.__name__, new)
        # After the loader is done, the import system returns this entry.
        sys.modules[module.__name__] = import_module(new)


def _new_name(name: str) -> str | None:
    """Today's name of a module, None for one that did not move."""
    package, _, inner = name.partition('.')
    if package != _PACKAGE:
        return None
    parts = inner.split('.')
    for end in range(len(parts), 0, -1):
        new = MODULES.get('.'.join(parts[:end]))
        if new is not None:
            return '.'.join([_PACKAGE, new, *parts[end:]])
    return None


def _warn(old: str, new: str) -> None:
    warnings.warn(f'{old} moved to {new}; the old name will go in a later release', FutureWarning, stacklevel=3)


# At the end: what exists is found before the table is asked.
sys.meta_path.append(_MovedModules())
