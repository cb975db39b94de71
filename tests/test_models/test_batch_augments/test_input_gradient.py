"""The gradient of the classifier's loss as the saliency of pixels."""

import torch
from tiny_classifier import batch, classifier

from mergemix_mm.models.batch_augments import TrainingBatch
from mergemix_mm.models.batch_augments.input_gradient import input_gradient


def test_it_is_the_norm_of_the_derivative_of_the_loss_by_each_pixel():
    model, (images, samples) = classifier(), batch()
    scores = input_gradient(TrainingBatch(model, images, torch.eye(5)[:4], samples))
    saliency = scores.saliency.unflatten(1, scores.grid)
    assert scores.grid == (32, 32)
    model.double().eval()
    step, (row, col) = 1e-4, (9, 17)

    def own_loss(image):
        logits = model(image[None], mode='tensor')
        return -logits.log_softmax(1)[0, 2]

    slopes = []
    for channel in range(3):
        change = torch.zeros(3, 32, 32, dtype=torch.float64)
        change[channel, row, col] = step
        slopes.append((own_loss(images[2].double() + change) - own_loss(images[2].double() - change)) / (2 * step))
    expected = torch.stack(slopes).norm().float()
    torch.testing.assert_close(saliency[2, row, col], expected.detach(), atol=1e-5, rtol=1e-3)


def test_pixels_of_normalised_images_are_scaled_back_to_a_range_of_length_one():
    model = classifier(data_preprocessor=dict(mean=[120.0] * 3, std=[51.0, 25.5, 102.0], num_classes=5))
    images, samples = batch()
    scores = input_gradient(TrainingBatch(model, images, torch.eye(5)[:4], samples))
    torch.testing.assert_close(scores.pixel_scale, torch.tensor([0.2, 0.1, 0.4]))


def test_autocast_gives_a_finite_map_and_caches_no_weight_without_gradient():
    model, (images, samples) = classifier(), batch()
    with torch.autocast('cpu', torch.bfloat16):
        scores = input_gradient(TrainingBatch(model, images, torch.eye(5)[:4], samples))
        assert scores.saliency.dtype == torch.float32 and scores.saliency.isfinite().all()
        loss = model.head.loss(model.extract_feat(images), samples)['loss']
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
