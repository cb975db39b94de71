"""Records the interaction intensities of a transformers model, one recording per forward pass."""

from collections.abc import Iterable

from torch import Tensor, nn

from ...functional.interaction import BACKENDS
from ..decoders import find_decoder
from .interaction_attention import Recording, switch_attention

# Entries of `layer_types` in configs of transformers, for layers that compute no softmax attention.
NO_SOFTMAX = ('linear_attention', 'conv', 'moe')


class InteractionRecorder:
    """Records the interaction intensity (https://arxiv.org/abs/2511.22663) of a model's text layers.

    While the recorder is started, the language model runs transformers' ``sdpa`` attention through one function that
    can record. Forwards without ``attention_kwargs`` record nothing and cost the same as before. Masks and results
    belong to one :class:`Recording` per forward, so forwards of several models, or in several threads, do not mix.
    Gradients flow through the recorded values, also under DDP, FSDP and non-reentrant gradient checkpointing.

    Args:
        model (nn.Module): A model of transformers that uses its attention interface, or a module that contains one (a
            `VisionLanguageModel`, a tuner, a peft or DDP wrapper).
        layers (Iterable[int], optional): Layers to record, from 0, e.g. ``range(10, 20)``; only these add cost.
            Defaults to None: all that have softmax attention (of Qwen3.5, every fourth; the others are linear).
        backend (str): ``'auto'``, ``'fused'``, ``'lse'`` or ``'eager'``, see
            :func:`mergemix_mm.functional.attention_with_intensity`. Defaults to ``'fused'``.

    Raises:
        ValueError: If an argument cannot be used, or the model cannot be recorded (no attention interface, soft-capped
            attention).

    Examples:
        >>> with InteractionRecorder(vlm) as recorder:
        ...     recording = recorder.recording(labels != -100, vlm.modality(batch) == IMAGE)
        ...     hidden = vlm.hidden(batch, **recording.attention_kwargs)
        ...     loss = aia_loss(recording.intensity(), target, delta, recording.valid)
    """

    def __init__(self, model: nn.Module, layers: Iterable[int] | None = None, backend: str = 'fused') -> None:
        self._decoder = _find_decoder(model)
        self.num_layers: int = self._decoder.config.num_hidden_layers
        types = getattr(self._decoder.config, 'layer_types', None) or ()
        without = {layer for layer, kind in enumerate(types) if kind in NO_SOFTMAX}
        chosen = set(range(self.num_layers)) - without if layers is None else set(layers)
        if not chosen or not chosen <= set(range(self.num_layers)):
            raise ValueError(
                f'layers={sorted(chosen)} must be some of the {self.num_layers} layers of '
                f'{type(self._decoder).__name__}, 0 to {self.num_layers - 1}'
            )
        if chosen & without:
            raise ValueError(
                f'layers={sorted(chosen)} of {type(self._decoder).__name__}: {sorted(chosen & without)} have no '
                f'softmax attention to record; the others of its {self.num_layers} layers are allowed, '
                f'{sorted(set(range(self.num_layers)) - without)}'
            )
        if backend not in BACKENDS:
            raise ValueError(f'backend={backend!r} must be one of {BACKENDS}')
        self.layers: tuple[int, ...] = tuple(sorted(chosen))
        self.backend = backend
        self._started = False
        self._before: str | None = None

    def start(self) -> None:
        """Switch the language model's attention to the function that can record.

        Raises:
            ValueError: If the model does not use transformers' attention interface.
        """
        if self._started:
            return
        # None: another recorder has switched it, and switches it back; or the model is packed, and stays so.
        self._before = switch_attention(self._decoder)
        self._started = True

    def stop(self) -> None:
        """Restore the previous attention."""
        if self._before is not None:
            self._decoder.set_attn_implementation(self._before)
        self._started, self._before = False, None

    def recording(self, query_mask: Tensor, key_mask: Tensor) -> Recording:
        """Prepare the recording of one forward, which takes ``**recording.attention_kwargs``.

        Args:
            query_mask (Tensor): [B, L] bool, the queries that count, e.g. answer tokens.
            key_mask (Tensor): [B, L] bool, the keys that count, e.g. image tokens. L is the length that the attention
                layers see.

        Raises:
            RuntimeError: If the recorder is not started.
        """
        if not self._started:
            raise RuntimeError('start() the recorder first, or use it as a context manager: nothing would be recorded')
        return Recording(self.layers, query_mask, key_mask, self.backend)

    def __enter__(self) -> 'InteractionRecorder':
        self.start()
        return self

    def __exit__(self, *error) -> None:
        self.stop()


def _find_decoder(model: nn.Module) -> nn.Module:
    """The transformers model inside `model` whose layers read the text.

    A module with several models of transformers in it names the recorded one by its attribute ``recorded_model``.
    Otherwise it is the outermost one, which contains all others.
    """
    from transformers import PreTrainedModel

    named = (getattr(module, 'recorded_model', None) for module in model.modules())
    recorded = next((found for found in named if found is not None), model)
    models = [module for module in recorded.modules() if isinstance(module, PreTrainedModel)]
    if not models:
        raise ValueError(f'{type(model).__name__} contains no model of transformers, so no attention can be recorded')
    # The decoder without its tower: switching it leaves the vision tower's attention unchanged.
    _, decoder = find_decoder(models[0])
    config = decoder.config
    if config.is_encoder_decoder:
        raise ValueError(f'{type(models[0]).__name__} has no text decoder whose self-attention could be recorded')
    cap = getattr(config, 'attn_logit_softcapping', None)
    if cap is not None:
        raise ValueError(
            f'{type(decoder).__name__} caps its attention logits (attn_logit_softcapping={cap}), which '
            'scaled_dot_product_attention leaves out: this model cannot be recorded'
        )
    return decoder
