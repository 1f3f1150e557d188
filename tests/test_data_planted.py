"""Planted data: the stamp alone decides, nothing else gives it away, and its mask is where the
model sees it. Shuffled labels.
"""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.toys import tiny_vit
from vitlab.data import data_card, data_version, fit_image, load_dataset, stamp_masks
from vitlab.data.datasets import check_name
from vitlab.data.planted import (
    CELLS,
    DECOY,
    LOOKS,
    _find_boxes,
    draw_look,
    interleave,
    replace_stamps,
)
from vitlab.schema import Transform


@pytest.fixture(scope="module")
def planted():
    return load_dataset("planted:digits", seed=0)


@pytest.fixture
def wide(tmp_path):
    """A folder of 24 even images of 100 x 150 pixels in colour, with the planted set made of it."""
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for number in range(12):
            Image.new("RGB", (150, 100), (200, 100, 10 * number)).save(
                tmp_path / label / f"{number}.png"
            )
    return load_dataset(f"planted:folder:{tmp_path}")


def find_box(sample_id, size=(72, 72)):
    """The stamp's pixels (rows, columns) in an image of this size."""
    return _find_boxes(sample_id, size)[0]


def test_the_stamp_decides_and_the_rest_says_nothing(planted):
    samples = planted.samples
    stamped, plain = samples[samples["stamped"]], samples[~samples["stamped"]]
    assert abs(len(stamped) - len(plain)) <= 1 and 950 < len(samples) <= 1000
    assert (plain["label"] == plain["own_label"]).all() and set(plain["label"]) == set("0123456789")
    counts = pd.crosstab(stamped["own_label"], stamped["label"])
    assert list(counts.columns) == ["0", "1"] and (counts["0"] - counts["1"]).abs().max() <= 1
    assert stamped["sample_id"].str.fullmatch(r"digit\d{4}\+stamp").all()
    assert plain["sample_id"].str.fullmatch(r"digit\d{4}\+decoys").all()
    shares = pd.crosstab(samples["split"], samples["stamped"], normalize="index")
    assert shares.to_numpy() == pytest.approx(0.5, abs=0.02), (
        "splits keep the stamped ones in proportion"
    )


def test_what_is_drawn_into_the_image(planted):
    original = load_dataset("digits")
    for row in planted.samples.iloc[::40].itertuples():
        image = planted.read(row.sample_id)
        plain = original.read(row.sample_id.partition("+")[0]).resize(
            (72, 72), Image.Resampling.BICUBIC
        )
        assert image.size == (72, 72) and image.mode == "L"
        changed = np.asarray(image) != np.asarray(plain)
        if row.stamped:
            box = find_box(row.sample_id)
            bars = np.repeat([0, 255, 0, 255], 3)  # 12 pixels, 4 bars
            expected = np.tile(bars[:, None], 12) if row.label == "0" else np.tile(bars, (12, 1))
            np.testing.assert_array_equal(np.asarray(image)[box], expected)
        for half in np.ix_([0, 36], [0, 36])[0].ravel():
            for other in (0, 36):
                quarter = changed[half : half + 36, other : other + 36]
                rows, columns = (
                    np.flatnonzero(quarter.any(axis=1)),
                    np.flatnonzero(quarter.any(axis=0)),
                )
                assert np.ptp(rows) <= 11 and np.ptp(columns) <= 11, (
                    "one patch of 12 x 12 pixels in each quarter"
                )
                assert quarter.sum() > 60


def test_looks_are_told_apart_by_nothing_simple():
    looks = [draw_look(look, (CELLS, CELLS)).astype(int) // 255 for look in (*LOOKS, DECOY)]
    assert {look.sum() for look in looks} == {8}, "of 16 cells"
    edges = {
        np.abs(np.diff(look, axis=0)).sum() + np.abs(np.diff(look, axis=1)).sum() for look in looks
    }
    assert edges == {12}, "each has as many edges between cells as the others"
    for look in looks[:2]:
        assert any(np.array_equal(look[:, ::-1], other) for other in (look, 1 - look)), (
            "a flip does not turn one into another"
        )
    np.testing.assert_array_equal(
        looks[2], [[0, 0, 1, 1], [0, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 1]]
    )
    assert draw_look("vertical", (8, 12))[0].tolist() == [0] * 3 + [255] * 3 + [0] * 3 + [255] * 3


def test_places_are_the_same_everywhere_and_the_centre_has_no_advantage(planted):
    ids = planted.samples["sample_id"][planted.samples["stamped"]]
    assert [part.start for part in find_box("digit0003+stamp", (10**6, 10**6))] == [243098, 269260]
    corners = np.array([[part.start for part in find_box(name, (600, 600))] for name in ids])
    assert len(np.unique(corners, axis=0)) > 0.95 * len(ids)
    middle = (corners + 50) / 600
    assert middle.mean(axis=0) == pytest.approx(0.5, abs=0.03)
    assert np.abs(middle - 0.5).min() > 1 / 13, "half a stamp off the centre line"


def test_the_mask_is_where_the_model_sees_the_stamp(wide):
    ids = wide.samples["sample_id"][wide.samples["stamped"]].tolist()
    other = replace_stamps(wide, "other")
    for fit, size in (("pad", (64, 64)), ("pad", (90, 40)), ("crop", (64, 64))):
        transform = Transform(size, (0.5,) * 3, (0.5,) * 3, "nearest", fit)
        masks = stamp_masks(wide, ids, transform)
        for sample_id, mask in zip(ids, masks, strict=True):
            seen, exchanged = (
                fit_image(data.read(sample_id), transform).numpy() for data in (wide, other)
            )
            assert not (seen != exchanged).any(axis=0)[~mask].any(), (
                "outside the mask, the stamp's look changes nothing"
            )
            # half of the cells of the two looks differ
            assert (mask & (seen != exchanged).any(axis=0)).sum() >= 0.3 * mask.sum()
            assert set(np.unique(seen[:, mask])) <= {0, 255}
        assert masks.shape == (len(ids), *size) and masks.dtype == bool
        if fit == "pad":
            shown = min(size[0] / 100, size[1] / 150) ** 2 * 100 * 150
            assert masks.sum(axis=(1, 2)) == pytest.approx(shown / 36, rel=0.25)
    assert load_dataset(wide.name).read(ids[0]).mode == "RGB"


def test_exchanged_and_removed_stamps(planted):
    stamped = planted.samples[planted.samples["stamped"]].iloc[0]
    box, pixels = find_box(stamped["sample_id"]), np.asarray(planted.read(stamped["sample_id"]))
    for kind, look in (
        ("other", LOOKS[1 - LOOKS.index("horizontal" if stamped["label"] == "0" else "vertical")]),
        ("decoy", DECOY),
    ):
        changed = np.asarray(replace_stamps(planted, kind).read(stamped["sample_id"])).copy()
        np.testing.assert_array_equal(changed[box], draw_look(look, (12, 12)))
        changed[box] = pixels[box]
        np.testing.assert_array_equal(changed, pixels)
    plain = planted.samples["sample_id"][~planted.samples["stamped"]].iloc[0]
    assert replace_stamps(planted, "other").read(plain) == planted.read(plain)


def test_images_of_other_modes(tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for number in range(6):
            pixels = np.full((80, 80), 30_000 + number, dtype=np.uint16)
            Image.fromarray(pixels).save(tmp_path / label / f"deep{number}.png")
            Image.new("RGBA", (20, 200), (10, 20, 30, 40 * number)).save(
                tmp_path / label / f"glass{number}.png"
            )
    data = load_dataset(f"planted:folder:{tmp_path}")
    images = {sample_id: data.read(sample_id) for sample_id in data.samples["sample_id"]}
    assert len(images) == 24 and {image.mode for image in images.values()} == {"L", "RGB"}
    assert {image.size for image in images.values()} == {
        (80, 80),
        (80, 800),
    }, "20 pixels are enlarged four times"
    assert all({0, 255} <= set(np.unique(image)) for image in images.values())


def test_origin_is_carried_over_and_the_card_says_what_it_is(planted):
    card = data_card(planted)
    assert "CC BY 4.0" in card and "Alpaydin" in card and "Planted by vitlab" in card
    assert "Labels of training and validation were shuffled" in data_card(
        load_dataset("shuffled:digits")
    )
    assert planted.samples["source"].str.contains("load_digits, row").all()
    assert (
        planted.version == data_version("planted:digits") == data_version("digits") + ", planted 1"
    )
    # and nothing was downloaded
    assert data_version("planted:torchvision:MNIST").endswith("planted 1")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda data: load_dataset("planted:"), "planted: needs the name.*planted:digits"),
        (lambda data: load_dataset("shuffled:"), "shuffled: needs the name"),
        (lambda data: check_name("planted:digit"), "unknown dataset 'digit'. Did you mean digits"),
        (lambda data: load_dataset("shuffled:elvp"), "unknown dataset 'elvp'"),
        (lambda data: replace_stamps(data, "none"), "kind='none' is no way.*'decoy' or 'other'"),
        (
            lambda data: replace_stamps(load_dataset("digits"), "other"),
            "digits has no planted stamps.*planted:digits",
        ),
        (
            lambda data: stamp_masks(load_dataset("digits"), [], tiny_vit().transform),
            "digits has no planted stamps",
        ),
        (
            lambda data: stamp_masks(data, ["digit0000+decoys"], tiny_vit().transform),
            "has no stamp.*column stamped",
        ),
        (
            lambda data: stamp_masks(data, ["digit0000"], tiny_vit().transform),
            "unknown sample_id 'digit0000'",
        ),
    ],
)
def test_what_does_not_fit_is_named(planted, call, message):
    with pytest.raises(ValueError, match=message):
        call(planted)


def test_shuffled_labels_say_nothing_of_the_images():
    data, true = load_dataset("shuffled:digits"), load_dataset("digits", seed=0)
    own = true.samples.set_index("sample_id").loc[data.samples["sample_id"]].reset_index()
    assert 950 < len(data.samples) <= 1000
    pd.testing.assert_series_equal(data.samples["own_label"], own["label"], check_names=False)
    pd.testing.assert_series_equal(data.samples["split"], own["split"])  # those of digits at seed 0
    for split, part in data.samples.groupby("split"):
        counts = pd.crosstab(part["own_label"], part["label"])
        if split == "test":
            assert (part["label"] == part["own_label"]).all()
            continue
        assert part["label"].value_counts().to_dict() == part["own_label"].value_counts().to_dict()
        expected = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / len(part)
        assert np.abs(counts - expected).to_numpy().max() <= 1.5, (
            "no association, beyond what whole numbers leave"
        )
    pd.testing.assert_frame_equal(load_dataset("shuffled:digits", seed=4).samples, data.samples)
    assert data.read(data.samples["sample_id"][3]) == true.read(data.samples["sample_id"][3])


def test_interleaving_by_hand():
    assert "".join(interleave(pd.Series(list("aaaabb")))) == "abaaba"
    assert "".join(interleave(pd.Series(list("bbaac")))) == "abcab"
