"""The endpoint as a process of its own, with two organizations' documents, asked by OpenAI's own client."""

import contextlib
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confide.errors import TransportError
from confide.rag.access import Caller
from confide.rag.embedder import Embedder
from confide.rag.library import Library, settings_for

from confide_simulations.demo.shards import Record, write_jsonl
from confide_simulations.forks import ONE_THREAD
from confide_simulations.local_federation import free_ports, run_command
from confide_simulations.processes import ProcessGroup
from confide_simulations.whole.aligned import LetOut
from confide_simulations.whole.federated import Say

COLLECTION, ALIAS, BASE = "faq", "support", "base"
MOST_DOCUMENTS = 60
READY_S = 300.0


@dataclass(frozen=True)
class Asked:
    """What came back.

    answer: of the model that was let out; base: of the base beside it; quoted: from documents, with its citations;
    others_refused: another organization's documents were.
    """

    question: str
    answer: str
    base: str
    fingerprint: str
    quoted: str
    citations: tuple[dict[str, Any], ...]
    others_refused: bool


def library(folder: Path, embedder: Embedder, records: dict[str, Sequence[Record]], say: Say) -> dict[str, str]:
    """Each organization's own answers as documents; by organization, a question whose answer is there."""
    found, opened = {}, Library(folder)
    for name, own in records.items():
        path = folder.parent / f"{name}-{COLLECTION}.jsonl"
        rows = list(own[:MOST_DOCUMENTS])
        write_jsonl(path, [{"text": row["answer"]} for row in rows])
        opened.add(Caller.operator(name), COLLECTION, [path], embedder, settings_for(embedder), say)
        found[name] = rows[0]["question"]
    opened.close()
    return found


def point(state: Path, base: Path, let_out: LetOut, root: str) -> None:
    """Let the alias stand for what was let out: by the run's signed manifest, or by the release that was verified."""
    how = ("--unsigned",) if let_out.aligned else ("--root", root)
    run_command("serve", "alias", "set", ALIAS, str(let_out.folder), "--base", str(base), *how, "--state", str(state))


def start(processes: ProcessGroup, state: Path, base: Path, documents: Path, embedder: Path, log: Path) -> str:
    """Start the endpoint and wait until it listens; its URL."""
    [port] = free_ports(1)
    command = [sys.executable, "-m", "confide", "serve", "--base", str(base), "--name", BASE]
    own = ["--state", str(state), "--port", str(port), "--library", str(documents), "--library-embedder", str(embedder)]
    processes.start("endpoint", [*command, *own], log, ONE_THREAD)
    deadline = time.monotonic() + READY_S
    while True:
        processes.check_alive()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return f"http://127.0.0.1:{port}/v1"
        if time.monotonic() > deadline:
            raise TransportError(f"the endpoint does not listen within {READY_S:g} s; {log} says why")
        time.sleep(0.2)


def key(state: Path, organization: str) -> str:
    """A key of one organization: the alias, and its own documents."""
    chosen = (
        "--model",
        ALIAS,
        "--model",
        BASE,
        "--collection",
        f"{organization}/{COLLECTION}",
        "--budget-tokens",
        "100000",
    )
    return run_command("serve", "keys", "add", "--name", organization, *chosen, "--state", str(state)).split()[-1]


def ask(url: str, keys: dict[str, str], organization: str, question: str) -> Asked:
    """Ask the model, then the organization's documents, then another organization's, which must be refused."""
    import openai

    other = next(name for name in keys if name != organization)
    with openai.OpenAI(base_url=url, api_key=keys[organization], max_retries=0, timeout=300.0) as client:
        messages: Any = [{"role": "user", "content": question}]
        plain, before = (
            client.chat.completions.create(model=name, messages=messages, max_tokens=48, temperature=0.0)
            for name in (ALIAS, BASE)
        )
        quoted = client.chat.completions.create(
            model=ALIAS, messages=messages, extra_body={"collections": [f"{organization}/{COLLECTION}"]}
        )
        try:
            client.chat.completions.create(
                model=ALIAS, messages=messages, extra_body={"collections": [f"{other}/{COLLECTION}"]}
            )
            refused = False
        except openai.APIStatusError:
            refused = True
    said = quoted.choices[0].message
    citations = tuple(one.model_dump()["url_citation"] for one in said.annotations or ())
    return Asked(
        question=question,
        answer=plain.choices[0].message.content or "",
        base=before.choices[0].message.content or "",
        fingerprint=plain.system_fingerprint or "",
        quoted=said.content or "",
        citations=citations,
        others_refused=refused,
    )
