"""Training steps of transformers' `Trainer` and of trl's trainers, as their own training loops run them.

The loop around a step (data loading, logging, checkpoints) is left out. All trainers compute in float32 and store all
activations, whatever their defaults are.
"""

import os
import tempfile
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .steps import Batch

# Of trl.experimental: that it may change.
os.environ.setdefault('TRL_EXPERIMENTAL_SILENCE', '1')


def transformers_trainer(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    """Transformers' `Trainer` of a model."""
    from transformers import Trainer, TrainingArguments

    return Trainer(model, TrainingArguments(**_arguments()), optimizers=(optimizer, None))


def trl_sft_trainer(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    """Trl's `SFTTrainer` of a model. It replaces ``model.forward``, which then does the same as before for others."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    return SFTTrainer(
        model,
        SFTConfig(**_arguments(), max_length=None, dataset_kwargs=dict(skip_prepare_dataset=True)),
        data_collator=list,
        train_dataset=Dataset.from_list([dict(input_ids=[0], labels=[0])]),
        processing_class=_tokenizer(),
        optimizers=(optimizer, None),
    )


def trl_simpo_trainer(
    model: nn.Module, optimizer: torch.optim.Optimizer, beta: float, gamma: float, sft_weight: float
) -> Any:
    """Trl's `CPOTrainer` with the loss of SimPO, and the cross-entropy of the chosen answers beside it."""
    from datasets import Dataset, disable_progress_bars
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    disable_progress_bars()
    options = dict(loss_type='simpo', beta=beta, simpo_gamma=gamma, cpo_alpha=sft_weight, max_length=64)
    return CPOTrainer(
        model,
        CPOConfig(**_arguments(), **options),
        data_collator=list,
        train_dataset=Dataset.from_list([dict(prompt='a', chosen='b', rejected='c')]),
        processing_class=_tokenizer(),
        optimizers=(optimizer, None),
    )


def trainer_step(trainer: Any, optimizer: torch.optim.Optimizer) -> Callable[[Batch], Tensor]:
    """Forward and backward of a trainer on a batch, update, and gradients released; returns the loss."""
    trainer.current_gradient_accumulation_steps = 1

    def step(batch: Batch) -> Tensor:
        samples, number = trainer.get_batch_samples(iter([dict(batch)]), 1, trainer.args.device)
        loss = trainer.training_step(trainer.model, samples[0], number)
        optimizer.step()
        trainer.model.zero_grad()
        return loss

    return step


def simpo_batch(chosen: Batch, rejected: Batch) -> Batch:
    """Pairs of answers under the names that trl gives them."""
    answers = dict(chosen=chosen, rejected=rejected)
    return {f'{name}_{key}': value for name, one in answers.items() for key, value in one.items()}


def simpo_head_loss(trainer: Any, hidden: Tensor, weight: Tensor, batch: Batch) -> Tensor:
    """The loss of trl's SimPO on given hidden states [2B, L, C], of the chosen answers first."""

    def model(*args: Any, **kwargs: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=F.linear(hidden, weight))

    return trainer.get_batch_loss_metrics(model, batch)[0]


def _arguments() -> dict[str, Any]:
    """The arguments that all trainers share."""
    return dict(
        output_dir=tempfile.gettempdir(),  # Nothing is written.
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        remove_unused_columns=False,
        report_to='none',
    )


@cache
def _tokenizer() -> Any:
    """A tokenizer that trl asks for; the batches that are timed have ids already."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(('<pad>', '<s>', '</s>', 'a', 'b', 'c'))}
    special = dict(pad_token='<pad>', bos_token='<s>', eos_token='</s>', unk_token='<pad>')
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, '<pad>')), **special)
