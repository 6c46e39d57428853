"""The two steps from items to a network's input."""

from __future__ import annotations

import pytest
import torch

from sslguard.encoders.preprocess import ImagePreprocess
from sslguard.encoders.rebuild import preprocess_from_json
from sslguard.errors import DataError, UsageError

GREY = ImagePreprocess(8, 8, 1, (0.5,), (0.25,))
COLOUR = ImagePreprocess(8, 8, 3, (0.1, 0.2, 0.3), (0.5, 1.0, 2.0))


def bytes_of(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(8, 8), (5, 9), (20, 13)])
@pytest.mark.parametrize("preprocess", [GREY, COLOUR, ImagePreprocess(6, 10, crop=0.8)], ids=repr)
def test_prepare_gives_the_shape_in_zero_to_one(preprocess, size, channels):
    prepared = preprocess.prepare(bytes_of(3, channels, *size))
    assert prepared.shape == (3, *preprocess.shape)
    assert prepared.dtype == torch.float32
    assert 0 <= prepared.min() < prepared.max() <= 1


def test_bytes_and_their_float_form_are_prepared_alike():
    images = bytes_of(2, 3, 11, 7)
    assert torch.equal(COLOUR.prepare(images), COLOUR.prepare(images.float() / 255))


def test_colour_becomes_grey_by_luma_and_grey_becomes_colour_by_repetition():
    red = torch.zeros(1, 3, 8, 8)
    red[:, 0] = 1
    assert GREY.prepare(red) == pytest.approx(torch.full((1, 1, 8, 8), 0.299))
    grey = bytes_of(2, 1, 8, 8)
    assert torch.equal(COLOUR.prepare(grey), (grey.float() / 255).expand(-1, 3, -1, -1))


def test_a_list_of_sizes_and_channels_is_prepared_item_by_item():
    items = [bytes_of(1, 8, 8), bytes_of(3, 5, 9), bytes_of(3, 16, 4)]
    together = COLOUR.prepare(items)
    assert torch.equal(together, torch.cat([COLOUR.prepare(item[None]) for item in items]))


def test_normalise_is_the_formula_and_passes_the_gradient_to_the_prepared_tensor():
    prepared = COLOUR.prepare(bytes_of(2, 3, 8, 8)).requires_grad_()
    normalised = COLOUR.normalise(prepared)
    assert normalised[:, 2].detach() == pytest.approx((prepared[:, 2].detach() - 0.3) / 2)
    normalised.sum().backward()
    assert prepared.grad is not None
    for channel, std in enumerate(COLOUR.std):
        assert prepared.grad[:, channel] == pytest.approx(torch.full((2, 8, 8), 1 / std))


def test_the_crop_is_taken_from_the_centre_at_every_size_the_native_one_included():
    """Of a picture of 16 pixels, crop 0.5 to 8 pixels is its middle half, unscaled; so it is of one of 8."""
    crop = ImagePreprocess(8, 8, 1, (0.0,), (1.0,), crop=0.5)
    picture = bytes_of(1, 1, 16, 16)
    assert torch.equal(crop.prepare(picture), picture[:, :, 4:12, 4:12].float() / 255)
    frame = torch.ones(1, 1, 8, 8)
    frame[:, :, 2:6, 2:6] = 0
    assert crop.prepare(frame)[0, 0, 1:7, 1:7].max() == 0  # resizing blurs the outermost row only


@pytest.mark.parametrize("crop", [None, 1.0, 0.95, 0.875, 0.8, 0.3])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (7, 10), (33, 20)])
@pytest.mark.parametrize("came", [(16, 16), (64, 48), (32, 32)])
def test_what_is_framed_is_found_again_by_the_crop(crop, height, width, came):
    """A changed image arrives as it was changed, in the middle of the picture that it was taken from."""
    preprocess = ImagePreprocess(height, width, 1, (0.0,), (1.0,), crop=crop)
    batch = bytes_of(2, 1, *came)
    changed = 1 - preprocess.prepare(batch)
    sent = preprocess.framed(changed, batch)
    assert sent.shape[2:] == preprocess.canvas
    torch.testing.assert_close(preprocess.prepare(sent), changed)
    own = preprocess.framed(preprocess.prepare(batch), batch)
    assert (sent != own).sum() <= changed.numel()  # the frame around it is the picture's own


def test_the_canvas_is_what_published_evaluations_resize_to():
    assert ImagePreprocess(224, 224, crop=0.875).canvas == (256, 256)
    assert ImagePreprocess(224, 160).canvas == (224, 160)


def test_stretching_keeps_the_borders_that_a_crop_cuts():
    frame = torch.zeros(1, 1, 16, 16)
    frame[:, :, 0] = 1
    assert ImagePreprocess(8, 8, 1, (0.0,), (1.0,)).prepare(frame).sum() > 0
    assert ImagePreprocess(8, 8, 1, (0.0,), (1.0,), crop=0.75).prepare(frame).sum() == 0


@pytest.mark.parametrize("preprocess", [GREY, COLOUR, ImagePreprocess(6, 10, crop=0.8)], ids=repr)
def test_json_brings_it_back(preprocess):
    assert preprocess_from_json(preprocess.to_json()) == preprocess


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (torch.zeros(2, 4, 8, 8), "1 or 3"),
        (torch.zeros(3, 8, 8), "shape"),
        (torch.full((1, 3, 8, 8), 1.5), r"\[0, 1\]"),
        (torch.full((1, 3, 8, 8), -0.1), r"\[0, 1\]"),
        (torch.full((1, 3, 8, 8), torch.nan), "finite"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), "uint8 or float"),
        (torch.zeros(0, 3, 8, 8), "pixels"),
        (torch.zeros(1, 3, 0, 8), "pixels"),
        ([], "takes images"),
        (["a text"], "takes images"),
        ([torch.zeros(1, 3, 8, 8)], "takes images"),
    ],
)
def test_what_is_not_a_batch_of_images_is_refused(batch, words):
    with pytest.raises(DataError, match=words):
        COLOUR.prepare(batch)


@pytest.mark.parametrize(
    "change",
    [
        {"height": 0},
        {"width": 10**9},
        {"height": float("inf")},
        {"channels": 2},
        {"mean": [0.0]},
        {"mean": [0.0, 0.0, float("nan")]},
        {"std": [1.0, 0.0, 1.0]},
        {"std": [1.0, float("nan"), 1.0]},
        {"std": None},
        {"crop": 0},
        {"crop": 1.5},
        {"kind": "sound"},
    ],
    ids=str,
)
def test_a_description_that_does_not_fit_is_refused(change):
    with pytest.raises(UsageError):
        preprocess_from_json(COLOUR.to_json() | change)


@pytest.mark.parametrize("fields", [None, [], {}, {"kind": "image"}], ids=str)
def test_what_is_not_a_description_is_refused(fields):
    with pytest.raises(UsageError):
        preprocess_from_json(fields)
