"""Policies change images as torchvision's classes do, each image by its own draw, and draw from their generator alone.
"""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from every import every
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from nas.config.training import Training
from nas.training.augment import changed, describe_more, erased
from nas.training.augmentation import Augmentation
from nas.training.policies import LEVELS, OPERATIONS, POLICIES, Policy

THEIRS = {"trivialaugment": v2.TrivialAugmentWide, "randaugment": v2.RandAugment}
NAMES = dict(zip(OPERATIONS, ("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness",
                              "Color", "Contrast", "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"),
                 strict=True))
GEOMETRY = [name for name in OPERATIONS if name.startswith(("shear", "translate", "rotate"))]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int, size: int = 16) -> Tensor:
    images = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=seeded(7))
    return images.permute(0, 3, 1, 2)  # channels_last, as they are stored


def test_settings_name_every_policy() -> None:
    assert get_args(Training.model_fields["policy"].annotation) == ("none", *POLICIES)
    assert Training().policy == "none" and Training().erase == 0


@pytest.mark.parametrize("policy", POLICIES)
def test_operations_and_ranges_are_torchvisions(policy: str) -> None:
    images, theirs = pictures(3, 80), THEIRS[policy]()
    most = POLICIES[policy].ranges(80, mirrored=True)
    assert set(theirs._AUGMENTATION_SPACE) == set(NAMES.values())
    for name, name_there in NAMES.items():
        magnitudes, signed = theirs._AUGMENTATION_SPACE[name_there]
        table = magnitudes(LEVELS, 80, 80)
        for level in (0, 9, 17, LEVELS - 1):
            for sign in (1, -1) if signed else (1,):
                expected = theirs._apply_image_or_video_transform(
                    images, name_there, sign * float(table[level]) if table is not None else 0.0,
                    interpolation=InterpolationMode.NEAREST, fill=theirs._fill)
                got = OPERATIONS[name](images, sign * level / (LEVELS - 1), most)
                assert got.dtype == torch.uint8
                apart = (got.int() - expected.int()).abs()  # torchvision's magnitudes are float32, ours Python's
                assert apart.max() <= 1 and (apart > 0).float().mean() < 0.02, (name, level, sign)
                assert name not in GEOMETRY or apart.max() == 0


def test_ranges_by_hand() -> None:
    trivial, rand = POLICIES["trivialaugment"], POLICIES["randaugment"]
    # 150 / 331 of 32 pixels are 14.5, of 224 are 101.5: more than the 32 of TrivialAugment
    assert [int(policy.ranges(size, True).shift) for policy in (trivial, rand) for size in (32, 224)] == [14, 32, 14,
                                                                                                         101]
    assert [policy.ranges(32, mirrored).turn for policy in (trivial, rand) for mirrored in (True, False)] == [
        135, 30, 30, 30]


def test_what_is_drawn() -> None:
    drawn = POLICIES["trivialaugment"].draw(2000, seeded())
    assert every(len(operations) == 1 for operations in drawn)
    names, strengths = zip(*(operations[0] for operations in drawn), strict=True)
    counts = [names.count(name) for name in OPERATIONS]
    assert min(counts) > 100 and max(counts) < 190  # 143 on average, deviation 11.5
    assert {round(30 * strength) for strength in strengths} == {*range(-30, 31)}
    twice = POLICIES["randaugment"].draw(200, seeded())
    assert every(len(operations) == 2 for operations in twice)
    assert {strength for operations in twice for _, strength in operations} == {0.3, -0.3}  # level 9 of 30


@pytest.mark.parametrize("policy", POLICIES)
def test_each_image_gets_its_own_draw(policy: str) -> None:
    alike = pictures(1).expand(64, 3, 16, 16)
    got = changed(alike, Augmentation("none", policy), seeded())
    assert len({tuple(image.flatten().tolist()) for image in got}) > 25
    assert got.shape == alike.shape and got.dtype == torch.uint8
    drawn = POLICIES[policy].draw(64, seeded())
    for image, operations in zip(got, drawn, strict=True):
        assert torch.equal(image[None], POLICIES[policy].apply(alike[:1], [operations], mirrored=False))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", ["none", "flip-crop"])
def test_policies_draw_from_their_generator_alone(policy: str, kind: str) -> None:
    images, how = pictures(40), Augmentation(kind, policy, erase=0.5)
    kept, before = images.clone(), torch.get_rng_state()

    def drawn(seed: int, share: slice = slice(None)) -> tuple[Tensor, Tensor]:
        source = seeded(seed)
        uint8 = changed(images, how, source, share)
        return uint8, erased(uint8.float(), how.erase, source, len(images), share)

    first, again, other = drawn(1), drawn(1), drawn(2)
    for index in range(2):
        assert torch.equal(first[index], again[index]) and not torch.equal(first[index], other[index])
        for rank in range(2):  # of two processes, each with its part of the batch
            part = slice(rank, None, 2)
            assert torch.equal(drawn(1, part)[index], first[index][part])
    assert torch.equal(before, torch.get_rng_state()) and torch.equal(images, kept)


def test_without_a_policy_nothing_is_drawn_for_one() -> None:
    source = seeded()
    got = changed(pictures(4), Augmentation("none"), source)
    assert torch.equal(got, pictures(4)) and torch.equal(source.get_state(), seeded().get_state())
    values = pictures(4).float()
    assert erased(values, 0.0, source, 4) is values and torch.equal(source.get_state(), seeded().get_state())


@pytest.mark.parametrize("name", GEOMETRY)
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_signs_keep_their_left_and_something_of_them_is_left(policy: Policy, name: str) -> None:
    rising = (10 + 6 * torch.arange(32)).byte().expand(1, 3, 32, 32)  # brighter to the right
    for strength in (-1.0, 1.0):
        got = policy.apply(rising, [[(name, strength)]], mirrored=False).int()
        inside = (got[..., 1:] > 0) & (got[..., :-1] > 0)
        steps = got.diff(dim=-1)[inside]
        assert steps.float().mean() > 2 and steps.min() >= 0
        assert inside.float().mean() > 0.4


def test_memory_layout_is_kept() -> None:
    got = changed(pictures(8), Augmentation("crop", "randaugment"), seeded())
    assert got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [8, 16, 33])
def test_erased_is_one_rectangle(size: int) -> None:
    images = torch.ones(400, 3, size, size).contiguous(memory_format=torch.channels_last)
    got = erased(images, 1.0, seeded(), 400)
    assert got.is_contiguous(memory_format=torch.channels_last)
    shapes = set()
    for image in got:
        rows, columns = ((image == 0).all(0).any(dim).nonzero().flatten() for dim in (1, 0))
        height, width = (int(lines[-1] - lines[0]) + 1 for lines in (rows, columns))
        hole = image[:, rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
        assert hole.eq(0).all() and int((image == 0).sum()) == 3 * height * width
        assert 0 < height < size and 0 < width < size
        shapes.add((height, width))
    areas = [height * width / size**2 for height, width in shapes]
    assert len(shapes) > 15 and max(areas) < 0.33 + 2 / size and 0.3 - 2 / size < max(areas)


def test_erase_is_a_share_of_images() -> None:
    got = erased(torch.ones(2000, 1, 8, 8), 0.25, seeded(), 2000)
    assert 440 < int((got == 0).flatten(1).any(1).sum()) < 560  # 500 on average, deviation 19


@pytest.mark.parametrize(("how", "expected"), [
    (Augmentation("crop"), ""),
    (Augmentation("crop", erase=0.25), "a rectangle of 25 % of them erased (train.erase=0.25)"),
    (Augmentation("crop", "trivialaugment"),
     "one operation of TrivialAugment an image (turned by up to 30 degrees, shifted by up to 14 pixels, brightness, "
     "contrast and others) (train.policy=trivialaugment)"),
    (Augmentation("flip-crop", "trivialaugment", 0.1),
     "one operation of TrivialAugment an image (turned by up to 135 degrees, shifted by up to 14 pixels, brightness, "
     "contrast and others) (train.policy=trivialaugment); a rectangle of 10 % of them erased (train.erase=0.1)"),
    (Augmentation("crop", mix="both"),
     "in fine-tuning pairs of images and labels mixed by mixup or CutMix (train.mix=both)"),
    (Augmentation("crop", "randaugment"),
     "2 operations of RandAugment an image (turned by up to 9 degrees, shifted by up to 4 pixels, brightness, contrast "
     "and others) (train.policy=randaugment)")])
def test_it_is_said_what_images_get(how: Augmentation, expected: str) -> None:
    assert describe_more(how, 32) == expected
