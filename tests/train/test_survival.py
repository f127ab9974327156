"""Training killed anywhere resumes to the same bits.

PAM_KILLS sets how many processes are killed (20). Every state that is saved or loaded is compared by its SHA-256 with that of the
uninterrupted run at the same step, and every run that comes to its end with all that the uninterrupted run left.
"""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest
from conftest import Reference, same_states
from forks import Forks, results

KILLS = int(os.environ.get("PAM_KILLS", "20"))


def test_killed_anywhere_a_run_resumes_to_the_same_bits(forks: Forks, reference: Reference, tmp_path: Path) -> None:
    rng = random.Random(KILLS)
    killed = runs = loads = 0
    while killed < KILLS:
        run, runs = tmp_path / f"run{runs}", runs + 1
        while True:
            in_a_call = {"kill_at_call": rng.randrange(20, reference.calls // 2)}
            at_a_time = {"signals": [(rng.uniform(0.1, 0.6) * reference.seconds, signal.SIGKILL)]}
            code = forks.run(run, resume=True, **(in_a_call if rng.random() < 0.5 else at_a_time))
            assert code in (0, -signal.SIGKILL), forks.messages()
            loads += same_states(forks, reference)
            if code == 0:
                break
            killed += 1
        assert results(run) == reference.results
    assert loads >= KILLS // 4


@pytest.mark.parametrize("part", ["ema", "optimiser"])
def test_a_state_that_lacks_a_part_would_be_noticed(
    forks: Forks, reference: Reference, tmp_path: Path, part: str
) -> None:
    plant = {"what": "die", "place": "step", "rank": 0, "step": 3}
    assert forks.run(tmp_path / "run", plant=plant) == -signal.SIGKILL
    assert forks.run(tmp_path / "run", resume=True, plant={"what": "forget", "part": part}) == 0, forks.messages()
    ((place, digests),) = forks.record("loaded").items()
    assert digests != reference.states[place]
    assert results(tmp_path / "run") != reference.results
