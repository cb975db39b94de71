"""Vision-language models of Hugging Face transformers with the interface that tuners use."""

from collections.abc import Collection
from pathlib import Path

import torch
from mmengine.registry import MODELS

from ....families import build_family
from ....utils.wrappers import unwrapped
from ..family_model import FamilyModel
from .loading import load_vlm, parse_dtype
from .saving import replaced_folder, save_adapters, save_model, whole_weights
from .vision_merge import VisionMerge


@MODELS.register_module()
class HFVisionLanguageModel(FamilyModel):
    """A vision-language model of transformers, of any family in `mergemix_mm.families`.

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
        quantization_config (dict, optional): Loads the linear layers of the language model in 4 bits, as transformers
            and bitsandbytes take it, e.g. ``dict(load_in_4bit=True, bnb_4bit_quant_type='nf4',
            bnb_4bit_use_double_quant=True)``; computation is in ``dtype`` unless ``bnb_4bit_compute_dtype`` says
            another. It needs ``pretrained``, and ``lora`` if the language model trains. Head, projector and vision
            tower keep ``dtype``. Defaults to None.
        lora (dict, optional): Options of ``peft.LoraConfig``, e.g. ``dict(r=128, lora_alpha=256)``: the language model
            trains low-rank adapters of its linear layers (all except the head, or those of ``target_modules``). Other
            trainable parts train as a whole and are saved with the adapters. Single parameters outside of modules
            (LLaVA-NeXT's new line) freeze. Defaults to None.
        gradient_checkpointing (bool): Whether to compute the layers' activations again in the backward (non-reentrant)
            instead of storing them. Defaults to False.
        vision_merge (dict, optional): ``dict(num_merge=..., prop_attn=True, inflection=-0.5)`` merges tokens inside
            the vision tower, so that the language model reads fewer, see :class:`VisionMerge`. LLaVA only. Defaults to
            None.
        init_cfg (dict, optional): MMEngine's initialisation, e.g. ``dict(type='Pretrained', checkpoint=...)`` with a
            checkpoint of this module. Defaults to None.
        packed (bool): Whether the language model computes a batch as one row without padding, in which every
            conversation attends to its own tokens only; the losses are the same. It needs ``'sdpa'`` attention, and
            does not serve PaliGemma, Gemma 3 and Qwen3.5. Defaults to False.

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
        quantization_config: dict | None = None,
        packed: bool = False,
    ) -> None:
        options = dict(revision=revision, attn_implementation=attn_implementation, trust_remote_code=trust_remote_code)
        options['quantization_config'] = quantization_config
        model = load_vlm(pretrained, config, self.model_type, dtype=dtype, **options)
        family = build_family(model)
        super().__init__(family, trainable, lora, gradient_checkpointing, init_cfg, packed)
        self.vision_merge = None if vision_merge is None else VisionMerge(self.family, **vision_merge)

    def prepare(self, batch: dict) -> dict:
        """A shallow copy; with `vision_merge`, with fewer image tokens."""
        return dict(batch) if self.vision_merge is None else self.vision_merge.prepare(batch)

    def _decoder_inputs(self, inputs: dict) -> dict:
        return inputs if self.vision_merge is None else self.vision_merge.embed(inputs)

    def save_pretrained(self, folder: str | Path, dtype: str | torch.dtype | None = None) -> None:
        """Write the model in transformers' format, or its adapters (with other parts that trained) in peft's.

        A folder of that name is replaced in one step, once everything is written. Sharded weights are put together one
        after the other: all processes call this method, and the main one writes.

        Args:
            folder (str | Path): The folder.
            dtype (str | torch.dtype, optional): Of all weights, and of the config; adapters stay as they trained.
                Defaults to None: that of this model, to which weights that trained in float32 are rounded.
                ``'float32'`` keeps them.

        Raises:
            ValueError: if `dtype` is not a floating dtype.
        """
        dtype = self.loaded_dtype if dtype is None else parse_dtype(dtype)
        adapted = unwrapped(self.model) is not self.family.model
        with whole_weights(
            self.model,
            folder,
            dtype=lambda name: None if adapted else dtype,
            needed=lambda name, weight: weight.requires_grad or not adapted,
        ) as weights:
            if weights is None:
                return
            with replaced_folder(folder) as temporary:
                if adapted:
                    save_adapters(self.model, temporary, weights)
                else:
                    save_model(self.model, temporary, dtype, weights)
