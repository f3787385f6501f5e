"""The two drivers: what a cancellation does to steps that must come to their end."""

import asyncio

import pytest

from idempo.steps import Repeated, Shielded, Steps


def test_a_cancellation_waits_for_shielded_steps_and_is_told_then() -> None:
    async def main() -> list[str]:
        told, gate = [], asyncio.Event()

        def steps() -> Steps[None]:
            told.append("begun")
            yield gate.wait()
            told.append("ended")

        task = asyncio.ensure_future(Shielded(steps).awaiting())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        return told

    assert asyncio.run(main()) == ["begun", "ended"]


def test_a_store_that_does_not_answer_holds_a_cancellation_up_for_a_while_only() -> None:
    """The steps go on by themselves: what they meant to say is said when the store is back."""

    async def main() -> list[str]:
        told, gate, ended = [], asyncio.Event(), asyncio.Event()

        def steps() -> Steps[None]:
            told.append("begun")
            yield gate.wait()
            told.append("ended")
            ended.set()

        task = asyncio.ensure_future(Shielded(steps, patience=0.01).awaiting())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 30)
        told.append("cancelled")
        gate.set()
        await asyncio.wait_for(ended.wait(), 30)
        return told

    assert asyncio.run(main()) == ["begun", "cancelled", "ended"]


def test_an_error_of_steps_that_were_left_to_themselves_is_not_reported_by_the_loop() -> None:
    async def main() -> list[object]:
        reported: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))
        gate = asyncio.Event()

        def steps() -> Steps[None]:
            yield gate.wait()
            raise ConnectionError

        task = asyncio.ensure_future(Shielded(steps, patience=0.0).awaiting())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.set()
        for _ in range(10):
            await asyncio.sleep(0)
        return reported

    assert asyncio.run(main()) == []


def test_repeated_steps_are_taken_once_while_nobody_cancels() -> None:
    told: list[str] = []

    def steps() -> Steps[str]:
        told.append("begun")
        yield asyncio.sleep(0)
        return "answer"

    assert asyncio.run(Repeated(steps).awaiting()) == "answer"
    assert told == ["begun"]


def test_repeated_steps_that_are_cancelled_are_taken_once_more_to_their_end() -> None:
    async def main() -> list[str]:
        told, gate = [], asyncio.Event()

        def steps() -> Steps[None]:
            told.append("begun")
            yield gate.wait()
            told.append("ended")

        task = asyncio.ensure_future(Repeated(steps).awaiting())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()  # once more, while they are repeated
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        return told

    assert asyncio.run(main()) == ["begun", "begun", "ended"]


def test_an_error_of_repeated_steps_is_told_unless_the_caller_was_cancelled() -> None:
    async def main() -> None:
        gate = asyncio.Event()

        def steps() -> Steps[None]:
            yield gate.wait()
            raise OSError("gone")

        task = asyncio.ensure_future(Repeated(steps).awaiting())
        await asyncio.sleep(0)
        gate.set()
        with pytest.raises(OSError, match="gone"):
            await task
        gate.clear()
        task = asyncio.ensure_future(Repeated(steps).awaiting())
        await asyncio.sleep(0)
        task.cancel()
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_a_caller_that_was_cancelled_before_is_held_up_for_its_patience_only() -> None:
    async def main() -> list[str]:
        told, gate, ended = [], asyncio.Event(), asyncio.Event()

        def steps() -> Steps[None]:
            yield gate.wait()
            told.append("ended")
            ended.set()

        assert await asyncio.wait_for(Shielded(steps, patience=0.01, late=True).awaiting(), 30) is None
        told.append("let go")
        gate.set()
        await asyncio.wait_for(ended.wait(), 30)
        return told

    assert asyncio.run(main()) == ["let go", "ended"]


def test_repeated_steps_that_hang_hold_a_cancellation_up_for_a_while_only() -> None:
    async def main() -> None:
        hangs = asyncio.Event()

        def steps() -> Steps[None]:
            yield hangs.wait()

        task = asyncio.ensure_future(Repeated(steps, patience=0.01).awaiting())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 30)
        hangs.set()

    asyncio.run(main())
