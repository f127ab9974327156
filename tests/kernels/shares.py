"""How many random cases the property tests of the kernels run: 300 together, or PAM_KERNEL_CASES."""

from __future__ import annotations

import os

TOTAL = int(os.environ.get("PAM_KERNEL_CASES", "300"))
PERCENT = {"tensor cores": 20, "direct": 12, "connect": 45, "connect on integers": 23}


def cases(test: str) -> int:
    """The share of one of PERCENT."""
    return -(-TOTAL * PERCENT[test] // 100)
