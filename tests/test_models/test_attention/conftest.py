"""Tiny causal language models, padded batches, and the intensity by the library's own attention weights."""

import pytest
import torch

pytest.importorskip('transformers')

LENGTH = 14
# Options of configs beyond what they share.
LANGUAGE_MODELS = {
    'llama': dict(),
    'mistral': dict(sliding_window=None),
    'mistral, sliding': dict(sliding_window=5),
    'qwen2': dict(),
    'qwen3': dict(head_dim=4),
    'gemma': dict(head_dim=6),
    'gemma3_text': dict(head_dim=4, sliding_window=5, layer_types=['sliding_attention', 'full_attention'] * 2),
    'emu3': dict(attention_dropout=0.0),
}


@pytest.fixture
def language_model():
    """language_model(name, **config) -> a causal model of 4 layers, 4 heads and 2 key-value heads."""
    from transformers import AutoConfig, AutoModelForCausalLM, Emu3ForCausalLM, Emu3TextConfig

    def build(name='llama', seed=0, **config):
        torch.manual_seed(seed)
        options = dict(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=600,
            initializer_range=0.3,
            pad_token_id=0,
        )
        options |= LANGUAGE_MODELS.get(name, {}) | config
        if name == 'emu3':
            return Emu3ForCausalLM(Emu3TextConfig(**options)).train()
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(name.partition(',')[0], **options)).train()

    return build


@pytest.fixture
def padded():
    """padded(side) -> ids and attention mask of three sentences, and masks of queries (late) and keys (early)."""

    def build(side='right', length=LENGTH):
        ids = torch.randint(1, 40, (3, length), generator=torch.Generator().manual_seed(1))
        padding, places = torch.tensor([[0], [3], [6]]), torch.arange(length)
        starts = padding if side == 'left' else 0 * padding
        real = (places >= starts) & (places < starts + length - padding)
        keys = real & (places >= starts + 1) & (places < starts + 4)
        queries = real & (places >= starts + 4)
        queries[0, -1] = False
        return dict(input_ids=ids * real, attention_mask=real.long()), queries, keys

    return build


@pytest.fixture
def intensity_of_weights():
    """intensity_of_weights(attentions, queries, keys) -> [layers, B], of the library's weights [B, H, L, L]."""

    def compute(attentions, queries, keys):
        rows = [(weights * keys[:, None, None]).sum(dim=3).mean(dim=1) for weights in attentions]
        return torch.stack([(row * queries).sum(dim=1) / queries.sum(dim=1).clamp(min=1) for row in rows])

    return compute


@pytest.fixture
def gradients():
    """gradients(hidden, intensity, real, model) of a scalar of the real tokens and of every intensity."""

    def compute(hidden, intensity, real, model):
        weights = torch.linspace(-2, 3, intensity.numel()).view_as(intensity)
        scalar = hidden[real.bool()].square().mean() + (intensity * weights).sum()
        model.zero_grad()
        scalar.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    return compute
