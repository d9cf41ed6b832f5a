"""The papers' recipes."""

from __future__ import annotations

import pytest

from dnas.errors import UserError
from dnas.networks import network_names
from dnas.training.recipes import load_recipe, recipe_for, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_is_valid_and_is_for_known_networks(name):
    from fnmatch import fnmatch

    recipe = load_recipe(name)
    assert recipe.paper
    assert any(fnmatch(known, pattern) for pattern in recipe.networks for known in network_names())
    assert name.split("_")[0] in recipe.paper.lower()


def test_figures_of_regseg():
    """Version 3, section 4.2."""
    recipe = load_recipe("regseg_v3_cityscapes").retrain
    assert recipe.ohem_loss == 0.3
    assert recipe.ohem_min_fraction == 1 / 16
    assert recipe.augmentation.rand_augment is not None
    assert (recipe.augmentation.rand_augment.count, recipe.augmentation.rand_augment.magnitude) == (2, 0.2)
    assert [1024 * scale for scale in recipe.augmentation.scale] == [400, 1600]
    camvid = load_recipe("regseg_camvid").retrain
    assert [720 * scale for scale in camvid.augmentation.scale] == pytest.approx([288, 1152])
    assert (camvid.trained_on, camvid.validated_on) == ("trainval", "test")
    imagenet = load_recipe("regseg_v3_cityscapes_imagenet").retrain
    assert 1 - (imagenet.ema_decay or 0) == pytest.approx(0.0031)


def test_steps_of_eseg_and_fasterseg():
    eseg = load_recipe("eseg_cityscapes").retrain
    assert round(eseg.epochs * 2975 / eseg.batch_size, -3) == 90_000
    fasterseg = load_recipe("fasterseg_cityscapes").retrain
    assert fasterseg.sampling.repeat * 2975 // fasterseg.batch_size == pytest.approx(1000, rel=0.01)


def test_networks_take_their_recipe_by_themselves():
    assert recipe_for("regseg", "cityscapes") == "regseg_v3_cityscapes"
    assert recipe_for("regseg_dnas", "camvid") == "regseg_camvid"
    assert recipe_for("dwrseg_l", "camvid") == recipe_for("dwrseg_l", "camvid701") == "dwrseg_camvid"
    assert recipe_for("eseg_lite_s", "cityscapes") == "eseg_lite_cityscapes"
    assert recipe_for("fasterseg_student", "cityscapes") == "fasterseg_cityscapes"
    assert recipe_for("regseg", "rectangles") is None
    with pytest.raises(UserError, match=r"unknown recipe 'regsegg'; known recipes: .*regseg_camvid"):
        load_recipe("regsegg")
