"""What one forward pass records: masks travel in as a keyword argument, intensities come out."""

import weakref

import torch
from torch import Tensor, nn

from ...functional.lse_attention import Places


class Recording:
    """Interaction intensities of one forward pass (https://arxiv.org/abs/2511.22663).

    Made by :meth:`InteractionRecorder.recording`, one per forward. The forward takes its :attr:`attention_kwargs`; what
    it recorded lives as long as this object.

    Args:
        layers (tuple[int, ...]): The layers to record.
        query_mask (Tensor): [B, L] bool, the queries that count.
        key_mask (Tensor): [B, S] bool, the keys that count; S = L unless there is a cache.
        backend (str): of :func:`mergemix_mm.functional.attention_with_intensity`. Defaults to ``'fused'``.
    """

    def __init__(self, layers: tuple[int, ...], query_mask: Tensor, key_mask: Tensor, backend: str = 'fused') -> None:
        self.layers = layers
        self.probe = Probe(self, query_mask, key_mask, backend)
        self.found: dict[int, Tensor] = {}

    @property
    def attention_kwargs(self) -> dict:
        """Keyword arguments for the forward of the model, which hands them to every text layer."""
        return dict(interaction=self.probe)

    @property
    def valid(self) -> Tensor:
        """Which samples have both queries and keys, [B] bool; the intensity of the others is 0 and means nothing."""
        return self.probe.query_mask.any(dim=1) & self.probe.key_mask.any(dim=1)

    def intensity(self) -> Tensor:
        """What the layers recorded, [layers, B] float32, with gradient if the forward had one.

        Raises:
            RuntimeError: if a layer recorded nothing.
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
    """The part of a recording that travels through the model.

    It refers to the recording weakly: gradient checkpointing keeps a layer's arguments in the graph, and the recorded
    intensities keep the graph, which would be a circle that Python cannot collect. It is no dataclass and no container,
    because wrappers (FSDP) copy those.
    """

    def __init__(self, recording: Recording, query_mask: Tensor, key_mask: Tensor, backend: str) -> None:
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


def _in_backward() -> bool:
    """Whether autograd is running this: a layer is computed again."""
    return torch._C._current_graph_task_id() != -1
