"""What is served under which name: an alias names an engine and an adapter's hash, and can be pointed elsewhere.

A request takes its target once, at its beginning, and goes on with it: pointing an alias elsewhere changes the next
request, never one under way.
"""

import time
from dataclasses import dataclass, field

from confide_server.serving.port import Embedder, Engine


@dataclass(frozen=True)
class Target:
    """What an alias stands for now. adapter: its content's hash, or BASE."""

    alias: str
    engine: Engine
    adapter: str
    since: int = field(default_factory=lambda: int(time.time()))

    @property
    def fingerprint(self) -> str:
        """Of what computes: base and adapter."""
        return f"{self.engine.base_sha256[:12]}-{self.adapter[:12] or 'base'}"


class Catalogue:
    """All names. Changed from the event loop only."""

    def __init__(self) -> None:
        self._targets: dict[str, Target] = {}
        self.embedders: dict[str, Embedder] = {}

    def point(self, target: Target) -> None:
        """From the next request on, the alias stands for this."""
        self._targets[target.alias] = target

    def forget(self, alias: str) -> None:
        """The alias stands for nothing."""
        self._targets.pop(alias, None)

    def find(self, alias: str) -> Target | None:
        """What it stands for now."""
        return self._targets.get(alias)

    def targets(self) -> list[Target]:
        """By alias."""
        return [self._targets[alias] for alias in sorted(self._targets)]

    def uses(self, adapter: str) -> bool:
        """Whether some alias stands for this adapter."""
        return any(target.adapter == adapter for target in self._targets.values())
