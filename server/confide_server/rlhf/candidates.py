"""Answers to a prompt set by several models or temperatures: in batches, resumable, each with how it was drawn.

make(prompts, base, base_sha256, adapters=[None, folder], temperatures=[0.7, 1.0], count=2, seed=7, out=path, say=print)
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from confide.errors import DataError
from confide.files import sha256_file
from confide.models.adapter_hash import ADAPTER_FILE

from confide_server.rlhf.annotation.preferences import Candidate, append_line, lines_of, read_lines
from confide_server.rlhf.policy import Policy, Sampling

_PROMPTS_AT_ONCE = 8


def prompt_set(path: Path) -> tuple[list[str], str]:
    """(prompts, one a line; the set's SHA-256). Raises DataError for an empty set or a prompt that stands twice."""
    try:
        data = path.read_bytes()
        prompts = [line.strip() for line in lines_of(data) if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the prompts in {path}: {error}; give UTF-8 text, one prompt a line") from error
    if not prompts:
        raise DataError(f"{path} holds no prompt; write one a line")
    if len(set(prompts)) < len(prompts):
        raise DataError(f"{path} holds {len(prompts) - len(set(prompts))} prompts more than once; leave the others out")
    return prompts, hashlib.sha256(data).hexdigest()


def adapter_digest(folder: Path | None) -> str:
    """SHA-256 of an adapter's weights; empty for none. Raises DataError for a folder that is no adapter."""
    if folder is None:
        return ""
    if not (folder / ADAPTER_FILE).is_file():
        raise DataError(f"{folder} is no adapter: it has no {ADAPTER_FILE}; give a folder of `confide run export`")
    return sha256_file(folder / ADAPTER_FILE)


def make(
    prompts: Sequence[str], base: Path, base_sha256: str, *, adapters: Sequence[Path | None],
    temperatures: Sequence[float], count: int, max_new_tokens: int, seed: int, out: Path, say: Callable[[str], None],
) -> int:  # fmt: skip
    """Append what is not in `out` yet; returns how many candidates it holds. The same answer again is skipped."""
    made = read_lines(out, Candidate) if out.exists() else []
    drawn = {(one.prompt, one.adapter, one.temperature, one.seed) for one in made}
    said = {(one.prompt, one.text) for one in made}
    for adapter in adapters:
        digest = adapter_digest(adapter)
        policy: Policy | None = None
        for temperature in temperatures:
            for start in range(0, len(prompts), _PROMPTS_AT_ONCE):
                own = seed + start
                part = [
                    prompt for prompt in prompts[start : start + _PROMPTS_AT_ONCE]
                    if (prompt, digest, temperature, own) not in drawn
                ]  # fmt: skip
                if not part:
                    continue
                policy = policy or Policy(base, adapter=adapter)
                sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, seed=own)
                for group in policy.sample(part, count=count, sampling=sampling):
                    for completion in group:
                        if completion.text and (completion.prompt, completion.text) not in said:
                            said.add((completion.prompt, completion.text))
                            one = Candidate(
                                prompt=completion.prompt, text=completion.text, model=base_sha256, adapter=digest,
                                temperature=temperature, seed=own,
                            )  # fmt: skip
                            append_line(out, one)
                            made.append(one)
                done, who = start + len(part), adapter or "the base"
                say(f"{who} at temperature {temperature:g}: {done} of {len(prompts)} prompts")
    return len(made)
