"""Models that come with the package: trained weights, their path prior and a card, in assets/models."""

from __future__ import annotations

from pathlib import Path as FilePath

from .errors import IntegrityError
from .files import SEAL, read_sealed_json

FOLDER = FilePath(__file__).parent / "assets" / "models"
SHIPPED: dict[str, str] = {
    "phone-v0": "3f0578a25c764011a2c48a439ffb917b68288cced5ac585dc06942109ee80aba",
    "phone-wide-v0": "d40a7d5e24cd38c69a96eea002a7cdb90fd1b0cb310f64babaa069ea0864c537",
    "tiny-v2": "5a91ba5f754ec235859c83465d4aa51ff4fdf9252c87cd9b75647215cb4a551d",
}
"""Name to the hash of its document, which names the hashes of its other files."""
CARD = "card.md"
REMEDY = "install pam-mobile again"


def default() -> str:
    """What `predict` takes when no model is named."""
    return next(iter(SHIPPED), "prior")


def version(name: str) -> int:
    """The number at the end of a model's name, 2 of tiny-v2; it is in the names of its artifacts. 0 if there is none."""
    number = name.rpartition("-v")[2]
    return int(number) if number.isdecimal() and number != name else 0


def folder(name: str) -> FilePath:
    """The checkpoint folder of a shipped model. Raises IntegrityError if it is not the one that was released, KeyError if none is."""
    seal = SHIPPED[name]
    found = FOLDER / name
    if read_sealed_json(found / "checkpoint.json", REMEDY)[SEAL] != seal:
        raise IntegrityError(f"{found} is not the released {name}", REMEDY)
    return found
