"""The light SPHINX with 2 x 2 crops on TinyLlama 1.1B, 1,295 tokens an image.

It trains in one stage, as SPHINX-X does (https://arxiv.org/abs/2402.05935).
"""

_base_ = [
    '../_base_/models/sphinx-light-7b.py',
    '../_base_/datasets/sphinx-tasks_bs8.py',
    '../_base_/schedules/adamw_sphinx-tasks_20000i.py',
    '../_base_/runtimes/vlm_runtime.py',
]

language_model = 'TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T'
processor = dict(tokenizer=language_model, image_size=1024, grid=2)
encode = dict(_base_.encode, processor=dict(_base_.processor, **processor), max_length=2048)
model = dict(
    vlm=dict(language_model=dict(pretrained=language_model), grid=2, neck=dict(out_channels=2048)), processor=processor
)
train_dataloader = dict(dataset=dict(pipeline=[encode]))
