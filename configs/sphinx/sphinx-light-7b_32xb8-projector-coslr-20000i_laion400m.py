"""Stage 1 of the light SPHINX: only the projection trains."""

_base_ = [
    '../_base_/models/sphinx-light-7b.py',
    '../_base_/datasets/laion400m-captions_bs8.py',
    '../_base_/schedules/adamw_sphinx-align_20000i.py',
    '../_base_/runtimes/vlm_runtime.py',
]

model = dict(
    vlm=dict(language_model=dict(dtype='bfloat16'), trainable=['projector'], gradient_checkpointing=False),
)
train_dataloader = dict(dataset=dict(pipeline=[dict(_base_.encode, chat_template='plain')]))
