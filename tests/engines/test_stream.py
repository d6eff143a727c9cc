"""The channel between an engine's thread and its reader."""

import asyncio
import threading

import pytest

from swift.engines.stream import GenerationStream


def filled(items, error=None):
    stream = GenerationStream(lambda: None)

    def write():
        for item in items:
            stream.put(item)
        stream.fail(error) if error else stream.end()

    threading.Thread(target=write).start()
    return stream


def test_items_arrive_in_order_in_a_thread_and_in_an_event_loop():
    items = list(range(1000))
    assert list(filled(items)) == items

    async def read():
        return [item async for item in filled(items)]

    assert asyncio.run(read()) == items


def test_the_error_comes_after_the_items_before_it():
    stream, seen = filled([1, 2], ValueError("no")), []
    with pytest.raises(ValueError, match="no"):
        for item in stream:
            seen.append(item)
    assert seen == [1, 2]


def test_many_readers_in_one_loop_do_not_wait_for_each_other():
    never = GenerationStream(lambda: never.end())

    async def read():
        waiting = asyncio.create_task(anext(never, "ended"))
        others = await asyncio.gather(*(first(filled([i])) for i in range(50)))
        assert not waiting.done()
        never.cancel()
        return others, await waiting

    async def first(stream):
        return await anext(stream)

    assert asyncio.run(read()) == (list(range(50)), "ended")


def test_leaving_the_context_cancels_once_and_only_what_runs():
    cancelled = []
    with GenerationStream(lambda: cancelled.append("running")):
        pass
    with GenerationStream(lambda: cancelled.append("ended")) as stream:
        stream.end()
    assert cancelled == ["running"]
