"""The endpoint as a real process: aliases that move, keys that end, a process that is killed in mid-answer."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.coordinator_world import World
from tests.served_models import signed_adapter, strong_llama
from tests.serving_process import ServeProcess, command

QUESTION: list[Any] = [{"role": "user", "content": "How thick must the wall be?"}]


def eventually(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.1)


def test_an_endpoint_lives_through_what_happens_to_it(tmp_path: Path) -> None:
    world, base = World.create(tmp_path / "world", nodes=1), strong_llama(tmp_path)
    old, new = (signed_adapter(world, base, tmp_path / name, seed) for seed, name in enumerate(("old", "new")))
    state, root = str(tmp_path / "serving"), world.consortium.root.public.hex()
    ours = ("--state", state)
    key = command("keys", "add", "--name", "alice", "--model", "support", "--budget-tokens", "1000", *ours).strip()
    command("alias", "set", "support", str(old), "--base", str(base), "--root", root, *ours)

    def client(process: ServeProcess, key: str = key) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{process.url}/v1", api_key=key, max_retries=0, timeout=60)

    def says(asked: openai.OpenAI, model: str = "support") -> str:
        made = asked.chat.completions.create(model=model, messages=QUESTION, temperature=0, max_tokens=12)
        return made.choices[0].message.content or ""

    def log() -> list[dict[str, Any]]:
        return [json.loads(line) for line in command("log", "--json", *ours).splitlines()]

    arguments = (*ours, "--base", str(base), "--name", "plain")
    with ServeProcess(*arguments, log=tmp_path / "log", slow=True) as process, client(process) as asked:
        assert [model.id for model in asked.models.list()] == ["support"]
        first = says(asked)
        with pytest.raises(openai.NotFoundError):  # the base is served, and is not this key's
            says(asked, "plain")
        command("alias", "set", "support", str(new), "--base", str(base), "--root", root, *ours)
        eventually(lambda: says(asked) != first)
        assert "again" in command("alias", "rollback", "support", *ours)
        eventually(lambda: says(asked) == first)
        with pytest.raises(openai.AuthenticationError):
            says(client(process, "confide-00000000-" + "x" * 43))
        adapters = {row["adapter_sha256"] for row in log()}
        assert len(adapters) == 2 and all(row["asked_text"] is None for row in log())
        stream = asked.chat.completions.create(model="support", messages=QUESTION, stream=True, max_tokens=200)
        next(iter(stream))
        process.kill()
    (spent,) = [json.loads(line)["spent_tokens"] for line in command("keys", "list", "--json", *ours).splitlines()]
    with ServeProcess(*arguments, log=tmp_path / "log") as process, client(process) as asked:
        outcomes = [row["outcome"] for row in log()]
        assert outcomes.count("interrupted") == 1 and "open" not in outcomes
        open_ = next(row for row in log() if row["outcome"] == "interrupted")
        assert open_["reserved_tokens"] > 200 and says(asked) == first
        eventually(lambda: all(row["outcome"] != "open" for row in log()))  # written down after the answer has left
        settled = sum(r["prompt_tokens"] + r["completion_tokens"] for r in log() if r["outcome"] != "interrupted")
        assert spent + log()[0]["prompt_tokens"] + log()[0]["completion_tokens"] == settled + open_["reserved_tokens"]
        with pytest.raises(openai.RateLimitError, match="budget"):
            asked.chat.completions.create(model="support", messages=QUESTION, max_tokens=400, n=2, stream=True)
        command("keys", "revoke", key.split("-")[1], *ours)
        with pytest.raises(openai.AuthenticationError, match="revoked"):
            says(asked)
        command("alias", "remove", "support", *ours)
        assert process.stop() == 0
    history = [json.loads(line) for line in command("alias", "list", "support", "--json", *ours).splitlines()]
    assert [row["removed"] for row in history] == [True, False, False, False]
    assert len({row["adapter_sha256"] for row in history[:2]}) == 1 and history[0]["set_at"] > history[-1]["set_at"]
    assert "removed" in command("alias", "list", "support", *ours)
    assert "spent" in command("keys", "list", *ours) and "old" not in command("alias", "list", *ours)
