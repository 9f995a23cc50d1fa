"""The built-in images ``cluttered``: the same everywhere, whole digits, and no handwriting in two pools."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from nas.paths import BUILT_IN
from nas.training.cluttered import (
    FRAGMENT,
    FRAGMENTS,
    FRAME,
    IMAGES,
    TURNS,
    UNIT,
    WIDTHS,
    Pieces,
    cluttered,
    draw,
    placed,
    plan,
    sampled,
)
from nas.training.data import SOURCES, load
from nas.training.pixels import NARROW
from nas.training.sources import Source, resized

DIGEST = "ac960ff1d416"


@pytest.fixture(scope="module")
def source() -> Source:
    return cluttered()


@pytest.fixture(scope="module")
def layers() -> list[Pieces]:
    return plan(load_digits().target)


def pixels(source: Source, which: np.ndarray, size: int = FRAME) -> torch.Tensor:
    return source.read(which, size, NARROW).images


def at(pieces: int, *point: float) -> np.ndarray:
    """Returns the same point, in pixels, for each piece."""
    return np.tile(np.array([round(value * UNIT) for value in point]), (pieces, 1))


def upright(*place: float, turn: int = 0, ink: int = 256) -> Pieces:
    """The first digit, 16 pixels wide, with its middle there."""
    return Pieces(np.array([0]), np.array([16]), np.array([turn]), at(1, 4, 4), at(1, *place), np.array([ink]))


def bright(columns: list[int], rows: list[int], greys: np.ndarray, turn: int = 0, ink: int = 256) -> list[list[int]]:
    """What of the first digit, in the middle of the frame, lies at these pixels."""
    return sampled(greys, upright(16, 16, turn=turn, ink=ink), np.array([columns]), np.array([rows]))[0].tolist()


def test_every_machine_draws_the_same(source: Source) -> None:
    images = pixels(source, np.arange(len(source.labels)))
    digest = hashlib.sha256(images.permute(0, 2, 3, 1).contiguous().numpy().tobytes() + source.labels.tobytes())
    assert images.shape == (7000, 3, 32, 32) and digest.hexdigest()[:12] == DIGEST


def test_another_size_first_and_a_second_source_change_nothing(source: Source) -> None:
    which, other = np.array([0, 6999, 4321, 17]), cluttered()
    small = pixels(source, which, 16)
    assert torch.equal(pixels(other, which), pixels(source, which))
    assert torch.equal(pixels(other, which, 16), small)
    assert torch.equal(pixels(source, np.arange(600))[[599, 5]], pixels(source, np.array([599, 5])))


def test_other_sizes_are_the_same_images_resized(source: Source) -> None:
    which = np.arange(8)
    assert torch.equal(pixels(source, which, 48), resized(pixels(source, which), which, 48))
    assert pixels(source, which, 48).shape == (8, 3, 48, 48)


def test_no_rounding_is_near_a_tie() -> None:
    """A cosine that another machine rounds otherwise in its last bit gives the same whole number."""
    widths, turns = np.arange(WIDTHS[0], WIDTHS[1] + 1), np.radians(np.arange(TURNS[0], TURNS[1] + 1))
    lengths = np.concatenate((widths * UNIT, 8 * UNIT // widths))
    exact = np.concatenate((np.outer(np.cos(turns), lengths), np.outer(np.sin(turns), lengths)))
    assert np.abs(exact - np.floor(exact) - 0.5).min() > 1e-6


def test_no_handwriting_is_in_two_pools(source: Source, layers: list[Pieces]) -> None:
    used = {pool: {int(digit) for layer in layers for digit in layer.digit[which]}
            for pool, which in source.pools.items()}
    assert list(used) == ["train", "select", "test"]
    assert sum(map(len, used.values())) == len(set.union(*used.values())) == 1797  # every digit, in one pool each


def test_classes_are_equally_frequent_and_digits_about_as_often(source: Source, layers: list[Pieces]) -> None:
    truth = load_digits().target
    for pool, which in source.pools.items():
        assert np.bincount(source.labels[which]).tolist() == [IMAGES[pool] // 10] * 10
        digits, times = np.unique(layers[0].digit[which], return_counts=True)
        for label in range(10):
            assert np.ptp(times[truth[digits] == label]) <= 1


def test_clutter_is_of_other_digits_and_its_windows_lie_within_the_frame(layers: list[Pieces]) -> None:
    wholes, *fragments = layers
    assert len(fragments) == FRAGMENTS
    for layer in fragments:
        assert (layer.digit != wholes.digit).all()
        corner = layer.place - FRAGMENT * UNIT // 2
        assert corner.min() == 0 and corner.max() == (FRAME - FRAGMENT) * UNIT


def test_a_window_is_painted_where_it_is_said_to_be() -> None:
    white = np.full((1, 8, 8), 255, np.int32)
    corner = 5, 20  # columns 5 to 11, rows 20 to 26
    image = draw(white, [upright(16, 16, ink=0), upright(8.5, 23.5)])[0]
    expected = np.zeros((32, 32), np.uint8)
    expected[corner[1] : corner[1] + 7, corner[0] : corner[0] + 7] = 255
    assert np.array_equal(image, expected)


def test_placement_by_hand() -> None:
    # 16 pixels wide, upright: 8.5 of its 8 pixels, so 17 of the frame, and 8.5 from its middle to the border
    share = np.array([[0, 0], [UNIT, 0], [UNIT // 2, UNIT // 4]])
    middles = placed(np.full(3, 16), np.zeros(3, int), share)
    assert (middles / UNIT).tolist() == [[8.5, 8.5], [23.5, 8.5], [16, 12.25]]  # 8.5 + 15 / 4
    # turned by 25 degrees, cos + sin = 1.328926: 8.5 * 1.328926 = 11.29587 = 11566.97 / 1024
    assert placed(np.array([16]), np.array([25]), share[:1]).tolist() == [[11566, 11566]]
    assert np.array_equal(placed(np.array([16]), np.array([-25]), share[:1]), [[11566, 11566]])


def test_pixels_by_hand() -> None:
    greys = np.zeros((1, 8, 8), np.int32)
    greys[0, 3, 5] = 255
    # its middle (5.5, 3.5) is 1.5 right of the digit's and 0.5 above: at (19, 15), between columns 18 and 19. These are
    # a quarter of a digit's pixel from it: 255 * 3/4 * 3/4 = 143, as a stroke 143 * 3 // 2 - 96 = 118
    assert bright([17, 18, 19, 20], [14, 15, 16], greys) == [[0, 118, 118, 0], [0, 118, 118, 0], [0, 0, 0, 0]]
    assert bright([18], [14], greys, ink=128) == [[59]]
    greys[0, 3, 5:7] = 255  # and the one at its right: between the two full, 255 * 3/4 = 191 -> 190
    assert bright([19, 20], [15], greys) == [[190, 190]]


def test_a_positive_turn_is_clockwise() -> None:
    greys = np.zeros((1, 8, 8), np.int32)
    greys[0, 3:5, 6:8] = 255  # 3 pixels right of the middle: 6 in the frame, 25 degrees down
    around = [round(16 + 6 * np.cos(np.radians(25)) - 0.5)], [round(16 + 6 * np.sin(np.radians(25)) - 0.5)]
    assert around == ([21], [18])
    assert bright(*around, greys, turn=25)[0][0] > 200 and bright(*around, greys, turn=-25) == [[0]]


@pytest.mark.parametrize("width", range(WIDTHS[0], WIDTHS[1] + 1))
def test_a_digit_is_never_cut_off(width: int) -> None:
    """Not even one that is all ink, at any angle, in any corner; upright it comes within a pixel of the border."""
    white = np.full((1, 8, 8), 255, np.int32)
    angles = np.arange(TURNS[0], TURNS[1] + 1)
    for share in ((0, 0), (UNIT, 0), (0, UNIT), (UNIT, UNIT)):
        turn, widths, corner = angles, np.full(len(angles), width), np.tile(share, (len(angles), 1))
        pieces = Pieces(np.zeros_like(turn), widths, turn, at(len(turn), 4, 4), placed(widths, turn, corner),
                        np.full(len(turn), 256))
        around = np.tile(np.arange(-16, FRAME + 16), (len(turn), 1))
        seen = sampled(white, pieces, around, around) > 0
        inside = seen[:, 16:-16, 16:-16]
        assert seen.sum() == inside.sum() > 0
        near = inside.any(1)[turn == 0][0]
        assert near[[0, 1] if share[0] == 0 else [-1, -2]].any()


def test_it_is_loaded_with_its_own_pools_and_other_sizes(source: Source) -> None:
    data = load("cluttered", data_dir=None, size=16, seed=0)
    assert data.source.sizes == {"train": 4050, "gate": 450, "select": 1000, "test": 1500}
    assert data.indices["select"] == source.pools["select"].tolist()
    assert data.indices["test"] == source.pools["test"].tolist()
    assert data.source.splits == {"train": "its own train images", "gate": "its own train images",
                                  "select": "its own select images", "test": "its own test images"}
    assert (data.classes, data.size, data.augment) == (tuple("0123456789"), 16, "crop")
    few = load("cluttered", data_dir=None, size=None, seed=1, limit=100)
    assert few.size == 32 and few.source.sizes == {"train": 90, "gate": 10, "select": 100, "test": 1500}


def test_every_built_in_name_has_a_source() -> None:
    assert tuple(SOURCES) == BUILT_IN
