"""One training step of a LLaVA and of a Janus with random weights: models, batches and losses of the timed arms.

Special tokens have the same small ids in all models, because ids do not change the cost of a step.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from mergemix_mm.functional import simpo_loss
from mergemix_mm.functional.preference import IGNORE_INDEX
from mergemix_mm.models import MergeMix, VLMTuner
from mergemix_mm.models.attention import InteractionAlignment
from mergemix_mm.models.losses import AIALoss
from mergemix_mm.models.tuners import UnifiedTuner

PAD, BOS, EOS, IMAGE, BEGIN = range(5)
SPECIAL_TOKENS = dict(pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS)
PATCH = 16
# Sizes of --quick.
TINY_LLAVA = dict(image_size=32, vocabulary=50, width=32, tower_layers=4, text_layers=2)
TINY_JANUS = dict(image_size=32, vocabulary=50, codes=50, width=128, tower_layers=2, text_layers=2)
TASKS = dict(gen='generation', und='understanding')

Batch = dict[str, Any]
Losses = dict[str, Tensor]


def idle_optimizer(model: nn.Module) -> torch.optim.AdamW:
    """AdamW over all weights that train, at learning rate 0, so that all arms find the same weights in every step.

    Gradients and moments are allocated. On a GPU the optimizer is fused, which needs no further memory.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.0, fused=parameters[0].is_cuda)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return optimizer


def training_step(losses: Callable[[], Losses], optimizer: torch.optim.Optimizer) -> Callable[[], Losses]:
    """Forward, backward and update of one batch, to be called repeatedly.

    Args:
        losses (Callable): The forward pass. It returns what the ``loss`` of a tuner returns.
        optimizer (torch.optim.Optimizer): Of the model.

    Returns:
        Callable: Takes a step and returns the losses. The gradients stay until the next call.
    """

    def step() -> Losses:
        # Gradients stay allocated, because the arms do not differ in them.
        optimizer.zero_grad(set_to_none=False)
        found = losses()
        sum(value for key, value in found.items() if 'loss' in key).backward()
        optimizer.step()
        return {key: value.detach() for key, value in found.items()}

    return step


# --- LLaVA ------------------------------------------------------------------------------------------------------------


def small_llava(image_size: int, vocabulary: int, width: int, tower_layers: int, text_layers: int) -> dict[str, Any]:
    """The config of a small LLaVA; ``width`` is that of the tower and of the language model."""
    common = dict(hidden_size=width, intermediate_size=4 * width, num_attention_heads=width // 16)
    return dict(
        model_type='llava',
        vision_config=dict(
            model_type='clip_vision_model',
            image_size=image_size,
            patch_size=PATCH,
            num_hidden_layers=tower_layers,
            **common,
        ),
        text_config=dict(
            model_type='llama',
            vocab_size=vocabulary,
            num_hidden_layers=text_layers,
            tie_word_embeddings=False,
            **common,
        ),
        image_token_index=IMAGE,
    )


def build_llava(vlm: dict | nn.Module, mixer: dict | MergeMix | None = None, **head) -> VLMTuner:
    """Supervised fine-tuning of a VLM, with SimPO in addition if there is a mixer; options of the head by name."""
    head = dict(type='SFTHead' if mixer is None else 'SimPOHead', **head)
    return MODELS.build(dict(type='VLMTuner', vlm=vlm, head=head, mixer=mixer)).train()


def random_conversations(config: dict[str, Any], batch_size: int, prompt: int, answer: int) -> Batch:
    """Samples of equal length, each with an image, a prompt and an answer; ``prompt`` and ``answer`` in tokens."""
    size, vocabulary = config['vision_config']['image_size'], config['text_config']['vocab_size']
    image = torch.full((batch_size, (size // config['vision_config']['patch_size']) ** 2), IMAGE)
    ids = torch.cat([image, torch.randint(IMAGE + 1, vocabulary, (batch_size, prompt + answer))], dim=1)
    return dict(_with_labels(ids, answer), pixel_values=torch.randn(batch_size, 3, size, size))


def llava_losses(tuner: VLMTuner, batch: Batch) -> Losses:
    """The losses of this package, which MMEngine's loops sum."""
    return tuner(batch, mode='loss')


def plain_llava_losses(tuner: VLMTuner, batch: Batch) -> Losses:
    """The loss of transformers' own forward with labels, which computes the logits of all positions."""
    with tuner.vlm.autocast(batch):
        return dict(loss_sft=tuner.vlm.model(**batch).loss)


def release_llava_losses(tuner: VLMTuner, batch: Batch, language_model_scores: bool = True) -> Losses:
    """The loss as the MergeMix release for LLaVA computes it.

    The whole model runs without gradient to score, then with gradient on the clean images, which is both the supervised
    pass and the winner's, then without gradient on the losers. All passes compute all logits and their loss. A label of
    the text is scored by the logit of its own position; lengths are those of the padded text.

    Args:
        tuner (VLMTuner): With :class:`lib.release_scheme.ForkScoring` as its mixer.
        batch (dict): Samples of equal length, each with its image first.
        language_model_scores (bool): Whether the scoring pass goes on through the language model. Defaults to True.
    """
    model = partial(tuner.vlm.model, use_cache=False)
    places = batch['input_ids'] == tuner.vlm.family.image_token_id
    first = int(places[0].sum())
    text = batch['labels'][:, first:]
    with tuner.vlm.autocast(batch):
        with torch.no_grad():
            result = tuner.mix(batch)
            if language_model_scores:
                embeds = tuner.vlm.family.model.get_input_embeddings()(batch['input_ids'])
                features = tuner.vlm.family.model.model.multi_modal_projector(tuner.mixer.features).to(embeds.dtype)
                embeds = embeds.masked_scatter(places[..., None], features)
                model(inputs_embeds=embeds, attention_mask=batch['attention_mask'], labels=batch['labels'])
        clean = model(**batch)
        with torch.no_grad():
            lost = model(**batch | dict(pixel_values=torch.stack(result.images))).logits[:, first:].clone()
        won, lost = (_sum_logps(logits, text) / text.size(1) for logits in (clean.logits[:, first:], lost))
        simpo = simpo_loss(won, lost, beta=1.0, margin=float(1 - result.ratio[0])).mean()
        return dict(loss=(clean.loss + simpo) / 2)


def _sum_logps(logits: Tensor, labels: Tensor) -> Tensor:
    logps = logits.float().log_softmax(dim=-1).gather(2, labels.clamp(min=0).unsqueeze(2)).squeeze(2)
    return (logps * (labels != IGNORE_INDEX)).sum(dim=1)


# --- Janus ------------------------------------------------------------------------------------------------------------


def num_image_tokens(image_size: int) -> int:
    """Tokens of an image, which are as many in understanding as in generation."""
    return (image_size // PATCH) ** 2


def small_janus(
    image_size: int, vocabulary: int, codes: int, width: int, tower_layers: int, text_layers: int
) -> dict[str, Any]:
    """The config of a small Janus. Its VQ model is tiny, because no arm runs it."""
    heads = max(width // 64, 2)
    return dict(
        model_type='janus',
        vision_config=dict(
            hidden_size=width,
            num_hidden_layers=tower_layers,
            num_attention_heads=heads,
            image_size=image_size,
            patch_size=PATCH,
            num_image_tokens=num_image_tokens(image_size),
            projection_dim=width,
            depth=2,
        ),
        text_config=dict(
            model_type='llama',
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=text_layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            tie_word_embeddings=False,
            **SPECIAL_TOKENS,
        ),
        vq_config=dict(
            embed_dim=8,
            num_embeddings=codes,
            latent_channels=32,
            base_channels=32,
            channel_multiplier=[1, 1, 1, 1, 1],
            num_res_blocks=1,
            projection_dim=width,
            image_token_embed_dim=width,
        ),
        image_token_id=IMAGE,
    )


def build_janus(vlm: dict | nn.Module) -> UnifiedTuner:
    """A tuner of both tasks. It drops no prompts, so that all samples are aligned."""
    return MODELS.build(dict(type='UnifiedTuner', vlm=vlm, drop_prompt=0.0)).train()


def random_tasks(config: dict[str, Any], batch_size: int, length: int, answer: int) -> dict[str, Batch]:
    """A batch for each task, all sequences of one length.

    Generation has a prompt and the codes of an image, understanding an image, a question and an answer.
    """
    vision, vocabulary = config['vision_config'], config['text_config']['vocab_size']
    codes = torch.randint(config['vq_config']['num_embeddings'], (batch_size, vision['num_image_tokens']))
    text = torch.randint(BEGIN + 1, vocabulary, (batch_size, length - codes.size(1)))
    prompts = torch.cat([torch.full_like(text[:, :1], BOS), text[:, 2:], torch.full_like(text[:, :1], BEGIN)], dim=1)
    pixels = torch.randn(batch_size, 3, vision['image_size'], vision['image_size'])
    understanding = _with_labels(torch.cat([torch.full_like(codes, IMAGE), text], dim=1), answer)
    return dict(
        gen=dict(task='gen', input_ids=prompts, attention_mask=torch.ones_like(prompts), codes=codes),
        und=dict(task='und', pixel_values=pixels, **understanding),
    )


def plain_janus_losses(tuner: UnifiedTuner, batch: Batch) -> Losses:
    """The next-token loss of transformers' own forward; for generation, of the parts that it is made of."""
    model, inputs = tuner.vlm.model, {key: value for key, value in batch.items() if key != 'task'}
    with tuner.vlm.autocast(batch):
        if batch['task'] == 'und':
            return dict(loss_ntp_und=model(**inputs).loss)
        prompt = model.get_input_embeddings()(batch['input_ids'])
        image = model.prepare_embeddings_for_image_generation(batch['codes'])
        embeds = torch.cat([prompt, image.to(prompt.dtype)], dim=1)
        hidden = model.model.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        logits = model.model.generation_head(hidden[:, prompt.size(1) - 1 : -1])
        return dict(loss_ntp_gen=F.cross_entropy(logits.flatten(0, 1).float(), batch['codes'].flatten()))


def janus_step(
    tuner: UnifiedTuner, batch: Batch, optimizer: torch.optim.Optimizer, backend: str | None
) -> Callable[[], Losses]:
    """A training step of this package. With a backend, AIA records and aligns all layers; None trains without AIA."""
    step = training_step(partial(tuner, batch, mode='loss'), optimizer)
    if backend is None:
        return step
    alignment = InteractionAlignment(tuner.vlm, AIALoss('janus_pro'), backend=backend)

    def aligned() -> Losses:
        # Recording lasts until the backward pass has ended, because checkpointing computes layers again.
        with alignment.recorder:
            tuner.alignment = alignment
            losses = step()
            tuner.alignment = None
        return losses

    return aligned


# --- Both -------------------------------------------------------------------------------------------------------------


def _with_labels(ids: Tensor, answer: int) -> Batch:
    """Inputs without padding, whose last ``answer`` tokens are labelled."""
    labels = ids.clone()
    labels[:, :-answer] = IGNORE_INDEX
    return dict(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels)


def on_device(batch: Mapping[str, Any], device: torch.device) -> Batch:
    """A batch with its tensors on a device."""
    return {key: value.to(device) if torch.is_tensor(value) else value for key, value in batch.items()}
