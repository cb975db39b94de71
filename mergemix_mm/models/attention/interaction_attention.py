"""SDPA that can be recorded and packed: the attention function and its mask for transformers' attention interface."""

import weakref
from collections.abc import Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from ...functional import attention_with_intensity
from ...functional.lse_attention import Places
from .packing import Packing

# The name in transformers' registries, for `set_attn_implementation`.
NAME = 'mergemix_interaction'
# Arguments of attention layers that torch's SDPA cannot compute, by transformers' names.
UNKNOWN_TO_SDPA = {'softcap': 'soft-capped logits', 's_aux': 'attention sinks'}


class Recording:
    """Interaction intensities of one forward pass (https://arxiv.org/abs/2511.22663).

    :meth:`InteractionRecorder.recording` makes one per forward, which takes its :attr:`attention_kwargs`. The recorded
    values live as long as this object.

    Args:
        layers (tuple[int, ...]): The layers to record.
        query_mask (Tensor): [B, L] bool, the queries that count.
        key_mask (Tensor): [B, S] bool, the keys that count; S = L unless there is a cache.
        backend (str): Of :func:`mergemix_mm.functional.attention_with_intensity`. Defaults to ``'fused'``.
    """

    def __init__(self, layers: tuple[int, ...], query_mask: Tensor, key_mask: Tensor, backend: str = 'fused') -> None:
        self.layers = layers
        self.probe = Probe(self, query_mask, key_mask, backend)
        self.found: dict[int, Tensor] = {}

    @property
    def attention_kwargs(self) -> dict:
        """Keyword arguments for the forward of the model, which passes them to every text layer."""
        return dict(interaction=self.probe)

    @property
    def valid(self) -> Tensor:
        """Which samples have both queries and keys, [B] bool; the intensity of the others is a meaningless 0."""
        return self.probe.query_mask.any(dim=1) & self.probe.key_mask.any(dim=1)

    def intensity(self) -> Tensor:
        """The recorded intensities, [layers, B] float32 in [0, 1], with gradient if the forward had one.

        Raises:
            RuntimeError: If a layer recorded nothing.
        """
        missing = [layer for layer in self.layers if layer not in self.found]
        if missing:
            raise RuntimeError(
                f'layers {missing} of {list(self.layers)} recorded nothing. The forward must run while the recorder is '
                'started, take **recording.attention_kwargs, and hand them to its attention layers; layers without '
                'softmax attention (linear attention, state spaces) must be left out of layers='
            )
        first = self.found[self.layers[0]]
        return torch.stack([self.found[layer].to(first.device) for layer in self.layers])


class Probe:
    """The part of a :class:`Recording` that is passed through the model.

    It is neither a dataclass nor a container, because wrappers copy those.
    """

    def __init__(self, recording: Recording, query_mask: Tensor, key_mask: Tensor, backend: str) -> None:
        self.query_mask = query_mask
        self.key_mask = key_mask
        self.backend = backend
        # Looked up once for all layers: the number of places depends on the data, so each lookup waits for the GPU.
        found = backend == 'lse'
        self.places = (Places.of(query_mask), Places.of(key_mask)) if found else None
        self.layers = frozenset(recording.layers)
        # Weak, because gradient checkpointing keeps a layer's arguments in the graph, and the recorded intensities keep
        # the graph: a strong reference would close a cycle that Python cannot collect.
        self._recording = weakref.ref(recording)
        self._needs_grad = torch.is_grad_enabled()

    def split(self, packing: Packing) -> list['Probe']:
        """The masks of each conversation of a packed batch, without padding."""
        parts = []
        for masks in zip(*(packing.split(packing.pack(one), dim=1) for one in (self.query_mask, self.key_mask))):
            part = copy(self)
            part.query_mask, part.key_mask = masks
            part.places = None
            parts.append(part)
        return parts

    def check(self, module: nn.Module, layer: int) -> None:
        """Refuse a layer that would silently record wrong values, before it computes.

        Raises:
            RuntimeError: If gradients were expected and the layer runs without, or if it has recorded already.
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
        """Keep a layer's intensity [B], unless gradient checkpointing computes the layer again."""
        recording = self._recording()
        if recording is not None and not _in_backward():
            recording.found[layer] = intensity


def register() -> None:
    """Enter the function and its mask into transformers' registries; further calls change nothing."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, interaction_attention)
    # A name without a mask function gets no mask at all, and padding would be attended to.
    AttentionMaskInterface.register(NAME, interaction_mask)


def switch_attention(decoder: nn.Module) -> str | None:
    """Let a language model of transformers compute its attention by :func:`interaction_attention`.

    Args:
        decoder (nn.Module): The decoder without its head.

    Returns:
        str | None: Its attention before; None if it was switched already.

    Raises:
        ValueError: If the model does not use transformers' attention interface.
    """
    before = decoder.config._attn_implementation
    if before == NAME:
        return None
    register()
    decoder.set_attn_implementation(NAME)
    if decoder.config._attn_implementation != NAME:
        raise ValueError(
            f"{type(decoder).__name__} does not use transformers' attention interface, so its attention cannot be "
            'recorded or packed: only models whose `set_attn_implementation` works can'
        )
    return before


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
    packing: Packing | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """Transformers' ``sdpa`` attention, which also records its interaction intensity on request.

    The keyword argument ``interaction`` requests it for the layers that it names. Modules without ``layer_idx`` (vision
    towers) never record. With ``packing``, the tokens are those of several conversations one after the other, and one
    call of causal attention computes each.

    Args:
        module (nn.Module): The layer's attention module.
        query (Tensor): [B, H, L, D].
        key (Tensor): [B, Hkv, S, D].
        value (Tensor): [B, Hkv, S, D].
        attention_mask (Tensor, optional): [B, 1, L, >= S] bool or float. None: causal, if the module is.
        scaling (float, optional): Factor of the logits. Defaults to None: D ** -0.5.
        dropout (float): Probability of dropping attention weights. Defaults to 0.0.
        is_causal (bool, optional): Defaults to None: as the module is, if there is no mask.
        interaction (Probe, optional): Of a :class:`Recording`. Defaults to None: records nothing.
        packing (Packing, optional): Of a batch of one row, B = 1 and L = S; the mask is then ignored. Defaults to None.
        **kwargs: Further arguments of the library.

    Returns:
        tuple: output [B, L, H, D] and None.

    Raises:
        ValueError: If the layer has soft-capped logits or attention sinks, or records or packs with a position bias.
    """
    for name, meaning in UNKNOWN_TO_SDPA.items():
        if kwargs.get(name) is not None:
            raise ValueError(
                f'{type(module).__name__} has {meaning} ({name}), which scaled_dot_product_attention leaves out: '
                f'attn_implementation={NAME!r} would compute another model. This model cannot be recorded or packed'
            )
    layer: Any = getattr(module, 'layer_idx', None)
    if interaction is not None and layer not in interaction.layers:
        interaction = None
    if interaction is not None:
        interaction.check(module, layer)
    if (interaction is not None or packing is not None) and kwargs.get('position_bias') is not None:
        raise ValueError(
            f'{type(module).__name__} has a position bias (position_bias), which would be left out: that is another '
            'model. This model cannot be recorded or packed'
        )
    options = dict(kwargs, scaling=scaling, dropout=dropout, is_causal=is_causal)
    if packing is None:
        output, intensity = _attend(module, query, key, value, attention_mask, interaction, **options)
    else:
        output, intensity = _attend_packed(module, query, key, value, packing, interaction, **options)
    if interaction is not None and intensity is not None:
        interaction.record(layer, intensity)
    return output, None


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    probe: Probe | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Output [B, L, H, D] and, with a probe, the intensity [B]."""
    if probe is None:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        return ALL_ATTENTION_FUNCTIONS['sdpa'](module, query, key, value, attention_mask, **options)[0], None
    is_causal = options['is_causal']
    if attention_mask is not None:  # A mask for a static cache is longer than the keys.
        attention_mask = attention_mask[..., : key.size(2)]
    if is_causal is None:  # As transformers decides it: one query with a cache sees all keys.
        is_causal = query.size(2) > 1 and attention_mask is None and getattr(module, 'is_causal', True)
    # Layers may be on several devices, and the masks are on one.
    places = probe.places
    output, intensity = attention_with_intensity(
        query,
        key,
        value,
        probe.query_mask.to(query.device),
        probe.key_mask.to(query.device),
        attention_mask=attention_mask,
        is_causal=is_causal,
        scale=options['scaling'],
        dropout=options['dropout'],
        backend=probe.backend,
        places=places and (places[0].to(query.device), places[1].to(query.device)),
    )
    return output.transpose(1, 2).contiguous(), intensity


def _attend_packed(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    probe: Probe | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """As `_attend` for tokens [1, H, T, D] of B conversations: output [1, T, H, D], intensity [B].

    A call per conversation costs neither a mask nor padding, and each runs in the kernel of causal attention.
    """
    packing.read_by(module.layer_idx)
    probes: Sequence[Probe | None] = [None] * len(packing.lengths) if probe is None else probe.split(packing)
    outputs, intensities = [], []
    for q, k, v, own in zip(*(packing.split(one, dim=2) for one in (query, key, value)), probes, strict=True):
        intensity = q.new_zeros(1, dtype=torch.float32)
        if q.size(2):  # A sample may be padding only, and transformers' function fails without tokens.
            output, found = _attend(module, q, k, v, _window_mask(q, options.get('sliding_window')), own, **options)
            outputs.append(output)
            intensity = intensity if found is None else found
        intensities.append(intensity)
    return torch.cat(outputs, dim=1), None if probe is None else torch.cat(intensities)


def _window_mask(query: Tensor, window: int | None) -> Tensor | None:
    """[1, 1, L, L] bool for queries [1, H, L, D] that see `window` tokens, their own included; None if that is all."""
    length = query.size(2)
    if window is None or length <= window:
        return None
    places = torch.arange(length, device=query.device)
    distance = places[:, None] - places
    return ((distance >= 0) & (distance < window))[None, None]


def interaction_mask(
    *, attention_mask: Tensor | None = None, allow_is_causal_skip: bool = True, **kwargs
) -> Tensor | None:
    """Transformers' ``sdpa`` mask, but no mask for a causal batch that is padded on the right.

    In such a batch no real token attends to the padding, which comes later, and the output of the padding is not used.
    Without a mask [B, 1, L, L], memory stays linear in L.

    Args:
        attention_mask (Tensor, optional): [B, S], 0 at padding. Defaults to None.
        allow_is_causal_skip (bool): Whether the mask is causal, so that ``is_causal`` may replace it. Defaults to True.
        **kwargs: Further arguments of the library.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    if allow_is_causal_skip and attention_mask is not None and _pads_queries_on_the_right(attention_mask, kwargs):
        attention_mask = None
    return ALL_MASK_ATTENTION_FUNCTIONS['sdpa'](
        attention_mask=attention_mask, allow_is_causal_skip=allow_is_causal_skip, **kwargs
    )


def _pads_queries_on_the_right(attention_mask: Tensor, sizes: dict) -> bool:
    # Transformers 5 passes the number of queries instead of their positions.
    queries = sizes['q_length'] if 'q_length' in sizes else len(sizes['cache_position'])
    if not queries == sizes['kv_length'] == attention_mask.size(1):
        return False  # With a cache, queries may come after the padding.
    real = attention_mask.to(torch.bool)
    return not bool((real[:, 1:] & ~real[:, :-1]).any())


def _in_backward() -> bool:
    """Whether autograd is running a backward, in which gradient checkpointing computes layers again."""
    return torch._C._current_graph_task_id() != -1
