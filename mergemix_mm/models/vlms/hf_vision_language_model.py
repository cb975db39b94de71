"""Vision-language models of Hugging Face transformers behind the interface of the tuners."""

from collections.abc import Collection
from pathlib import Path

import torch
from mmengine.model import initialize
from mmengine.registry import MODELS
from torch import Tensor, nn

from .base import Generation, VisionLanguageModel
from .families import find_family
from .freezing import check_trainable, freeze, train_parts
from .generation import AnswerLogps, pad_left
from .loading import load_model
from .lora import add_lora
from .saving import check_whole, replaced_folder
from .vision_merge import VisionMerge


@MODELS.register_module()
class HFVisionLanguageModel(VisionLanguageModel):
    """A vision-language model of transformers: LLaVA, LLaVA-NeXT, PaliGemma, InternVL, SmolVLM, Qwen2.5-VL, Janus or
    Emu3.

    Args:
        pretrained (str, optional): Name on the hub, or folder, of trained weights.
        config (dict | str, optional): The model's config (as ``config.to_dict()`` of transformers gives it, with
            ``model_type``), or a folder that has it: random weights. Exactly one of `pretrained` and `config` is given.
        revision (str, optional): Branch, tag or commit on the hub. Defaults to None: the newest.
        dtype (str | torch.dtype, optional): Of the weights, e.g. ``'bfloat16'``. Defaults to None: float32.
        attn_implementation (str | dict, optional): As transformers takes it: ``'sdpa'``, ``'flash_attention_2'``,
            ``'eager'``, a registered name, or one per part of the config. Defaults to None: transformers' choice.
        trust_remote_code (bool): Whether code that comes with the weights may run. Defaults to False.
        trainable (Collection[str]): Parts that train: ``'vision_tower'``, ``'projector'``, ``'language_model'`` (with
            its head). The others take no gradient and stay in eval mode. Defaults to
            ``('language_model', 'projector')``.
        lora (dict, optional): Options of ``peft.LoraConfig``, e.g. ``dict(r=128, lora_alpha=256)``: the language model
            trains low-rank adapters of its linear layers (all but the head, or those of ``target_modules``); other
            trainable parts train as a whole and are saved along, but for single parameters outside of modules
            (LLaVA-NeXT's new line), which freeze. Defaults to None.
        gradient_checkpointing (bool): Whether to compute the layers' activations again in the backward (non-reentrant)
            instead of storing them. Defaults to False.
        vision_merge (dict, optional): ``dict(num_merge=..., prop_attn=True, inflection=-0.5)`` merges tokens inside
            the vision tower, so that the language model reads fewer, see :class:`VisionMerge`. LLaVA only. Defaults to
            None.
        init_cfg (dict, optional): MMEngine's initialisation, e.g. ``dict(type='Pretrained', checkpoint=...)`` with a
            checkpoint of this module. Defaults to None.

    Raises:
        ValueError: if an argument cannot be used, or the model is of an unknown family.
        OSError: if `pretrained` or `config` cannot be found.

    Examples:
        >>> vlm = dict(type='HFVisionLanguageModel', pretrained='llava-hf/llava-1.5-7b-hf', dtype='bfloat16',
        ...            trainable=['projector', 'language_model'], lora=dict(r=128, lora_alpha=256))
    """

    # The only `config.model_type` that a subclass serves; None: that of any family.
    model_type: str | None = None

    def __init__(
        self,
        pretrained: str | None = None,
        config: dict | str | None = None,
        revision: str | None = None,
        dtype: str | torch.dtype | None = None,
        attn_implementation: str | dict | None = None,
        trust_remote_code: bool = False,
        trainable: Collection[str] = ('language_model', 'projector'),
        lora: dict | None = None,
        gradient_checkpointing: bool = False,
        vision_merge: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.model = load_model(
            pretrained, config, revision, dtype, attn_implementation, trust_remote_code, self.model_type
        )
        self.family = find_family(self.model.config.model_type)(self.model)
        self.trainable = check_trainable(self.family, trainable)
        self.vision_merge = None if vision_merge is None else VisionMerge(self.family, **vision_merge)
        self.gradient_checkpointing = gradient_checkpointing
        if lora is None:
            freeze(self.family, self.trainable)
        else:
            self.model = add_lora(self.family, self.trainable, lora)
        if gradient_checkpointing:
            self.family.model.gradient_checkpointing_enable({'use_reentrant': False})
        self.train()

    def init_weights(self) -> None:
        """Nothing but `init_cfg`: MMEngine would call transformers' own method, which could draw new weights."""
        if self.init_cfg:
            initialize(self, self.init_cfg)
        self._is_init = True

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        # MMEngine would only warn that no name fits, and go on without the checkpoint.
        names = [name for name in state_dict if name.startswith(f'{prefix}model.')]
        adapted = any(name.startswith(f'{prefix}model.base_model.') for name in names)
        if names and adapted != (self.model is not self.family.model):
            has, lacks = ('checkpoint', 'model') if adapted else ('model', 'checkpoint')
            raise ValueError(
                f'HFVisionLanguageModel: the {has} has adapters of LoRA, the {lacks} has none. Set vlm.lora as in the '
                'training of the checkpoint, or make a folder of the checkpoint and set vlm.pretrained to it: '
                'python tools/model_converters/save_pretrained.py CONFIG CHECKPOINT OUT (with --merge-lora after LoRA)'
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def train(self, mode: bool = True) -> 'HFVisionLanguageModel':
        """As always, but frozen parts stay in eval mode."""
        super().train(mode)
        if mode:
            train_parts(self.family, self.trainable, self.gradient_checkpointing)
        return self

    def prepare(self, batch: dict) -> dict:
        """A shallow copy; with `vision_merge`, with fewer image tokens."""
        return dict(batch) if self.vision_merge is None else self.vision_merge.prepare(batch)

    def canvases(self, batch: dict) -> tuple[list[Tensor], Tensor]:
        return self.family.canvases(batch), self.family.owners(batch)

    def with_canvases(self, batch: dict, canvases: list[Tensor]) -> dict:
        return self.family.with_canvases(batch, canvases)

    def hidden(self, batch: dict, **attention_kwargs) -> Tensor:
        inputs = self.family.forward_kwargs(batch)
        if self.vision_merge is not None:
            inputs = self.vision_merge.embed(inputs)
        return self.family.base(**inputs, use_cache=False, **attention_kwargs).last_hidden_state

    @property
    def head(self) -> nn.Module:
        """As the library's own forward has it: none of these models scales or caps its logits."""
        return self.family.head

    def modality(self, batch: dict) -> Tensor:
        return self.family.modality(batch)

    @property
    def vision_encoder(self) -> nn.Module | None:
        return self.family.vision_encoder

    @torch.no_grad()
    def generate(self, batch: dict, max_new_tokens: int = 128, **kwargs) -> Generation:
        """Answer a batch of prompts, padded on either side; greedily unless told otherwise.

        Args:
            batch (dict): A prepared batch of prompts.
            max_new_tokens (int): Longest answer. Defaults to 128.
            **kwargs: Options of transformers' ``generate``. Log-probabilities are those before temperature, top-k and
                top-p, behind penalties that the options (or the model's generation config) ask for.

        Raises:
            ValueError: if several answers per sample are asked for.
        """
        if max(kwargs.get('num_beams') or 1, kwargs.get('num_return_sequences') or 1) > 1:
            raise ValueError('HFVisionLanguageModel.generate: num_beams and num_return_sequences must be 1')
        inputs = self.family.generate_kwargs(pad_left(batch))
        if self.vision_merge is not None:
            inputs = self.vision_merge.embed(inputs)
        ends = _as_list(kwargs.get('eos_token_id', self.family.model.generation_config.eos_token_id))
        if ends and self.family.model.generation_config.pad_token_id is None:
            kwargs.setdefault('pad_token_id', ends[0])
        kwargs.setdefault('do_sample', False)
        logps = AnswerLogps(ends)
        processors = [*kwargs.pop('logits_processor', ()), logps]
        found = self.family.generate(**inputs, max_new_tokens=max_new_tokens, logits_processor=processors, **kwargs)
        sequences = found if 'inputs_embeds' in inputs else found[:, inputs['input_ids'].size(1) :]
        return Generation(sequences, logps.sums(sequences[:, -1]))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model in transformers' format, or its adapters (with what trained beside them) in peft's.

        A folder of that name is replaced in one step, once everything is written.

        Raises:
            RuntimeError: if this process holds a shard of the weights only.
        """
        check_whole(self.model)
        with replaced_folder(folder) as temporary:
            if self.model is self.family.model:
                self.model.save_pretrained(temporary)
            else:
                # Embeddings do not train; peft would ask the hub whether they have grown.
                self.model.save_pretrained(temporary, save_embedding_layers=False)


def _as_list(ids: int | list[int] | None) -> list[int]:
    if ids is None:
        return []
    return [ids] if isinstance(ids, int) else list(ids)
