"""The in-process engine: one thread that takes a step of all running answers at a time, and lets others in between.

Answers wait in a queue, are read in groups (or piece by piece where they are long), join the batch of those being
written, and leave it when they end or nobody waits for them any more. Answers under different adapters share a batch.

    engine = LocalEngine(AdaptedModel(folder)); engine.start()
    async for delta in engine.generate(Generation(prompt=ids)): ...
"""

import asyncio
import functools
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from confide.errors import ConfideError, ModelError
from confide.models.rendering import Rendering

from confide_server.serving.engines.adapted_model import AdaptedModel
from confide_server.serving.engines.grammar import Grammar, Grammars
from confide_server.serving.engines.padded_batch import PaddedBatch
from confide_server.serving.engines.rows import Row, named
from confide_server.serving.engines.sampling import logprobs_of
from confide_server.serving.port import BASE, Delta, EngineFailed, Generation, Load, Overloaded, Unanswerable

log = logging.getLogger(__name__)

_PATIENCE_S = 5.0
_ECHO_COLUMNS = 64
"""Columns of logits that are held at once for a prompt's own log-probabilities."""


@dataclass(frozen=True)
class Room:
    """What an engine takes on at once.

    rows: answers in one batch. tokens: keys and values held, rows times the longest. waiting: answers in the queue.
    chunk: tokens read in one go, between two steps of the others. patience_s: how long an answer waits to begin.
    """

    rows: int = 16
    tokens: int = 32768
    waiting: int = 256
    chunk: int = 512
    patience_s: float = 60.0


class LocalPrompts:
    """Prompts as training renders them."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._rendering = Rendering(tokenizer)

    def chat(self, messages: Sequence[dict[str, str]]) -> tuple[int, ...]:
        """A conversation up to where the assistant begins to write."""
        return tuple(self._rendering.prompt_ids(messages))

    def text(self, text: str) -> tuple[int, ...]:
        """A text with what the tokenizer by itself puts before it, once."""
        return tuple(self._tokenizer(text)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def plain(self, text: str) -> str:
        """The text with a space in what the tokenizer would take for a mark: it can neither end a turn nor open one."""
        for mark in self._marks:
            text = text.replace(mark, f"{mark[0]} {mark[1:]}")
        return text

    @functools.cached_property
    def _marks(self) -> list[str]:
        """Longest first. Added words and runs of spaces are no marks."""
        added = {one.content for one in self._tokenizer.added_tokens_decoder.values()}
        return sorted((one for one in added if len(one) > 2 and one.strip() and not one.isalnum()), key=len)[::-1]


@dataclass
class _Waiting:
    row: Row
    since: float


@dataclass
class _Group:
    """Rows that share a batch: `read` of `ids_BT` has been seen; all of it when they write."""

    rows: list[Row]
    batch: PaddedBatch
    ids_BT: torch.Tensor
    read: int = 0
    alone: bool = False


class LocalEngine:
    """Start it once; `generate` may be called from any event loop."""

    def __init__(self, model: AdaptedModel, room: Room | None = None) -> None:
        self._model = model
        self.room = room or Room()
        self.base_sha256 = model.sha256
        self.context = model.context
        self.parameters = model.parameters
        self.tokenizer = model.tokenizer
        self.prompts = LocalPrompts(model.tokenizer)
        self._grammars: Grammars | None = None
        self._waiting: deque[_Waiting] = deque()
        self._reading: list[_Group] = []
        self._writing: list[_Group] = []
        self._jobs: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._step_s = 0.05
        """What a step takes lately, for Retry-After."""

    def start(self) -> "LocalEngine":
        """Begin to work."""
        self._thread.start()
        return self

    async def check(self) -> None:
        """It is here."""

    def together(self, longest: int) -> int:
        """As many as there are rows, and room for their keys and values."""
        return max(1, min(self.room.rows, self.room.tokens // max(1, longest)))

    def load(self) -> Load:
        """How busy it is."""
        running = sum(len(group.rows) for group in [*self._reading, *self._writing])
        return Load(running, len(self._waiting), tuple(sorted(self._model.adapters)))

    async def generate(self, generation: Generation) -> AsyncGenerator[Delta, None]:
        """Deltas until the last; leaving early stops the row at its next step."""
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[Delta | Exception] = asyncio.Queue()
        row = await self._submit(generation, partial(_hand_over, loop, arrived))
        try:
            while True:
                delta = await arrived.get()
                if isinstance(delta, Exception):
                    raise delta
                yield delta
                if delta.finish is not None:
                    return
        finally:
            row.cancelled = True

    async def _submit(self, generation: Generation, deliver: Callable[[Any], None]) -> Row:
        self._check(generation)
        grammar = await self._grammar(generation)
        row = Row.of(generation, deliver, self.tokenizer, grammar)
        with self._wake:
            if self._ended:
                raise EngineFailed("this server is stopping; ask another one")
            if len(self._waiting) >= self.room.waiting:
                raise Overloaded(
                    f"{len(self._waiting)} requests wait already, which is as many as may; try again later",
                    self._retry_after_s(),
                )
            self._waiting.append(_Waiting(row, time.monotonic()))
            self._wake.notify()
        return row

    def _check(self, generation: Generation) -> None:
        length, most = len(generation.prompt), generation.max_tokens
        if not length:
            raise Unanswerable("the prompt is empty; give at least one token", param="prompt")
        if max(generation.prompt) >= self._model.vocabulary or min(generation.prompt) < 0:
            raise Unanswerable(
                f"the prompt holds token {max(generation.prompt)}; this model knows 0 to {self._model.vocabulary - 1}",
                param="prompt",
            )
        if generation.adapter != BASE and generation.adapter not in self._model.adapters:
            raise Unanswerable(f"adapter {generation.adapter[:12]} is not loaded", param="model")
        if length + most > self.context:
            raise Unanswerable(
                f"the prompt has {length} tokens and {most} more may be written; this model holds {self.context} in "
                "all. Shorten the prompt, or lower max_tokens",
                param="messages",
                kind="context_length_exceeded",
            )
        if length + most > self.room.tokens:
            raise Unanswerable(
                f"the request needs {length + most} tokens of memory; this server has {self.room.tokens}. Shorten it, "
                "or raise --cache-tokens",
                param="messages",
                kind="context_length_exceeded",
            )

    async def _grammar(self, generation: Generation) -> Grammar | None:
        if generation.schema is None and generation.grammar is None:
            return None
        return await asyncio.to_thread(self._make_grammar, generation)

    def _make_grammar(self, generation: Generation) -> Grammar:
        if self._grammars is None:
            self._grammars = Grammars(self.tokenizer, self._model.vocabulary, self._model.ends)
        if generation.schema is not None:
            return self._grammars.of_schema(generation.schema)
        return self._grammars.of_lark(generation.grammar or "")

    def _retry_after_s(self) -> float:
        return min(60.0, max(1.0, len(self._waiting) / self.room.rows * 64 * self._step_s))

    async def add_adapter(self, sha256: str, folder: str) -> None:
        """Load an adapter between two steps."""
        await self._between_steps(partial(self._model.add, sha256, Path(folder)))

    async def remove_adapter(self, sha256: str) -> None:
        """Forget an adapter once no row runs or waits on it. Raises ModelError while one does."""
        await self._between_steps(partial(self._remove, sha256))

    def _remove(self, sha256: str) -> None:
        rows = [one.row for one in self._waiting]
        rows += [row for group in [*self._reading, *self._writing] for row in group.rows]
        if any(row.generation.adapter == sha256 for row in rows):
            raise ModelError(f"adapter {sha256[:12]} is in use; it is removed when its requests have ended")
        self._model.remove(sha256)

    async def _between_steps(self, work: Callable[[], None]) -> None:
        done: Future[None] = Future()

        def job() -> None:
            try:
                work()
            except Exception as error:
                done.set_exception(error)
            else:
                done.set_result(None)

        with self._wake:
            if self._ended:
                raise EngineFailed("this server is stopping")
            self._jobs.append(job)
            self._wake.notify()
        await asyncio.wrap_future(done)

    async def close(self) -> None:
        """End after the step that is under way."""
        with self._wake:
            self._ended = True
            self._wake.notify()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, 30.0)

    # What follows runs in the engine's thread only.

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._ended or self._jobs or self._waiting or self._reading or self._writing):
                    self._wake.wait(_PATIENCE_S)
                if self._ended:
                    break
                jobs, self._jobs = self._jobs, deque()
            for job in jobs:
                job()
            try:
                self._turn()
            except Exception:  # a thread that ends would leave everybody waiting
                log.exception("the engine failed; everybody who waited was told")
                self._fail_all("the model failed on this request; the log says more")
        self._fail_all("this server was stopped before the answer was complete")

    def _turn(self) -> None:
        """Let rows in, read a piece of the next prompts, and write one token of every running row."""
        self._admit()
        if self._reading:
            self._guarded(self._reading[0], self._read)
        began = time.monotonic()
        for group in list(self._writing):
            self._guarded(group, self._write)
        if self._writing:
            self._step_s += 0.1 * (time.monotonic() - began - self._step_s)

    def _guarded(self, group: _Group, work: Callable[[_Group], None]) -> None:
        """A group that fails fails alone, and each of its rows is told."""
        try:
            work(group)
        except Exception as error:
            log.exception("a batch of %d failed", len(group.rows))
            for row in group.rows:
                row.deliver(_told(error))
            self._reading = [one for one in self._reading if one is not group]
            self._writing = [one for one in self._writing if one is not group]

    def _fail_all(self, message: str) -> None:
        with self._wake:
            rows = [one.row for one in self._waiting]
            self._waiting.clear()
        rows += [row for group in [*self._reading, *self._writing] for row in group.rows]
        self._reading, self._writing = [], []
        for row in rows:
            row.deliver(EngineFailed(message))

    def _admit(self) -> None:
        """Take from the queue what there is room for, rows of like length together."""
        now = time.monotonic()
        groups: list[list[Row]] = []
        with self._wake:
            self._waiting = deque(one for one in self._waiting if not one.row.cancelled)
            while self._waiting:
                first = self._waiting[0]
                if now - first.since > self.room.patience_s:
                    self._waiting.popleft()
                    first.row.deliver(Overloaded("the request waited too long for its turn", self._retry_after_s()))
                elif self._has_room(first.row, groups):
                    self._place(self._waiting.popleft().row, groups)
                else:
                    break
        self._reading += [self._group(rows) for rows in groups]

    def _has_room(self, row: Row, groups: list[list[Row]]) -> bool:
        held = [one for group in [*self._reading, *self._writing] for one in group.rows]
        held += [one for group in groups for one in group]
        longest = max(one.most for one in [*held, row])
        return len(held) < self.room.rows and (len(held) + 1) * longest <= self.room.tokens

    def _place(self, row: Row, groups: list[list[Row]]) -> None:
        length = len(row.generation.prompt)
        for group in groups:
            others = [len(one.generation.prompt) for one in group]
            longest = max([*others, length])
            alike = 2 * min([*others, length]) >= longest
            if (
                alike
                and _alone_not(row, *group)
                and longest * (len(group) + 1) <= self.room.chunk
                and self._model.plain
            ):
                group.append(row)
                return
        groups.append([row])

    def _group(self, rows: list[Row]) -> _Group:
        width = max(len(row.generation.prompt) for row in rows)
        ids, mask = torch.zeros(len(rows), width, dtype=torch.int64), torch.zeros(len(rows), width, dtype=torch.int64)
        for place, row in enumerate(rows):
            prompt = row.generation.prompt
            ids[place, width - len(prompt) :] = torch.tensor(prompt)
            mask[place, width - len(prompt) :] = 1
        return _Group(rows, self._model.batch(mask), ids, alone=not self._model.plain)

    def _read(self, group: _Group) -> None:
        """One piece of a group's prompts; when all is read, its first tokens."""
        if self._drop_cancelled(group, self._reading):
            return
        rows, width = group.rows, group.ids_BT.shape[1]
        echo = rows[0].generation.echo
        piece = min(width, group.read + (_ECHO_COLUMNS if echo else max(1, self.room.chunk // len(rows))))
        columns = group.ids_BT[:, group.read : piece]
        adapters = [row.generation.adapter for row in rows]
        logits = self._model.forward(columns, group.batch, adapters, keep=columns.shape[1] if echo else 1)
        if echo:
            self._note_prompt(rows[0], group.read, logits[0])
        group.read = piece
        if piece == width:
            self._reading.remove(group)
            self._writing.append(group)
            if rows[0].generation.max_tokens == 0:
                rows[0].end_of_prompt()
            else:
                self._choose(group, logits[:, -1])
            self._settle(group)

    def _note_prompt(self, row: Row, begin: int, logits_TV: torch.Tensor) -> None:
        """Log-probabilities of the prompt's tokens: the logits of a column are about the next one."""
        prompt, most = row.generation.prompt, row.generation.logprobs or 0
        if begin == 0:
            row.prompt_logprobs.append(named(self.tokenizer, prompt[0], None, []))
        for place, logits in enumerate(logits_TV, begin + 1):
            if place < len(prompt):
                own, top = logprobs_of(logits, prompt[place], most)
                row.prompt_logprobs.append(named(self.tokenizer, prompt[place], own, top))

    def _write(self, group: _Group) -> None:
        """One token of every row."""
        if self._drop_cancelled(group, self._writing):
            return
        group.batch.add_column()
        ids = torch.tensor([[row.last] for row in group.rows])
        logits = self._model.forward(ids, group.batch, [row.generation.adapter for row in group.rows])
        self._choose(group, logits[:, -1])
        self._settle(group)

    def _choose(self, group: _Group, logits_BV: torch.Tensor) -> None:
        likeliest = logits_BV.argmax(-1).tolist()
        for row, greedy, logits_V in zip(group.rows, likeliest, logits_BV, strict=True):
            try:
                token, logprobs = (greedy, ()) if row.plainly_greedy else row.choose(logits_V, self.tokenizer)
                row.take(token, self._model.ends, logprobs)
            except Exception as error:  # a form that grew too large, say: its own request only, and not the batch
                if not isinstance(error, ConfideError):
                    log.exception("an answer failed; the others of its batch go on")
                row.done = True
                row.deliver(_told(error))

    def _drop_cancelled(self, group: _Group, where: list[_Group]) -> bool:
        """Whether nobody waits for the group any more."""
        kept = [place for place, row in enumerate(group.rows) if not row.cancelled]
        if not kept:
            where.remove(group)
        elif len(kept) < len(group.rows) and group.read:
            self._keep(group, kept)
        return not kept

    def _keep(self, group: _Group, kept: list[int]) -> None:
        group.rows = [group.rows[place] for place in kept]
        group.batch.keep(kept)

    def _settle(self, group: _Group) -> None:
        """Rows that are done leave; a group that has just begun to write joins the others."""
        kept = [place for place, row in enumerate(group.rows) if not row.done]
        if not kept:
            self._writing.remove(group)
            return
        if len(kept) < len(group.rows):
            self._keep(group, kept)
        home = self._writing[0]
        if group is not home and not group.alone:
            home.batch.join(group.batch)
            home.rows += group.rows
            self._writing.remove(group)


def _told(error: Exception) -> Exception:
    """What who waits hears of it."""
    known = isinstance(error, ConfideError)
    return error if known else EngineFailed("the model failed on this request; the log says more")


def _alone_not(*rows: Row) -> bool:
    """Whether rows may be read together: a prompt's own log-probabilities are taken of one at a time."""
    return not any(row.generation.echo for row in rows)


def _hand_over(loop: asyncio.AbstractEventLoop, arrived: "asyncio.Queue[Delta | Exception]", delta: Any) -> None:
    try:
        loop.call_soon_threadsafe(arrived.put_nowait, delta)
    except RuntimeError:  # the loop has ended: nobody waits
        return
