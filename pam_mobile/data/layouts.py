"""How the known matting data sets lie on disk: a table from names to folders, and which of them a given folder is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path as FilePath

from ..errors import InputError


@dataclass(frozen=True)
class Place:
    """Where files of equal names lie: folders under the root; `*` stands for any folder, `**` for any number of them.

    Subsets stay apart: an image under `Other/fg` has its alpha in `Other/alpha`.
    """

    image: str
    alpha: str = ""
    """Empty, or not there: the fourth channel of the images."""
    trimap: str = ""
    """Empty, or not there: made from the alpha."""


@dataclass(frozen=True)
class Layout:
    """One way to lay out a data set."""

    name: str
    signature: tuple[str, ...]
    """The folders by which it is known."""
    foregrounds: Place | None = None
    """Training images that hold the colours of the foreground alone."""
    photos: Place | None = None
    """Training images from which the colours of the foreground must be estimated."""
    backgrounds: str = ""
    """Training backgrounds; the folder may be missing."""
    test: tuple[Place, ...] = ()
    without: tuple[str, ...] = ()
    """Folders that it does not have."""

    def fits(self, root: FilePath) -> bool:
        return all(expand(root, f) for f in self.signature) and not any(expand(root, f) for f in self.without)


_REAL = Place("image", "alpha", "trimap")

LAYOUTS = (
    Layout(
        "adobe",
        ("Training_set/**/fg", "Training_set/**/alpha"),
        foregrounds=Place("Training_set/**/fg", "Training_set/**/alpha"),
        backgrounds="Training_set/train2014",
        test=(Place("Test_set/**/merged", "Test_set/**/alpha", "Test_set/**/trimaps"),),
    ),
    Layout(
        "distinctions-646",
        ("Train/FG", "Train/GT"),
        foregrounds=Place("Train/FG", "Train/GT"),
        test=(Place("Test/merged", "Test/GT", "Test/trimaps"),),
    ),
    Layout("transparent-460", ("Train/fg", "Train/alpha"), foregrounds=Place("Train/fg", "Train/alpha")),
    Layout("simd", ("train/*/fg", "train/*/alpha"), foregrounds=Place("train/*/fg", "train/*/alpha")),
    Layout("aim-500", ("original", "mask", "trimap"), test=(Place("original", "mask", "trimap"),)),
    Layout(
        "am-2k",
        ("train/original", "train/mask", "train/fg"),
        foregrounds=Place("train/fg", "train/mask"),
        backgrounds="train/bg",
        test=(Place("validation/original", "validation/mask", "validation/trimap"),),
    ),
    Layout(
        "p3m-10k",
        ("train/blurred_image", "train/mask", "train/fg"),
        foregrounds=Place("train/fg", "train/mask"),
        backgrounds="train/bg",
        test=(
            Place("validation1/blurred_image", "validation1/mask", "validation1/trimap"),
            Place("validation2/original_image", "validation2/mask", "validation2/trimap"),
        ),
    ),
    Layout("p3m-500-p", ("blurred_image", "mask"), test=(Place("blurred_image", "mask", "trimap"),)),
    Layout("p3m-500-np", ("original_image", "mask"), test=(Place("original_image", "mask", "trimap"),)),
    Layout("bg-20k", ("train", "testval"), backgrounds="train"),
    Layout("pair", ("fg",), foregrounds=Place("fg", "alpha"), backgrounds="bg"),
    Layout("real", ("image", "alpha"), photos=_REAL, test=(_REAL,), backgrounds="bg"),
    Layout("backgrounds", ("bg",), backgrounds="bg", without=("fg", "image")),
)
NAMES = tuple(dict.fromkeys(layout.name for layout in LAYOUTS))


def expand(root: FilePath, pattern: str) -> list[FilePath]:
    """The folders that a pattern of a layout stands for, in a fixed order."""
    return [path for path in sorted(root.glob(pattern)) if path.is_dir()] if pattern else []


def find_layout(spec: str) -> tuple[Layout, FilePath]:
    """The layout and the root that `ROOT` or `NAME:ROOT` means.

    Raises InputError if the root is no folder, and if no layout or more than one fits it.
    """
    name, colon, place = spec.partition(":")
    named = bool(colon) and name in NAMES
    root = FilePath(place if named else spec)
    if not root.is_dir():
        known = f"write ROOT or NAME:ROOT; known names: {', '.join(NAMES)}"
        raise InputError(f"{root} is not a folder", known)
    if (root / "Combined_Dataset").is_dir():
        root = root / "Combined_Dataset"
    candidates = [layout for layout in LAYOUTS if not named or layout.name == name]
    fitting = [layout for layout in candidates if layout.fits(root)]
    if len(fitting) == 1:
        return fitting[0], root
    if not fitting:
        plain = f"it needs image/ and alpha/, or fg/; write NAME:ROOT to see what a known set needs: {', '.join(NAMES)}"
        hint = f"looked for {_signatures(candidates)}" if named else plain
        raise InputError(f"{root} has no layout that is known{f' as {name}' if named else ''}", hint)
    raise InputError(
        f"{root} fits more than one layout: {_signatures(fitting)}",
        f"say which one is meant, for example {fitting[0].name}:{root}",
    )


def _signatures(layouts: Iterable[Layout]) -> str:
    return "; ".join(f"{layout.name}: {', '.join(layout.signature)}" for layout in layouts)
