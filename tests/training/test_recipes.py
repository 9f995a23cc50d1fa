"""Recipes say what the settings say, and how many epochs that is where the settings leave it open."""


import pytest
from colours import colours

from nas.config.search import resolve
from nas.training.recipes import BY_ITSELF, PICK, SUPERNET, Exposure, FineTuningRecipe, SupernetRecipe, supernet_epochs

SETTINGS = ["train.batch=8", "train.accumulate=2", "train.label_smoothing=0.1", "train.weight_decay=0.03",
            "train.amp=bf16", "train.policy=randaugment", "train.erase=0.25", "train.mix=both",
            "train.finetune_ema=0.99"]


def test_epochs_by_hand() -> None:
    usual = Exposure(images=100, epochs=3)
    assert [usual.epochs_of(n) for n in (10, 30, 33, 34, 1000)] == [10, 4, 4, 3, 3]
    train = resolve(None, ["train.search_epochs=7"], {"target": ["cpu"]}).train
    assert supernet_epochs(train, 850) == {"warmup": 57, "search": 7, "settle": 6}  # 48000 / 850, given, 4800 / 850


def test_a_network_by_itself_sees_as_much_as_a_pick_with_its_supernet() -> None:
    parts = [*SUPERNET.values(), PICK]
    assert Exposure(sum(part.images for part in parts), sum(part.epochs for part in parts), True) == BY_ITSELF
    assert BY_ITSELF.epochs_of(2224) == 100 and BY_ITSELF.epochs_of(1_000_000) == 4 + 2 + 1 + 5


def test_a_supernets_recipe_is_what_the_settings_say() -> None:
    config = resolve(None, [*SETTINGS, "train.lr=0.01", "gates.lr=0.5", "gates.every=2", "gates.tau_start=3.0",
                            "gates.tau_end=0.5", "train.largest_first=0.5", "train.blockwise=0.25", "train.ema=0.9",
                            "train.attend=best-up", "train.attend_to=4", "prune=layers"], {"target": ["cpu"]})
    data = colours()
    recipe = SupernetRecipe.from_config(config, data)
    assert recipe == SupernetRecipe(
        epochs=supernet_epochs(config.train, len(data.train)), batch=8, lr=0.01, weight_decay=0.03,
        label_smoothing=0.1, augment=data.augment, sandwich_every=config.train.sandwich_every,
        relaxation=config.gates.relaxation, gate_lr=0.5, gate_every=2, tau=(3.0, 0.5), prune="layers",
        latency=config.gates.term, update=config.gates.update,
        inplace="kl", ema=0.9, accumulate=2, amp="bf16", widths=config.gates.widths, attend="best-up", attend_to=4,
        largest_first=0.5, blockwise=0.25, policy="randaugment", erase=0.25)


@pytest.mark.parametrize(("distill", "weight"), [("none", 0.0), ("kd", 0.5), ("hints", 0.5)])
def test_a_fine_tuning_recipe_is_what_the_settings_say(distill: str, weight: float) -> None:
    config = resolve(None, [*SETTINGS, "train.finetune_lr=0.004"], {"target": ["cpu"]})
    data = colours()
    recipe = FineTuningRecipe.from_config(config, data, Exposure(images=2 * len(data.learn), epochs=1), distill)
    assert recipe == FineTuningRecipe(epochs=2, batch=8, lr=0.004, weight_decay=0.03, label_smoothing=0.1,
                                      augment=data.augment, distill_weight=weight, accumulate=2, amp="bf16",
                                      distill=distill, policy="randaugment", erase=0.25, mix="both", ema=0.99)


def test_epochs_and_augmentation_that_are_given_are_taken() -> None:
    config = resolve(None, ["train.finetune_epochs=0", "train.augment=none"], {"target": ["cpu"]})
    recipe = FineTuningRecipe.from_config(config, colours(), PICK)
    assert (recipe.epochs, recipe.augment, recipe.distill_weight) == (0, "none", 0.0)
