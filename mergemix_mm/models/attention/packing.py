"""A batch without its padding: the tokens of all conversations in one row, in which each attends to its own only."""

import torch
from torch import Tensor

from ...families.base import token_padding


class Packing:
    """Where the tokens of a padded batch lie in one row without padding.

    The language model computes the row, and its attention layers split it at the conversations (see
    `interaction_attention`): no mask [T, T] of the row is made, and no conversation can attend to another. Shapes:
    B conversations, L tokens with padding, T tokens without.

    It is neither a dataclass nor a container, because wrappers (FSDP) copy those, and the layers report to it.

    Args:
        real (Tensor): [B, L] bool, the tokens that are not padding, on either side.

    Attributes:
        lengths (list[int]): B numbers of tokens, which sum to T.
    """

    def __init__(self, real: Tensor) -> None:
        self.shape = real.shape
        self.lengths: list[int] = real.sum(dim=1).tolist()
        self._index = real.flatten().nonzero().squeeze(1)
        self._layers: set[int] = set()

    @classmethod
    def of(cls, attention_mask: Tensor | None) -> 'Packing | None':
        """The packing of a batch, by its mask [B, L] with 0 at padding; None if there is no padding to leave out."""
        if attention_mask is None:
            return None
        packing = cls(attention_mask.to(torch.bool))
        return packing if sum(packing.lengths) < attention_mask.numel() else None

    def pack(self, values: Tensor) -> Tensor:
        """[B, L, ...] -> [1, T, ...], conversation by conversation."""
        return values.flatten(0, 1).index_select(0, self._index.to(values.device))[None]

    def unpack(self, values: Tensor) -> Tensor:
        """[1, T, ...] -> [B, L, ...] with zeros at the padding."""
        padded = values.new_zeros(self.shape.numel(), *values.shape[2:])
        return padded.index_copy(0, self._index.to(values.device), values[0]).unflatten(0, self.shape)

    def split(self, values: Tensor, dim: int = 1) -> tuple[Tensor, ...]:
        """Divide T tokens at the conversations: B tensors."""
        return values.split(self.lengths, dim=dim)

    def inputs(self, inputs: dict, positions: Tensor) -> dict:
        """The inputs of a language model, packed.

        Args:
            inputs (dict): For a padded batch: tensors [B, L, ...] of tokens, and any others, such as pixels.
            positions (Tensor): [B, L] or [..., B, L] int64, counted in each conversation.
        """
        packed = dict(inputs)
        for key in {'inputs_embeds', *token_padding()} & inputs.keys():
            packed[key] = self.pack(inputs[key])
        # A mask of four dimensions reaches the layers as it is. None would have transformers build one of T x T.
        packed['attention_mask'] = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=positions.device)
        flat = positions.flatten(-2)[..., self._index.to(positions.device)]
        packed['position_ids'] = flat.unsqueeze(-2)
        return packed

    def read_by(self, layer: int) -> None:
        """Note that a layer splits the row. With gradient checkpointing it does so twice."""
        self._layers.add(layer)

    def check(self, num_layers: int) -> None:
        """Refuse a forward in which a layer attended to the whole row.

        Args:
            num_layers (int): Layers of the language model.

        Raises:
            RuntimeError: If not all of them split the row.
        """
        missing = sorted(set(range(num_layers)) - self._layers)
        if missing:
            raise RuntimeError(
                f'packed=True: layers {missing} of {num_layers} attended beyond their conversation, because the model '
                "does not hand keyword arguments to all of its attention layers, or does not use transformers' "
                'attention interface; set packed=False'
            )
