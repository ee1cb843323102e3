"""What goes wrong in a seed, as its scenario says: deaths and what the next start finds, partitions, disks, clocks."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from confide_simulations.chaos.boundary import Doom
from confide_simulations.chaos.consortium import COORDINATOR
from confide_simulations.chaos.scenario import Doomed, Fault, Scenario, Trouble

if TYPE_CHECKING:
    from confide_simulations.chaos.world import World

_AGAIN_S = 5.0
"""A process whose turn to die has not come, or that could not start, is looked at again."""
_RESTART_S = 1.0
_FROM_OUTSIDE = "any moment"


class Mishaps:
    """Of one world."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._pending: dict[str, Doomed] = {}
        self._backups: dict[str, Path] = {}
        self._restoring: set[str] = set()
        self.restored: set[str] = set()
        """Nodes that came back with an older disk."""

    def plan(self, scenario: Scenario) -> None:
        """Everything, at its time."""
        after = self._world.timeline.after
        for doomed in scenario.dooms:
            after(doomed.after_s, lambda one=doomed: self._doom(one))  # type: ignore[misc]
        for trouble in scenario.troubles:
            begin, end = self._phases(trouble)
            after(trouble.at_s, begin)
            after(trouble.at_s + trouble.lasts_s, end)

    # --- deaths

    def _doom(self, doomed: Doomed) -> None:
        if doomed.process in self._pending:
            self._world.timeline.after(_AGAIN_S, lambda: self._doom(doomed))
            return
        self._pending[doomed.process] = doomed
        self._world.boundaries.dooms.append(Doom(doomed.process, doomed.boundary, doomed.times))

    def dies(self, process: str, boundary: str) -> None:
        """It is killed at this moment."""
        doomed = self._pending.get(process)
        power = boundary != _FROM_OUTSIDE and doomed is not None and doomed.power
        self._world.count(Fault.POWER_LOSS if power else Fault.KILL)
        self._world.say(f"{process} dies at {boundary}{', and its machine' if power else ''}")

    def node_died(self, name: str) -> None:
        """Its files are what is left of them; it starts again."""
        self._aftermath(name)
        self._world.timeline.after(self._down_s(name), lambda: self._start(name))

    def _start(self, name: str) -> None:
        node = self._world.nodes[name]
        try:
            node.start()
        except Exception as error:
            self._world.say(f"{name} cannot start: {type(error).__name__}: {error}")
            if name not in self._world.full:
                self._world.witness.violated("restarts", f"{name} cannot start: {type(error).__name__}: {error}")
            node.up = False
            self._world.timeline.after(_AGAIN_S, lambda: self._start(name))
        else:
            self._world.say(f"{name} is up")
            self._world.coordinator.look_for(name)

    def coordinator_died(self) -> None:
        """Time goes by until it starts again."""
        self._aftermath(COORDINATOR)
        self._world.timeline.sleep(self._down_s(COORDINATOR))
        self._world.say(f"{COORDINATOR} is up")

    def _down_s(self, process: str) -> float:
        doomed = self._struck(process)
        if doomed is None:
            return _RESTART_S
        del self._pending[process]
        return doomed.down_s

    def _struck(self, process: str) -> Doomed | None:
        """What it was doomed by, if that is what it died of; else that stands yet."""
        stands = any(doom.process == process for doom in self._world.boundaries.dooms)
        return None if stands else self._pending.get(process)

    def _aftermath(self, process: str) -> None:
        folder, doomed = self._world.folder / process, self._struck(process)
        if doomed is not None and doomed.power:
            self._world.disk.lose_power(folder, self._world.chance.of(f"power/{process}"))
        if process in self._restoring:
            self._restore(process, folder)

    # --- other troubles

    def _phases(self, trouble: Trouble):  # type: ignore[no-untyped-def]
        begin = {
            Fault.PARTITION: self._cut_off,
            Fault.FULL_DISK: self._fill,
            Fault.CLOCK_FORWARD: self._jump,
            Fault.CLOCK_BACK: self._jump,
            Fault.OLD_NODE_DISK: self._back_up_node,
            Fault.OLD_COORDINATOR_DISK: self._back_up_coordinator,
        }
        end = {
            Fault.PARTITION: self._reconnect,
            Fault.FULL_DISK: self._free,
            Fault.CLOCK_FORWARD: self._set_right,
            Fault.CLOCK_BACK: self._set_right,
            Fault.OLD_NODE_DISK: self._kill_to_restore,
            Fault.OLD_COORDINATOR_DISK: self._kill_to_restore,
        }
        return (lambda: begin[trouble.kind](trouble)), (lambda: end[trouble.kind](trouble))

    def _note(self, trouble: Trouble, what: str) -> None:
        self._world.count(trouble.kind)
        self._world.say(f"{trouble.process}: {what}")

    def _cut_off(self, trouble: Trouble) -> None:
        self._world.nodes[trouble.process].cut_off_since = self._world.timeline.now
        self._note(trouble, "cut off")

    def _reconnect(self, trouble: Trouble) -> None:
        self._world.nodes[trouble.process].cut_off_since = None
        if self._world.chance.of("partition").random() < 0.5:  # long enough for its connection to be lost
            self._world.coordinator.look_for(trouble.process)

    def _fill(self, trouble: Trouble) -> None:
        self._world.full.add(trouble.process)
        self._note(trouble, "its disk is full")

    def _free(self, trouble: Trouble) -> None:
        self._world.full.discard(trouble.process)

    def _jump(self, trouble: Trouble) -> None:
        self._world.clocks[trouble.process] = trouble.size_s
        self._note(trouble, f"its clock is off by {trouble.size_s:.0f} s")

    def _set_right(self, trouble: Trouble) -> None:
        self._world.clocks.pop(trouble.process, None)

    # --- older disks

    def _back_up_node(self, trouble: Trouble) -> None:
        self._backups[trouble.process] = self._world.folder / ".backups" / trouble.process
        self._world.disk.copy(self._world.folder / trouble.process, self._backups[trouble.process])

    def _back_up_coordinator(self, trouble: Trouble) -> None:
        """As server/deploy/backup.py does: the database, then keys and roster, then the checkpoints; not the runs."""
        folder, backup = self._world.folder / COORDINATOR, self._world.folder / ".backups" / COORDINATOR
        shutil.rmtree(backup, ignore_errors=True)
        backup.mkdir(parents=True)
        self._world.coordinator.database.copy(backup / ".database")
        shutil.copyfile(folder / "roster.json", backup / "roster.json")
        shutil.copytree(folder / "checkpoints", backup / "checkpoints")
        self._backups[COORDINATOR] = backup

    def _kill_to_restore(self, trouble: Trouble) -> None:
        process, coordinator = trouble.process, self._world.coordinator
        if process == COORDINATOR and coordinator.done:
            return
        up = coordinator.up if process == COORDINATOR else self._world.nodes[process].up
        if not up:
            self._restore(process, self._world.folder / process)
            return
        self._restoring.add(process)
        if process == COORDINATOR:
            self._world.boundaries.kill(COORDINATOR, _FROM_OUTSIDE)
        self._world.nodes[process].kill(_FROM_OUTSIDE)

    def _restore(self, process: str, folder: Path) -> None:
        self._restoring.discard(process)
        shutil.rmtree(folder)
        self._world.disk.restore(self._backups[process], folder)
        if process == COORDINATOR:
            self._world.coordinator.database.replace(folder / ".database")
            self._world.count(Fault.OLD_COORDINATOR_DISK)
            self._world.rounds_restored()
        else:
            self._world.count(Fault.OLD_NODE_DISK)
            self.restored.add(process)
            self._world.witness.forget_answers(process)
        self._world.say(f"{process}: restored from an older copy")
