"""Vision-language models whose parts a `Family` names: freezing, LoRA, forward and generation."""

from collections.abc import Collection
from contextlib import AbstractContextManager

import torch
from mmengine.model import initialize
from torch import Tensor, nn

from ...families import Family
from ...utils.wrappers import unwrapped
from ..attention.interaction_attention import NAME, switch_attention
from ..attention.packing import Packing
from ..precision import WANTED, autocast_to, cast_at_norms, low_beside_float32
from ..vision_encoders import join_units, sharded_units
from .adapting import add_lora, check_trainable, checkpoint_layers, freeze, part_modules, train_parts
from .base import Generation, VisionLanguageModel
from .generation import AnswerLogps, pad_left
from .quantization import is_quantized, keep_own_weights
from .weight_names import adopt_names


class FamilyModel(VisionLanguageModel):
    """The interface of the tuners over the parts of a `Family`; a subclass makes the model and saves it.

    Args:
        family (Family): Names the parts of its model.
        trainable (Collection[str]): Parts that train. The others take no gradient and stay in eval mode.
        lora (dict, optional): Options of ``peft.LoraConfig``: the language model trains low-rank adapters. Defaults to
            None.
        gradient_checkpointing (bool): Whether to compute the layers' activations again in the backward (non-reentrant)
            instead of storing them. Defaults to False.
        init_cfg (dict, optional): MMEngine's initialisation. Defaults to None.
        packed (bool): Whether the language model computes a batch as one row without padding, in which every
            conversation attends to its own tokens only (see :class:`Packing`). What comes out is the same. Defaults to
            False.

    Raises:
        ValueError: if the family has no such parts, LoRA cannot be added, or the model cannot compute packed rows.
    """

    def __init__(
        self,
        family: Family,
        trainable: Collection[str],
        lora: dict | None = None,
        gradient_checkpointing: bool = False,
        init_cfg: dict | None = None,
        packed: bool = False,
    ) -> None:
        super().__init__(init_cfg)
        self.family, self.model = family, family.model
        # The dtype of a saved model. It is kept here because a tuner widens weights that train to float32.
        found = (getattr(module, WANTED, None) for module in family.model.modules())
        files = family.base.get_input_embeddings().weight.dtype
        self.loaded_dtype = next((dtype for dtype in found if dtype is not None), files)
        self.trainable = check_trainable(family, trainable)
        if lora is None and 'language_model' in self.trainable and is_quantized(family.language_model):
            raise ValueError(
                f'quantization_config and trainable={list(self.trainable)} need lora=dict(r=...): quantized weights do '
                "not train (or leave 'language_model' out of trainable)"
            )
        if 'projector' in family.parts:  # A frozen projector of low precision may read a tower that trains in float32.
            for path in part_modules(family, 'projector'):
                cast_at_norms(family.model.get_submodule(path))
        self.gradient_checkpointing = gradient_checkpointing
        self.packed = packed
        if packed:
            _let_pack(family)
        if lora is None:
            freeze(family, self.trainable)
        else:
            self.model = add_lora(family, self.trainable, lora)
        if gradient_checkpointing:
            checkpoint_layers(family.model)
        self.train()

    def init_weights(self) -> None:
        """Apply `init_cfg` only: MMEngine would call transformers' own method, which could draw new weights."""
        if self.init_cfg:
            initialize(self, self.init_cfg)
        self._is_init = True

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        # MMEngine would only warn that no name fits, and continue without the checkpoint.
        names = [name for name in state_dict if name.startswith(f'{prefix}model.')]
        adapted = any(name.startswith(f'{prefix}model.base_model.') for name in names)
        if names and adapted != (unwrapped(self.model) is not self.family.model):
            has, lacks = ('checkpoint', 'model') if adapted else ('model', 'checkpoint')
            raise ValueError(
                f'{type(self).__name__}: the {has} has adapters of LoRA, the {lacks} has none. Set vlm.lora as in the '
                'training of the checkpoint, or make a folder of the checkpoint and set vlm.pretrained to it: '
                'python tools/model_converters/save_pretrained.py CONFIG CHECKPOINT OUT (with --merge-lora after LoRA)'
            )
        adopt_names(self, state_dict, prefix)
        keep_own_weights(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def train(self, mode: bool = True) -> 'FamilyModel':
        """As in the base class, but frozen parts stay in eval mode."""
        super().train(mode)
        if mode:
            train_parts(self.family, self.trainable, self.gradient_checkpointing)
        return self

    def canvases(self, batch: dict) -> tuple[list[Tensor], Tensor]:
        return self.family.canvases(batch), self.family.owners(batch)

    def with_canvases(self, batch: dict, canvases: list[Tensor]) -> dict:
        return self.family.with_canvases(batch, canvases)

    def hidden(self, batch: dict, **attention_kwargs) -> Tensor:
        self._join_encoders(batch)
        with self.autocast(batch):
            inputs = self._decoder_inputs(self.family.forward_kwargs(batch))
            return self._decode(self.family.base, inputs, **attention_kwargs)

    def _decode(self, decoder: nn.Module, inputs: dict, **attention_kwargs) -> Tensor:
        """Last hidden states [B, L, C] of inputs [B, L, ...]. Packed rows exist only in here."""
        packing = Packing.of(inputs.get('attention_mask')) if self.packed else None
        if packing is None:
            return decoder(**inputs, use_cache=False, **attention_kwargs).last_hidden_state
        inputs = packing.inputs(inputs, self.family.positions(inputs))
        hidden = decoder(**inputs, use_cache=False, packing=packing, **attention_kwargs).last_hidden_state
        packing.check(self.family.language_model.config.num_hidden_layers)
        return packing.unpack(hidden)

    def _join_encoders(self, batch: dict) -> None:
        """Take part in gathering encoders that FSDP shards, if only other ranks have images."""
        # Layers run on all ranks. The other units are encoders, in the order in which they run.
        layers = set(self.family.language_model.modules())
        encoders = [unit for unit in sharded_units(self.family.model) if unit not in layers]
        join_units(encoders, batch.get('pixel_values') is not None)

    def autocast(self, batch: dict) -> AbstractContextManager:
        """Autocast to the low precision of a model that has float32 weights as well, as after training."""
        return autocast_to(low_beside_float32(self.parameters()), batch['input_ids'].device.type)

    def _decoder_inputs(self, inputs: dict) -> dict:
        """What `family.base` takes. A subclass that embeds images replaces ids and pixels by ``inputs_embeds``."""
        return inputs

    @property
    def head(self) -> nn.Module:
        return self.family.head

    def modality(self, batch: dict) -> Tensor:
        return self.family.modality(batch)

    @property
    def vision_encoder(self) -> nn.Module | None:
        return self.family.vision_encoder

    @torch.no_grad()
    def generate(self, batch: dict, max_new_tokens: int = 128, **kwargs) -> Generation:
        """Answer a batch of prompts, padded on either side. The default is greedy decoding.

        Args:
            batch (dict): A prepared batch of prompts.
            max_new_tokens (int): Longest answer. Defaults to 128.
            **kwargs: Options of transformers' ``generate``. Log-probabilities are those before temperature, top-k and
                top-p, and after penalties that the options (or the model's generation config) ask for.

        Raises:
            ValueError: if several answers per sample are asked for.
        """
        if max(kwargs.get('num_beams') or 1, kwargs.get('num_return_sequences') or 1) > 1:
            raise ValueError(f'{type(self).__name__}.generate: num_beams and num_return_sequences must be 1')
        ends = _as_list(kwargs.get('eos_token_id', self.family.model.generation_config.eos_token_id))
        if ends and self.family.model.generation_config.pad_token_id is None:
            # The library would choose the same token, with a warning at every call.
            kwargs.setdefault('pad_token_id', ends[0])
        kwargs.setdefault('do_sample', False)
        logps = AnswerLogps(ends)
        processors = [*kwargs.pop('logits_processor', ()), logps]
        self._join_encoders(batch)
        with self.autocast(batch):
            inputs = self._decoder_inputs(self.family.generate_kwargs(pad_left(batch)))
            kwargs |= dict(max_new_tokens=max_new_tokens, logits_processor=processors)
            found = self.family.generate(**inputs, **kwargs)
        # Given embeddings instead of ids, the library returns the new tokens only.
        sequences = found if 'inputs_embeds' in inputs else found[:, inputs['input_ids'].size(1) :]
        return Generation(sequences, logps.sums(sequences[:, -1]))


def _let_pack(family: Family) -> None:
    """Switch the attention of a language model to the function that can split packed rows.

    Raises:
        ValueError: if conversations cannot share a row of this model.
    """
    config = family.language_model.config
    kinds = sorted({*(getattr(config, 'layer_types', None) or ())} - {'full_attention', 'sliding_attention'})
    reason = family.no_packing
    if reason is None and kinds:
        reason = f'the language model has layers of {", ".join(kinds)}'
    if reason is None and config._attn_implementation not in ('sdpa', NAME):
        reason = f"attn_implementation={config._attn_implementation!r} must be 'sdpa'"
    if reason is not None:
        raise ValueError(
            f'packed=True does not serve {type(family.model).__name__}: {reason}. Leave packed out; '
            'group_by_length=True of the sampler avoids most of the padding as well'
        )
    switch_attention(family.language_model)


def _as_list(ids: int | list[int] | None) -> list[int]:
    if ids is None:
        return []
    return [ids] if isinstance(ids, int) else list(ids)
