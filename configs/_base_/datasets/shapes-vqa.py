"""Questions on drawn things: exact match, on new images. The other benchmarks on shapes inherit it."""

_base_ = './benchmark_bs16.py'

test_dataloader = dict(
    batch_size=100,
    num_workers=0,
    dataset=dict(
        type='ShapesTaskDataset',
        task='vqa',
        seed=1,  # The training images have seed 0.
        length=500,
        pipeline=[dict(type='ShortAnswerTask')],
    ),
)
test_evaluator = dict(type='AnswerAccuracy')
