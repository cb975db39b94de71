"""The attention function and its mask, as transformers' attention interface takes them: SDPA that can be recorded."""

import weakref
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...functional import attention_with_intensity
from ...functional.lse_attention import Places

if TYPE_CHECKING:
    from .interaction_recorder import Recording

# The name in transformers' registries, for `set_attn_implementation`.
NAME = 'mergemix_interaction'
# What layers pass on that torch's attention does not know, by the names that transformers gives them.
UNKNOWN_TO_SDPA = {'softcap': 'soft-capped logits', 's_aux': 'attention sinks'}


class Probe:
    """The part of a recording that travels through the model.

    It refers to the recording weakly: gradient checkpointing keeps a layer's arguments in the graph, and the recorded
    intensities keep the graph, which would be a circle that Python cannot collect. It is no dataclass and no container,
    because wrappers (FSDP) copy those.
    """

    def __init__(self, recording: 'Recording', query_mask: Tensor, key_mask: Tensor, backend: str) -> None:
        self.query_mask = query_mask
        self.key_mask = key_mask
        self.backend = backend
        # Looked up once for all layers: their number depends on the data, so that a GPU is waited for.
        found = backend == 'lse'
        self.places = (Places.of(query_mask), Places.of(key_mask)) if found else None
        self.layers = frozenset(recording.layers)
        self._recording = weakref.ref(recording)
        self._needs_grad = torch.is_grad_enabled()

    def check(self, module: nn.Module, layer: int) -> None:
        """Refuse what would record wrong values without a word, before the layer computes.

        Raises:
            RuntimeError: if gradients were expected and the layer runs without, or if it has recorded already.
        """
        if self._needs_grad and module.training and not torch.is_grad_enabled():
            raise RuntimeError(
                f'layer {layer} runs without gradients, so its interaction intensity would have none: reentrant '
                'gradient checkpointing works like that. Call '
                "model.gradient_checkpointing_enable({'use_reentrant': False}); for a forward under torch.no_grad(), "
                'make the recording under it too'
            )
        recording = self._recording()
        if recording is not None and layer in recording.found and not _in_backward():
            raise RuntimeError(
                f'layer {layer} has recorded already: make a new recording for every forward, and record no model that '
                'runs a layer twice'
            )

    def record(self, layer: int, intensity: Tensor) -> None:
        """Keep a layer's intensity [B]; not when gradient checkpointing computes the layer again."""
        recording = self._recording()
        if recording is not None and not _in_backward():
            recording.found[layer] = intensity


def register() -> None:
    """Enter the function and its mask into transformers' registries; once or often is the same."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, interaction_attention)
    # Without a mask function of its own, a name would get no mask at all: padding would be ignored.
    AttentionMaskInterface.register(NAME, interaction_mask)


def interaction_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    interaction: Probe | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """Transformers' ``sdpa`` attention that also records its interaction intensity, if it is asked to.

    It is asked by the keyword argument ``interaction``, in the layers that this names; modules without ``layer_idx``
    (vision towers) never record.

    Args:
        module (nn.Module): The layer's attention module.
        query (Tensor): [B, H, L, D].
        key (Tensor): [B, Hkv, S, D].
        value (Tensor): [B, Hkv, S, D].
        attention_mask (Tensor, optional): [B, 1, L, >= S] bool or float. None: causal, if the module is.
        scaling (float, optional): of the logits. Defaults to None: D ** -0.5.
        dropout (float): of the attention weights. Defaults to 0.0.
        is_causal (bool, optional): Defaults to None: as the module is, if there is no mask.
        interaction (Probe, optional): of a :class:`Recording`. Defaults to None: records nothing.
        **kwargs: The library's further arguments.

    Returns:
        tuple: output [B, L, H, D] and None.

    Raises:
        ValueError: if the layer has soft-capped logits or attention sinks, or records with a position bias.
    """
    for name, meaning in UNKNOWN_TO_SDPA.items():
        if kwargs.get(name) is not None:
            raise ValueError(
                f'{type(module).__name__} has {meaning} ({name}), which scaled_dot_product_attention leaves out: '
                f'attn_implementation={NAME!r} would compute another model. This model cannot be recorded'
            )
    layer = getattr(module, 'layer_idx', None)
    if interaction is None or layer not in interaction.layers:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        options = dict(kwargs, scaling=scaling, dropout=dropout, is_causal=is_causal)
        return ALL_ATTENTION_FUNCTIONS['sdpa'](module, query, key, value, attention_mask, **options)
    interaction.check(module, layer)
    if kwargs.get('position_bias') is not None:
        raise ValueError(
            f'{type(module).__name__} has a position bias (position_bias), which the recording leaves out: it would '
            'compute another model. This model cannot be recorded'
        )
    if attention_mask is not None:
        attention_mask = attention_mask[..., : key.size(2)]
    if is_causal is None:
        is_causal = query.size(2) > 1 and attention_mask is None and getattr(module, 'is_causal', True)
    places = interaction.places
    output, intensity = attention_with_intensity(
        query,
        key,
        value,
        interaction.query_mask.to(query.device),
        interaction.key_mask.to(query.device),
        attention_mask=attention_mask,
        is_causal=is_causal,
        scale=scaling,
        dropout=dropout,
        backend=interaction.backend,
        places=places and (places[0].to(query.device), places[1].to(query.device)),
    )
    interaction.record(layer, intensity)
    return output.transpose(1, 2).contiguous(), None


def interaction_mask(
    *, attention_mask: Tensor | None = None, allow_is_causal_skip: bool = True, **kwargs
) -> Tensor | None:
    """Transformers' ``sdpa`` mask, but none for padding on the right where causality alone will do.

    No token in front of the padding sees it, and what the padding itself computes is used by nobody. So a batch padded
    on the right needs no mask [B, 1, L, L], and memory stays linear in L.

    Args:
        attention_mask (Tensor, optional): [B, S], 0 at padding. Defaults to None.
        allow_is_causal_skip (bool): Whether the mask is causal, so that ``is_causal`` may replace it. Defaults to True.
        **kwargs: The library's further arguments.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    if allow_is_causal_skip and attention_mask is not None and _pads_queries_on_the_right(attention_mask, kwargs):
        attention_mask = None
    return ALL_MASK_ATTENTION_FUNCTIONS['sdpa'](
        attention_mask=attention_mask, allow_is_causal_skip=allow_is_causal_skip, **kwargs
    )


def _pads_queries_on_the_right(attention_mask: Tensor, sizes: dict) -> bool:
    # Transformers 5 gives the number of queries instead of their positions.
    queries = sizes['q_length'] if 'q_length' in sizes else len(sizes['cache_position'])
    if not queries == sizes['kv_length'] == attention_mask.size(1):
        return False  # There is a cache: queries may come behind the padding.
    real = attention_mask.to(torch.bool)
    return not bool((real[:, 1:] & ~real[:, :-1]).any())


def _in_backward() -> bool:
    """Whether autograd is running this: a layer is computed again."""
    return torch._C._current_graph_task_id() != -1
