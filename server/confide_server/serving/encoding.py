"""Texts to tokens beside the event loop: long texts wait for each other, and hold up nobody's short one, nor a key.

    ids = await encoded(prompts.text, "a question", len("a question"))

A megabyte takes most of a second. On the threads that everything shares, two dozen of them would be in everybody's way.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

LONG_CHARS = 1 << 15
_LONG = ThreadPoolExecutor(1, thread_name_prefix="long-texts")
Given = TypeVar("Given")
Result = TypeVar("Result")


async def encoded(encode: Callable[[Given], Result], given: Given, chars: int) -> Result:
    """What `encode` makes of it. chars: how long it is."""
    threads = _LONG if chars > LONG_CHARS else None
    return await asyncio.get_running_loop().run_in_executor(threads, encode, given)
