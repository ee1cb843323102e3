"""From a request to the texts that answer it: several at once, as they come, with what they cost."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from confide_server.serving.endpoint.replies import Choice
from confide_server.serving.port import Delta, Engine, Generation

Part = tuple[int, Delta]


class Answer:
    """The texts of one request. Iterate `parts`; `choices` hold what came until now, also after an early end."""

    def __init__(self, engine: Engine, generations: Sequence[Generation]) -> None:
        self._engine = engine
        self._generations = list(generations)
        self.choices = [Choice(index) for index in range(len(generations))]

    @property
    def tokens(self) -> int:
        """Written until now."""
        return sum(choice.tokens for choice in self.choices)

    @property
    def text(self) -> str:
        """All of it, for an operator who keeps texts."""
        return "\n".join("".join(choice.text) for choice in self.choices)

    async def parts(self) -> AsyncGenerator[Part, None]:
        """(index of the text, what was added), as they come. Raises what the engine raises, and stops all then."""
        source = self._single() if len(self._generations) == 1 else self._several()
        async with aclosing(source) as parts:
            async for index, delta in parts:
                self.choices[index].take(delta)
                yield index, delta

    async def whole(self) -> None:
        """Until all are written."""
        async with aclosing(self.parts()) as parts:
            async for _ in parts:
                pass

    async def _single(self) -> AsyncGenerator[Part, None]:
        async with aclosing(self._engine.generate(self._generations[0])) as deltas:
            async for delta in deltas:
                yield 0, delta

    async def _several(self) -> AsyncGenerator[Part, None]:
        arrived: asyncio.Queue[Part | BaseException] = asyncio.Queue()
        # The rest waits here: in the engine's queue it would take everybody's places, and be given up for waiting too
        # long behind its own like.
        longest = max(len(one.prompt) + one.max_tokens for one in self._generations)
        places = asyncio.Semaphore(self._engine.together(longest))

        async def follow(index: int, generation: Generation) -> None:
            try:
                async with places, aclosing(self._engine.generate(generation)) as deltas:
                    async for delta in deltas:
                        arrived.put_nowait((index, delta))
            except Exception as error:
                arrived.put_nowait(error)

        tasks = [asyncio.create_task(follow(*one)) for one in enumerate(self._generations)]
        open_ = len(tasks)
        try:
            while open_:
                part = await arrived.get()
                if isinstance(part, BaseException):
                    raise part
                yield part
                open_ -= part[1].finish is not None
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
