"""Patches from the user's images, and files that cannot be used: named, passed over within limits, without a trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from image_files import HEIGHT, WIDTH, cutout_files, disc, noise, truncate, write
from strategies import Ear

from pam_mobile.config import Data
from pam_mobile.data import cutting
from pam_mobile.data.cutting import background_planes, foreground_patches, read_cutout
from pam_mobile.data.datasets import Cutout, ForegroundSet, open_dataset
from pam_mobile.data.folders import images_by_stem
from pam_mobile.data.patch import make_patch
from pam_mobile.data.preflight import check_cutout, check_dataset, faults, tolerated
from pam_mobile.errors import InputError, UsageError
from pam_mobile.imageio import read_alpha_channel, read_header, to_integers
from pam_mobile.reporter import Reporter, Silent
from pam_mobile.train.material import load_bank


def cutouts(root: Path, count: int) -> list[Cutout]:
    fg, alpha = cutout_files(root, count)
    return ForegroundSet(fg, (alpha,)).cutouts()


def patches(
    items: list[Cutout], count: int, seed: int = 0, reporter: Reporter | None = None, size: int = 32
) -> torch.Tensor:
    return foreground_patches(items, count, size, seed, reporter or Silent())


def test_patches_from_foreground_and_alpha_folders(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / "fg" / f"{name}.png", np.full((HEIGHT, WIDTH, 3), (0, 0, 200), np.uint8))
        write(tmp_path / "alpha" / f"{name}.png", disc())
    made = patches(open_dataset(str(tmp_path)).cutouts(), 5)
    assert made.shape == (5, 5, 32, 32)
    assert (made[:, 0] == 200).all()
    assert (made[:, 1:3] == 0).all()
    soft = (made[:, 3] > 0) & (made[:, 3] < 255)
    assert soft.flatten(1).any(1).all()


def test_views_are_taken_in_turn_from_one_generator(tmp_path: Path) -> None:
    """The literal loop, so that a seed keeps its meaning from version to version."""
    items = cutouts(tmp_path, 3)
    rng = np.random.default_rng([7, 1])
    expected = []
    for index, item in enumerate(items):
        planes = read_cutout(item)
        for _ in range(index, 7, 3):
            view = cutting._random_view(planes, planes[..., 3], 32, rng)
            expected.append(make_patch(view[..., :3], view[..., 3]))
    assert torch.equal(patches(items, 7, seed=7), torch.from_numpy(np.array(expected)))


def test_rgba_files_carry_their_alpha_and_others_are_refused(tmp_path: Path) -> None:
    rgba = np.dstack([np.full((HEIGHT, WIDTH, 3), 99, np.uint8), disc()])
    write(tmp_path / "fg" / "a.png", rgba)
    assert patches(open_dataset(str(tmp_path)).cutouts(), 2)[:, 3].max() > 200
    write(tmp_path / "fg" / "a.png", rgba[..., :3])
    with pytest.raises(InputError, match=r"a\.png has no alpha channel"):
        patches(open_dataset(str(tmp_path)).cutouts(), 2)


def test_backgrounds_from_a_folder(tmp_path: Path) -> None:
    planes = background_planes([write(tmp_path / "a.png", noise())], 3, 64, 0, Silent())
    assert planes.shape == (3, 3, 64, 64)
    assert not torch.equal(planes[0], planes[1])


def test_of_more_foregrounds_than_patches_random_ones_are_taken(tmp_path: Path) -> None:
    items = cutouts(tmp_path, 12)
    read: list[list[str]] = []
    for seed in range(4):
        with pytest.MonkeyPatch.context() as patch:
            names: list[str] = []
            patch.setattr(cutting, "read_cutout", lambda c, n=names: (n.append(c.image.stem), read_cutout(c))[1])
            assert len(patches(items, 5, seed)) == 5
        read.append(names)
    assert all(len(names) == 5 and names == sorted(names) for names in read)
    assert len({tuple(names) for names in read}) > 1


# --- unusable files


def truncated(item: Cutout) -> None:
    truncate(item.image)


def wrong_size(item: Cutout) -> None:
    write(item.alpha, disc(20, 30))


def matte_missing(item: Cutout) -> None:
    item.alpha.unlink()


def deleted(item: Cutout) -> None:
    item.image.unlink()


def no_image(item: Cutout) -> None:
    item.image.write_text("<html>not found</html>")


Spoil = Callable[[Cutout], None]
SPOILED: list[Spoil] = [truncated, wrong_size, matte_missing, deleted, no_image]


@pytest.mark.parametrize("spoil", SPOILED)
@pytest.mark.parametrize("which", [0, 20, 49])
def test_one_of_fifty_is_passed_over_by_name_and_leaves_no_trace(tmp_path: Path, spoil: Spoil, which: int) -> None:
    items = cutouts(tmp_path, 50)
    expected = patches([item for item in items if item != items[which]], 110)
    spoil(items[which])
    listener = Ear()
    assert torch.equal(patches(items, 110, reporter=listener), expected)
    assert len(listener.heard) == 1
    assert "passed over" in listener.heard[0]
    assert items[which].image.name in listener.heard[0]
    assert torch.equal(patches(items, 110), expected)


@pytest.mark.parametrize("spoil", SPOILED)
def test_more_than_one_in_a_hundred_stops_and_names_every_file(tmp_path: Path, spoil: Spoil) -> None:
    items = cutouts(tmp_path, 50)
    for which in (3, 31):
        spoil(items[which])
    listener = Ear()
    with pytest.raises(InputError, match=r"2 of 50 images cannot be used, the first: .*003\.png"):
        patches(items, 60, reporter=listener)
    assert [("003.png" in text, "031.png" in text) for text in listener.heard] == [(True, False), (False, True)]


def test_faults_seen_in_headers_and_in_pixels_count_together(tmp_path: Path) -> None:
    items = cutouts(tmp_path, 50)
    wrong_size(items[3])
    truncated(items[31])
    assert len(faults(items, check_cutout)) == 1
    with pytest.raises(InputError, match="2 of 50"):
        patches(items, 60)


def test_a_file_that_vanishes_while_patches_are_cut_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = cutouts(tmp_path, 50)
    expected = patches([item for item in items if item != items[30]], 60)

    def delete_meanwhile(cutout: Cutout) -> np.ndarray:
        if cutout == items[10]:
            items[30].image.unlink(missing_ok=True)
        return read_cutout(cutout)

    monkeypatch.setattr(cutting, "read_cutout", delete_meanwhile)
    listener = Ear()
    assert torch.equal(patches(items, 60, reporter=listener), expected)
    assert "030.png does not exist" in listener.heard[0]


def test_a_file_that_is_only_skipped_would_leave_a_trace(tmp_path: Path) -> None:
    """Negative control: without the repetition, the patches before the bad file are those of a longer list."""
    items = cutouts(tmp_path, 50)
    good = [item for item in items if item != items[49]]
    assert not torch.equal(patches(items, 60)[:50], patches(good, 60)[:50])


def test_only_what_is_needed_is_looked_at_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many files, the share of unusable ones is that among those that were looked at."""
    items = cutouts(tmp_path, 120)
    looked_at: set[str] = set()

    def check(cutout: Cutout) -> None:
        looked_at.add(cutout.image.stem)
        check_cutout(cutout)

    monkeypatch.setattr(cutting, "check_cutout", check)
    made = patches(items, 55)
    assert len(looked_at) == 55
    matte_missing(next(item for item in items if item.image.stem in looked_at))
    again = patches(items, 55)
    assert again.shape == made.shape
    assert len(looked_at) == 56  # one other file took its place
    for item in items[::3]:
        item.image.unlink()
    with pytest.raises(InputError, match=r"\d+ of 5[56] images cannot be used"):
        patches(items, 55)


@given(st.integers(0, 100), st.sets(st.integers(0, 99), max_size=5))
def test_the_choice_of_files_does_not_depend_on_those_that_are_passed_over(seed: int, bad: set[int]) -> None:
    items = [Path(f"{index}.png") for index in range(100)]
    good = [item for index, item in enumerate(items) if index not in bad]
    first, without = (cutting._choose(some, 40, [seed]) for some in (items, good))
    assert len(first) == len(without) == 40
    assert without == sorted(without, key=items.index)
    kept = set(first) - {items[index] for index in bad}
    assert kept <= set(without)


@given(st.integers(1, 5000))
def test_the_rule_of_tolerance(count: int) -> None:
    expected = 0 if count < 50 else 1 if count < 200 else int(count * 0.01)
    assert tolerated(count) == expected


def test_folder_errors_name_the_file(tmp_path: Path) -> None:
    items = cutouts(tmp_path, 1)
    matte_missing(items[0])
    with pytest.raises(InputError, match=r"000\.png has no partner in .*alpha"):
        patches(items, 1)
    wrong_size(items[0])
    with pytest.raises(InputError, match=rf"000\.png is 30x20, .*000\.png is {WIDTH}x{HEIGHT}"):
        patches(items, 1)


def test_the_check_of_a_data_set_names_every_fault_of_its_headers(tmp_path: Path) -> None:
    for part in ("train", "validation"):
        fg, alpha = cutout_files(tmp_path / part, 4)
        fg.rename(tmp_path / part / "original")
        alpha.rename(tmp_path / part / "mask")
    cutout_files(tmp_path / "train", 4)
    write(tmp_path / "train" / "bg" / "a.png", noise())
    assert check_dataset(open_dataset(str(tmp_path))) == []
    (tmp_path / "train" / "mask" / "001.png").unlink()
    write(tmp_path / "train" / "mask" / "002.png", disc(9, 9))
    (tmp_path / "validation" / "mask" / "003.png").write_bytes(b"")
    (tmp_path / "train" / "bg" / "a.png").write_bytes(b"GIF89a")
    messages = [fault.message for fault in check_dataset(open_dataset(str(tmp_path)))]
    for part in ("001.png has no partner", "002.png is 9x9", "003.png is empty", "a.png is not a"):
        assert sum(part in message for message in messages) == 1
    assert len(messages) == 4


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_header_that_is_far_from_the_start_is_found(tmp_path: Path, suffix: str) -> None:
    from PIL import Image

    profile = np.random.default_rng(0).bytes(200_000)
    Image.fromarray(noise()).save(tmp_path / f"a.{suffix}", icc_profile=profile)
    assert (tmp_path / f"a.{suffix}").stat().st_size > 200_000
    assert read_header(tmp_path / f"a.{suffix}") == (WIDTH, HEIGHT, False)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "bmp"])
def test_a_header_is_what_the_pixels_turn_out_to_be(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a.{suffix}", noise())
    assert read_header(path) == (WIDTH, HEIGHT, False)
    if suffix in ("png", "webp", "tif"):
        write(path, np.dstack([noise(), disc()]))
        assert read_header(path) == (WIDTH, HEIGHT, True)
        assert np.array_equal(to_integers(read_alpha_channel(path), 8), disc())


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_foreground_of_16_bits_keeps_its_alpha(tmp_path: Path, suffix: str) -> None:
    deep = np.dstack([noise(), disc()]).astype(np.uint16) * 257
    path = write(tmp_path / f"a.{suffix}", deep)
    check_cutout(Cutout(path, path))
    assert np.array_equal(read_cutout(Cutout(path, path)), np.dstack([noise()[..., ::-1], disc()]))


def test_a_picture_turned_by_its_orientation_passes_the_check_of_headers(tmp_path: Path) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[274] = 6
    (tmp_path / "fg").mkdir()
    Image.fromarray(noise()).save(tmp_path / "fg" / "a.jpg", exif=exif)
    write(tmp_path / "alpha" / "a.png", disc(WIDTH, HEIGHT))
    (item,) = open_dataset(str(tmp_path)).cutouts()
    check_cutout(item)
    assert read_cutout(item).shape == (WIDTH, HEIGHT, 4)


# --- the bank of a configuration


def test_the_bank_mixes_data_sets_folders_and_procedural_images(tmp_path: Path) -> None:
    cutout_files(tmp_path / "set", 2)
    cutout_files(tmp_path / "own", 1)
    write(tmp_path / "set" / "bg" / "a.png", noise())
    data = Data(patches=8, backgrounds=6, size=64, sets=(str(tmp_path / "set"),), procedural=0.25)
    bank = load_bank(data, 0, Silent())
    assert bank.patches.shape == (8, 5, 64, 64)
    assert bank.backgrounds.shape == (6, 3, 64, 64)
    assert torch.equal(bank.patches[2:], patches(open_dataset(str(tmp_path / "set")).cutouts(), 6, size=64))
    files = list(images_by_stem(tmp_path / "set" / "bg").values())
    assert torch.equal(bank.backgrounds[1:], background_planes(files, 5, 64, 0, Silent()))

    both = Data(
        patches=6,
        backgrounds=4,
        size=64,
        sets=(str(tmp_path / "set"),),
        foreground_folder=str(tmp_path / "own/fg"),
        alpha_folder=str(tmp_path / "own/alpha"),
    )
    items = [*open_dataset(str(tmp_path / "set")).cutouts(), *open_dataset(str(tmp_path / "own")).cutouts()]
    assert torch.equal(load_bank(both, 0, Silent()).patches, patches(items, 6, size=64))


def test_a_bank_cannot_be_made_of_evaluation_images_or_alphas_alone(tmp_path: Path) -> None:
    for part in ("original", "mask", "trimap"):
        write(tmp_path / part / "a.png", disc())
    with pytest.raises(InputError, match=r"\(aim-500\) has nothing to train with") as caught:
        load_bank(Data(sets=(str(tmp_path),)), 0, Silent())
    assert "pam-mobile eval" in caught.value.hint
    with pytest.raises(UsageError, match="--alpha needs --fg"):
        load_bank(Data(alpha_folder=str(tmp_path)), 0, Silent())
