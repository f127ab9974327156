"""Every layout that is supported, on folders made for the purpose; which is meant, and what is missing."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import HEIGHT, WIDTH, cutout_files, disc, noise, write, write_all

from pam_mobile.data.cutting import read_cutout
from pam_mobile.data.datasets import image_trimap_alpha, open_dataset, read_triple
from pam_mobile.data.folders import images_by_stem, partners
from pam_mobile.data.layouts import LAYOUTS, NAMES
from pam_mobile.data.trimap import BACKGROUND, FOREGROUND, TRIMAP_RADIUS, UNKNOWN, trimap_from_alpha
from pam_mobile.errors import InputError

COMPOSITES = [f"cat_{index}.png" for index in range(20)]

# name, files, (foregrounds, backgrounds, evaluation images)
SETS: list[tuple[str, dict[str, list[str]], tuple[int, int, int]]] = [
    (
        "adobe",
        {
            "Combined_Dataset/Training_set/Adobe-licensed images/fg": ["a.jpg", "b.jpg"],
            "Combined_Dataset/Training_set/Adobe-licensed images/alpha": ["a.jpg", "b.jpg"],
            "Combined_Dataset/Training_set/Other/fg": ["a.png"],
            "Combined_Dataset/Training_set/Other/alpha": ["a.png"],
            "Combined_Dataset/Test_set/Adobe-licensed images/alpha": ["cat.png"],
            "Combined_Dataset/Test_set/trimaps": COMPOSITES,
            "Combined_Dataset/Test_set/merged": COMPOSITES,
        },
        (3, 0, 20),
    ),
    (
        "adobe",
        {
            "Combined_Dataset/Training_set/fg": ["a.png", "b.png"],
            "Combined_Dataset/Training_set/alpha": ["a.png", "b.png"],
            "Combined_Dataset/Training_set/train2014": ["COCO_1.jpg", "COCO_2.jpg", "COCO_3.jpg"],
            "Combined_Dataset/Test_set/alpha": ["cat.png"],
            "Combined_Dataset/Test_set/trimaps": COMPOSITES,
            "Combined_Dataset/Test_set/merged": COMPOSITES,
        },
        (2, 3, 20),
    ),
    ("distinctions-646", {"Train/FG": ["a.jpg"], "Train/GT": ["a.png"], "Test/GT": ["b.png"]}, (1, 0, 0)),
    ("transparent-460", {"Train/fg": ["a.jpg"], "Train/alpha": ["a.png"]}, (1, 0, 0)),
    (
        "simd",
        {
            "train/fur/fg": ["a.png"],
            "train/fur/alpha": ["a.png"],
            "train/net/fg": ["a.png"],
            "train/net/alpha": ["a.png"],
        },
        (2, 0, 0),
    ),
    ("aim-500", {"original": ["a.jpg"], "mask": ["a.png"], "trimap": ["a.png"]}, (0, 0, 1)),
    (
        "am-2k",
        {
            "train/original": ["m_1.jpg", "m_2.jpg"],
            "train/mask": ["m_1.png", "m_2.png"],
            "train/fg": ["m_1.png", "m_2.png"],
            "train/bg": ["m_1.png"],
            "validation/original": ["m_3.jpg"],
            "validation/mask": ["m_3.png"],
            "validation/trimap": ["m_3.png"],
        },
        (2, 1, 1),
    ),
    (
        "p3m-10k",
        {
            "train/blurred_image": ["p_1.jpg"],
            "train/mask": ["p_1.png"],
            "train/fg": ["p_1.png"],
            "validation1/blurred_image": ["p_2.jpg"],
            "validation1/mask": ["p_2.png"],
            "validation1/trimap": ["p_2.png"],
            "validation2/original_image": ["n_1.jpg", "n_2.jpg"],
            "validation2/mask": ["n_1.png", "n_2.png"],
            "validation2/trimap": ["n_1.png", "n_2.png"],
        },
        (1, 0, 3),
    ),
    ("p3m-500-p", {"blurred_image": ["a.jpg"], "mask": ["a.png"], "trimap": ["a.png"]}, (0, 0, 1)),
    ("p3m-500-np", {"original_image": ["a.jpg"], "mask": ["a.png"], "trimap": ["a.png"]}, (0, 0, 1)),
    ("bg-20k", {"train": ["h_1.jpg", "h_2.jpg"], "testval": ["h_3.jpg"]}, (0, 2, 0)),
    ("pair", {"fg": ["a.png", "b.png"], "alpha": ["a.jpg", "b.jpg"], "bg": ["x.jpg"]}, (2, 1, 0)),
    ("pair", {"fg": ["a.png"]}, (1, 0, 0)),
    ("real", {"image": ["a.jpg"], "alpha": ["a.png"], "trimap": ["a.png"]}, (1, 0, 1)),
    ("real", {"image": ["a.jpg"], "alpha": ["a.png"]}, (1, 0, 1)),
    ("backgrounds", {"bg": ["a.jpg"]}, (0, 1, 0)),
]


@pytest.mark.parametrize(("name", "files", "counts"), SETS, ids=[f"{i}-{row[0]}" for i, row in enumerate(SETS)])
def test_a_layout_is_recognised_and_its_files_are_found(
    tmp_path: Path, name: str, files: dict[str, list[str]], counts: tuple[int, int, int]
) -> None:
    write_all(tmp_path, files)
    for spec in (str(tmp_path), f"{name}:{tmp_path}"):
        data = open_dataset(spec)
        assert data.layout == name
        cutouts, triples = data.cutouts(), data.triples()
        assert (len(cutouts), len(data.background_files()), len(triples)) == counts
    for cutout in cutouts:
        assert cutout.image.stem == cutout.alpha.stem
        assert cutout.image.parent.parent == cutout.alpha.parent.parent
        assert cutout.photo == (name == "real")
    for triple in triples:
        photo, trimap, alpha = read_triple(triple)
        assert photo.shape == (HEIGHT, WIDTH, 3)
        assert set(np.unique(trimap)) <= {BACKGROUND, UNKNOWN, FOREGROUND}
        assert (alpha == disc()).all() or triple.alpha.suffix == ".jpg"


def test_every_layout_has_a_case() -> None:
    assert {row[0] for row in SETS} == set(NAMES)


def test_signatures_tell_the_layouts_apart(tmp_path: Path) -> None:
    for index, layout in enumerate(LAYOUTS):
        root = tmp_path / str(index)
        for folder in layout.signature:
            (root / folder.replace("**/", "").replace("*", "x")).mkdir(parents=True)
        assert open_dataset(str(root)).layout == layout.name


def test_an_unknown_folder_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no layout that is known") as caught:
        open_dataset(str(tmp_path))
    assert caught.value.hint.startswith("it needs image/ and alpha/, or fg/; write NAME:ROOT")
    assert all(layout.name in caught.value.hint for layout in LAYOUTS)
    assert len(caught.value.hint) < 250
    for layout in LAYOUTS:
        with pytest.raises(InputError, match=f"known as {layout.name}") as caught:
            open_dataset(f"{layout.name}:{tmp_path}")
        assert all(folder in caught.value.hint for folder in layout.signature)
    with pytest.raises(InputError, match="known as am-2k") as caught:
        open_dataset(f"am-2k:{tmp_path}")
    assert caught.value.hint == "looked for am-2k: train/original, train/mask, train/fg"
    with pytest.raises(InputError, match="is not a folder") as caught:
        open_dataset(f"am2k:{tmp_path}")
    assert "am-2k" in caught.value.hint


def test_an_ambiguous_folder_must_be_named(tmp_path: Path) -> None:
    write_all(tmp_path, {"fg": ["a.png"], "image": ["a.png"], "alpha": ["a.png"]})
    with pytest.raises(InputError, match="more than one layout") as caught:
        open_dataset(str(tmp_path))
    assert f"pair:{tmp_path}" in caught.value.hint
    assert open_dataset(f"pair:{tmp_path}").train[0].images.name == "fg"
    assert open_dataset(f"real:{tmp_path}").train[0].images.name == "image"


def test_a_set_without_a_test_split_cannot_be_evaluated_on(tmp_path: Path) -> None:
    write_all(tmp_path, {"fg": ["a.png"], "alpha": ["a.png"]})
    with pytest.raises(InputError, match=r"\(pair\) has no images to evaluate on"):
        image_trimap_alpha(str(tmp_path))


def test_a_missing_partner_is_named(tmp_path: Path) -> None:
    write_all(tmp_path, {part: ["x.png", "y.png"] for part in ("image", "trimap", "alpha")})
    assert [t.name for t in image_trimap_alpha(str(tmp_path))] == ["x", "y"]
    (tmp_path / "alpha" / "y.png").unlink()
    with pytest.raises(InputError, match=r"y\.png has no partner in .*alpha"):
        image_trimap_alpha(str(tmp_path))
    write(tmp_path / "alpha" / "y.png", disc())
    (tmp_path / "trimap" / "x.png").unlink()
    with pytest.raises(InputError, match=r"x\.png has no partner in .*trimap"):
        image_trimap_alpha(str(tmp_path))


@pytest.mark.parametrize(
    ("images", "others", "expected"),
    [
        (
            ["cat_0", "cat_1", "cat_1_0", "cat_1_1", "cat_2"],
            ["cat", "cat_1"],
            ["cat", "cat", "cat_1", "cat_1", "cat"],
        ),
        (["a_1", "a_2"], ["a_1", "a_2"], ["a_1", "a_2"]),
    ],
)
def test_composites_share_an_alpha_even_where_a_foreground_has_a_composites_name(
    tmp_path: Path, images: list[str], others: list[str], expected: list[str]
) -> None:
    for name in others:
        write(tmp_path / f"{name}.png", disc())
    found = partners({name: Path(f"{name}.png") for name in images}, [tmp_path])
    assert [path.stem for path in found] == expected


def test_a_composite_without_its_alpha_is_named(tmp_path: Path) -> None:
    write_all(tmp_path, {"image": ["cat_0.png", "cat_1.png", "dog_0.png"], "alpha": ["cat.png"]})
    with pytest.raises(InputError, match=r"dog_0\.png has no partner") as caught:
        image_trimap_alpha(str(tmp_path))
    assert "add " in caught.value.hint
    assert "dog.png" in caught.value.hint


def test_trimaps_are_brought_back_to_three_values_and_alphas_may_have_three_channels(tmp_path: Path) -> None:
    write(tmp_path / "image" / "a.png", noise())
    greys = np.clip(cv2.GaussianBlur(disc(), (0, 0), 3).astype(int), 3, 250).astype(np.uint8)
    write(tmp_path / "trimap" / "a.png", greys)
    write(tmp_path / "alpha" / "a.png", np.dstack([np.zeros_like(disc()), np.zeros_like(disc()), disc()]))
    _, trimap, alpha = read_triple(image_trimap_alpha(str(tmp_path))[0])
    assert set(np.unique(trimap)) == {BACKGROUND, UNKNOWN, FOREGROUND}
    assert (trimap == np.where(greys < 85, 0, np.where(greys < 170, 128, 255))).all()
    assert (alpha == disc()).all()  # OpenCV writes BGR: the last plane is the file's channel 0


def test_sizes_must_agree(tmp_path: Path) -> None:
    write_all(tmp_path, {"image": ["a.png"], "alpha": ["a.png"], "trimap": ["a.png"]})
    write(tmp_path / "alpha" / "a.png", disc(20, 30))
    with pytest.raises(InputError, match=rf"a\.png is 30x20, .*a\.png is {WIDTH}x{HEIGHT}"):
        read_triple(image_trimap_alpha(str(tmp_path))[0])
    write(tmp_path / "alpha" / "a.png", disc())
    write(tmp_path / "trimap" / "a.png", disc(20, 30))
    with pytest.raises(InputError, match="is 30x20 pixels"):
        read_triple(image_trimap_alpha(str(tmp_path))[0])


def test_a_constant_alpha_without_trimap_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "image" / "a.png", noise())
    write(tmp_path / "alpha" / "a.png", np.full((HEIGHT, WIDTH), 255, np.uint8))
    with pytest.raises(InputError, match="is constant"):
        read_triple(image_trimap_alpha(str(tmp_path))[0])


@given(st.integers(0, 1000))
def test_a_made_trimap_is_the_stated_recipe(seed: int) -> None:
    rng = np.random.default_rng(seed)
    alpha = np.where(rng.random((40, 50)) < 0.998, 255, rng.integers(0, 256, (40, 50))).astype(np.uint8)
    alpha[:, :20] = np.where(rng.random((40, 20)) < 0.998, 0, alpha[:, :20])
    made = trimap_from_alpha(alpha)
    not_foreground, not_background = (
        cv2.distanceTransform((alpha == value).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        for value in (255, 0)
    )
    for value, distance in ((FOREGROUND, not_foreground), (BACKGROUND, not_background)):
        assert (made[distance > TRIMAP_RADIUS + 1] == value).all()
        assert (made[distance < TRIMAP_RADIUS - 1] != value).all()
    assert (made[(alpha > 0) & (alpha < 255)] == UNKNOWN).all()


def test_colours_of_a_photo_are_estimated(tmp_path: Path) -> None:
    """Blue behind a red disc: what is stored is red also where the disc is soft; the photo itself is not."""
    alpha = disc()
    share = alpha[..., None] / 255
    photo = np.rint(share * np.array([0, 0, 220]) + (1 - share) * np.array([220, 0, 0])).astype(np.uint8)
    write(tmp_path / "image" / "a.png", photo)
    write(tmp_path / "alpha" / "a.png", alpha)
    (cutout,) = open_dataset(str(tmp_path)).cutouts()
    soft = (alpha > 40) & (alpha < 215)
    estimated, as_it_is = read_cutout(cutout), read_cutout(cutout._replace(photo=False))
    assert (estimated[..., 3] == alpha).all()
    assert estimated[soft, 2].mean() < 30
    assert as_it_is[soft, 2].mean() > 80


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    fg, _ = cutout_files(tmp_path, 2)
    (fg / "._000.png").write_bytes(b"left by a file manager")
    assert list(images_by_stem(fg)) == ["000", "001"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no images"):
        images_by_stem(tmp_path / "empty")
    with pytest.raises(InputError, match="is not a folder"):
        images_by_stem(tmp_path / "missing")
    write(fg / "000.bmp", noise())
    with pytest.raises(InputError, match="have the same name"):
        images_by_stem(fg)
