"""Stage 1 of SPHINX on real captions: projection and language model train, with plain text in between."""

_base_ = [
    '../_base_/models/sphinx-7b.py',
    '../_base_/datasets/sphinx-align_bs8.py',
    '../_base_/schedules/adamw_sphinx-align_20000i.py',
    '../_base_/runtimes/vlm_runtime.py',
    '../_base_/strategies/fsdp.py',
]

# Captions and texts are learned without questions.
train_dataloader = dict(dataset=dict(pipeline=[dict(_base_.encode, chat_template='plain')]))
