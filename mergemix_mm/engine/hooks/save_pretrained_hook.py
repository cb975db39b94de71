"""A hook that saves a tuned vision-language model in the format of its library."""

from contextlib import ExitStack
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, TRANSFORMS

from ...models.vision_encoders import sharded_units
from ...models.vlms.hf.loading import parse_dtype
from ...models.vlms.hf.saving import check_replaceable, replaced_folder, save_processor
from ...utils.distributed import together
from ...utils.files import clear_leftovers
from ...utils.numbers import check_number
from ...utils.wrappers import unwrapped


@HOOKS.register_module()
class SavePretrainedHook(Hook):
    """Save ``model.vlm`` so that ``from_pretrained`` of transformers (of peft, after LoRA) reads it anywhere.

    The folder appears whole or not at all, and replaces the one saved before. Sharded weights (`FSDP2Strategy`) are put
    together one after the other, so no process holds the whole model. Training cannot resume from the folder: that
    takes a checkpoint of the CheckpointHook, from which ``tools/model_converters/save_pretrained.py`` makes the same
    folder.

    Args:
        out_dir (str, optional): The folder. Defaults to None: ``pretrained`` in the Runner's work directory.
        processor (dict | ProcessorMixin, optional): Saved along: a processor of transformers, or the dict of
            ``EncodeConversation`` that makes one. Defaults to None: the tuner's own, if it has one.
        interval (int, optional): Also save every so many iterations, >= 1. Defaults to None: only after training.
        dtype (str, optional): Of the saved weights. Defaults to None: the ``dtype`` of ``model.vlm``. Weights that
            trained in float32 are rounded to it; ``'float32'`` keeps them.

    Raises:
        ValueError: If `interval` is not positive, or `dtype` is not a floating dtype.
        TypeError: When training starts, if the processor cannot be saved or the model has no ``vlm``.
        FileExistsError: When training starts, if the folder holds other files than a model.

    Examples:
        >>> custom_hooks = [dict(type='SavePretrainedHook', out_dir='llava-1.5-7b-simpo')]
    """

    priority = 'LOW'

    def __init__(
        self, out_dir: str | None = None, processor=None, interval: int | None = None, dtype: str | None = None
    ) -> None:
        if interval is not None:
            allowed = 'at least 1, or None.'
            check_number('SavePretrainedHook: interval', interval, allowed, least=1, integer=True)
        self.out_dir = out_dir
        self.interval = interval
        self.dtype = None if dtype is None else parse_dtype(dtype)
        self.processor = TRANSFORMS.build(processor) if isinstance(processor, dict) else processor

    def before_train(self, runner) -> None:
        """Check now, not after days of training, whether model and processor can be saved."""
        tuner = _find_tuner(runner)
        if self.processor is None:
            self.processor = getattr(tuner, 'processor', None)
        if self.processor is not None and not hasattr(self.processor, 'save_pretrained'):
            raise TypeError(
                f'SavePretrainedHook: the processor {type(self.processor).__name__} has no save_pretrained(): give a '
                'processor of transformers.'
            )
        if is_main_process():
            clear_leftovers(self._folder(runner).parent, self._folder(runner).name)  # Of a run that was killed.
        # On all processes: if only the main one stopped, the others would wait for it.
        check_replaceable(self._folder(runner))

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Save every `interval` iterations."""
        if self.interval is not None and self.every_n_train_iters(runner, self.interval):
            self._save(runner)

    def after_train(self, runner) -> None:
        """Save the trained model."""
        self._save(runner)

    def _save(self, runner) -> None:
        # Each step fails on all processes or on none: one that stopped alone would leave the others waiting for it.
        folder, is_main = self._folder(runner), is_main_process()
        with ExitStack() as stack:
            new = together(lambda: stack.enter_context(replaced_folder(folder)) if is_main else None)[0]
            together(lambda: self._write(runner, new))
            together(stack.close)
        runner.logger.info(f'SavePretrainedHook: wrote the model to {folder}')

    def _write(self, runner, folder: Path) -> None:
        vlm = _find_tuner(runner).vlm
        if not is_main_process() and not sharded_units(vlm):
            return
        vlm.save_pretrained(folder, **({} if self.dtype is None else dict(dtype=self.dtype)))
        if is_main_process() and self.processor is not None:
            save_processor(self.processor, folder)

    def _folder(self, runner) -> Path:
        return Path(runner.work_dir, 'pretrained') if self.out_dir is None else Path(self.out_dir)


def _find_tuner(runner):
    model = unwrapped(runner.model)
    if not hasattr(model, 'vlm'):
        raise TypeError(
            f'SavePretrainedHook: the model {type(model).__name__} has no vlm to save. Use it with '
            "model=dict(type='VLMTuner', vlm=dict(type='HFVisionLanguageModel', ...)), or remove the hook."
        )
    return model
