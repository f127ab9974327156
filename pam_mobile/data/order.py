"""Which foregrounds and backgrounds are composed, in which order: apart from how they are rendered.

`triplet` and `quadruplet` put a combination of two foregrounds beside its sources, so that the network sees the same hair with and
without a second object. The styles are those of composition_styles (AAAI 2023).
"""

from __future__ import annotations

import numpy as np

RANDOM = "random"
"""No order: every composite is drawn on its own, one in ten combines two foregrounds."""
STYLES = ("single", "naive", "rcf", "triplet", "quadruplet")
NONE = -1


class Order:
    """The endless list of composites of a style, epoch after epoch. Composite `i` depends on the seed, the style and the counts only.

    | style | an epoch of N foregrounds |
    |---|---|
    | `single` | each foreground alone |
    | `naive`, `rcf` | each foreground, floor(N / 2) of them over another one |
    | `triplet` | floor(N / 2) pairs without a common foreground: both alone, and the first over the second |
    | `quadruplet` | the same, and the second over the first |

    An epoch is shuffled as a whole. Of an odd number of foregrounds, another one stays out of the pairs in each epoch.
    """

    def __init__(self, style: str, foregrounds: int, backgrounds: int, seed: tuple[int, ...]) -> None:
        if style not in STYLES:
            raise ValueError(f"style is {style!r}, known are {', '.join(STYLES)}")
        if foregrounds < 1 + (style != "single") or backgrounds < 1:
            raise ValueError(f"{foregrounds} foregrounds and {backgrounds} backgrounds are too few for {style}")
        self.style, self.foregrounds, self.backgrounds, self.seed = style, foregrounds, backgrounds, seed
        self.length = foregrounds // 2 * {"triplet": 3, "quadruplet": 4}.get(style, 0) or foregrounds

    def epoch(self, number: int) -> np.ndarray:
        """(length, 3) int64 rows of an epoch: front, back or NONE, background."""
        rng = np.random.default_rng([*self.seed, number])
        shuffled = rng.permutation(self.foregrounds)
        pairs = self.foregrounds // 2
        first, second = shuffled[:pairs], shuffled[pairs : 2 * pairs]
        alone = np.full(pairs, NONE)
        if self.style in ("triplet", "quadruplet"):
            behind_first, behind_second = self._backgrounds(2 * pairs, rng).reshape(2, pairs)
            rows = [(first, alone, behind_first), (second, alone, behind_second), (first, second, behind_first)]
            if self.style == "quadruplet":
                rows.append((second, first, behind_second))
            table = np.concatenate([np.stack(row, 1) for row in rows])
        else:
            back = np.full(self.foregrounds, NONE)
            if self.style != "single":
                back[:pairs] = np.roll(shuffled, 1)[:pairs]
            table = np.stack([shuffled, back, self._backgrounds(self.foregrounds, rng)], 1)
        return rng.permutation(table)

    def take(self, first: int, count: int) -> np.ndarray:
        """(count, 3) rows `first`, `first` + 1, ... of the list, across the ends of epochs."""
        epochs = range(first // self.length, (first + count - 1) // self.length + 1)
        rows = np.concatenate([self.epoch(number) for number in epochs])
        start = first - epochs.start * self.length
        return rows[start : start + count]

    def _backgrounds(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """`count` backgrounds; none comes again before all were used."""
        rounds = -(-count // self.backgrounds)
        return np.concatenate([rng.permutation(self.backgrounds) for _ in range(rounds)])[:count]
