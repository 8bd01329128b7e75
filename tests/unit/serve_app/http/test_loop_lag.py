"""The lag: a loop that is held up is late at once, and no longer when it ticks again."""

import asyncio
import time

from serve_app.http.loop_lag import LoopLag


def test_a_loop_with_nothing_to_do_is_not_late() -> None:
    async def idle() -> float:
        lag = LoopLag()
        lag.late_s()
        await asyncio.sleep(0.1)
        return lag.late_s()

    assert min(asyncio.run(idle()) for _ in range(5)) < 0.05


def test_a_loop_that_was_held_up_is_late_before_it_beats_again_and_after() -> None:
    async def held() -> tuple[float, float, float]:
        lag = LoopLag()
        lag.late_s()
        time.sleep(0.3)
        before = lag.late_s()
        await asyncio.sleep(0.001)
        after = lag.late_s()
        await asyncio.sleep(0.2)
        return before, after, lag.late_s()

    before, after, calm = asyncio.run(held())
    assert before >= 0.27
    assert after >= 0.27
    assert calm < 0.2


def test_another_loop_has_a_pulse_of_its_own() -> None:
    lag = LoopLag()

    async def ask() -> float:
        return lag.late_s()

    asyncio.run(ask())
    time.sleep(0.3)
    assert asyncio.run(ask()) < 0.2
