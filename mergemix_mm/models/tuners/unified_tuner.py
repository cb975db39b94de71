"""UnifiedTuner: understanding and generation together, with or without AIA (https://arxiv.org/abs/2511.22663)."""

import torch
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ...utils.numbers import check_number
from ..vlms.unified.base import UnifiedModel
from .base_tuner import BaseTuner


@MODELS.register_module()
class UnifiedTuner(BaseTuner):
    """Trains a unified model on next tokens: of answers, or of the codes of images.

    A batch belongs to one task, named by its ``task``, which has to be the same on all ranks of a step
    (`UnifiedDataset` with `ModalitySampler`). The tasks use different parameters: set ``find_unused_parameters=True``
    in a config. `AIAHook` adds the alignment's loss. Precision is that of :class:`BaseTuner`.

    Args:
        vlm (nn.Module | dict): A unified model, or its config, e.g. ``dict(type='JanusModel', ...)``.
        head (nn.Module | dict, optional): ``dict(type='SFTHead')``, the default, or one that extends it.
        drop_prompt (float): Probability that a generation sample loses its prompt, which classifier-free guidance needs
            to be trained; drawn from torch's global generator on the CPU. Such a sample takes no part in AIA. Defaults
            to 0.1.
        chunk_size, processor, generation: As for :class:`BaseTuner`.
        image_generation (dict, optional): Arguments of ``vlm.generate_image`` when predicting, e.g.
            ``dict(guidance_scale=5.0, temperature=1.0)``. Defaults to None: its own defaults.
        data_preprocessor, init_cfg: As for :class:`BaseTuner`.

    Raises:
        ValueError: If `drop_prompt` is not in [0, 1); in ``loss()``, if a batch names an unknown task.
        TypeError: If the model cannot generate images.
    """

    tasks = ('gen', 'und')

    def __init__(
        self,
        vlm: nn.Module | dict,
        head: nn.Module | dict | None = None,
        drop_prompt: float = 0.1,
        chunk_size: int = 1024,
        processor: object | dict | None = None,
        generation: dict | None = None,
        image_generation: dict | None = None,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(vlm, head, chunk_size, processor, generation, data_preprocessor, init_cfg)
        if not isinstance(self.vlm, UnifiedModel):
            raise TypeError(
                f'UnifiedTuner: vlm={type(self.vlm).__name__} generates no images; use JanusModel or Emu3Model, or '
                "train it on understanding alone with type='VLMTuner'"
            )
        check_number('UnifiedTuner: drop_prompt', drop_prompt, 'in [0, 1)', least=0, below=1)
        self.drop_prompt = drop_prompt
        self.image_generation = image_generation or {}

    def loss(self, inputs: dict) -> dict[str, Tensor]:
        """Calculate the next-token loss of the batch's task, and that of its alignment.

        Args:
            inputs (dict): A batch of `UnifiedCollate`.

        Returns:
            dict[str, Tensor]: ``loss_ntp_gen`` or ``loss_ntp_und``; with an alignment also ``loss_aia_<task>`` and, for
            the log, ``interaction_<task>``; for the log always ``padding_share``.
        """
        task, dropped = self._task(inputs), None
        if task == 'gen':
            # Drawn on the CPU, so that a seed gives the same draws on every device.
            dropped = torch.rand(len(inputs['input_ids'])).to(inputs['input_ids'].device) < self.drop_prompt
            inputs = self.vlm.drop_prompts(inputs, dropped)
        run = self._run_vlm(self.vlm.prepare(inputs), task, dropped)
        ntp_loss = self.head.loss(*self._score(run, head=self.vlm.head_of(inputs)))['loss_sft']
        losses = {f'loss_ntp_{task}': ntp_loss} | self._alignment_losses(task, ntp_loss)
        return losses | self._padding(run)

    @torch.no_grad()
    def predict(self, inputs: dict, data_samples: list[BaseDataElement]) -> list[BaseDataElement]:
        """Generate or score answers, as :meth:`BaseTuner.predict`, or make images: ``pred_image`` [3, H, W] in [0, 1].

        Args:
            inputs (dict): A batch of prompts; for understanding also of whole conversations with ``labels``.
            data_samples (list[BaseDataElement]): One per row; written to.
        """
        if self._task(inputs) == 'und':
            return super().predict(inputs, data_samples)
        images = self.vlm.generate_image(inputs, **self.image_generation)
        for sample, image in zip(data_samples, images, strict=True):
            sample.pred_image = image
        return data_samples

    def _task(self, inputs: dict) -> str:
        task = inputs.get('task', 'gen' if self.vlm.is_generation(inputs) else 'und')
        if task not in self.tasks:
            raise ValueError(f'UnifiedTuner: task={task!r} of a batch must be one of {self.tasks}')
        return task
