"""The coordinator's one adapter to Flower: its SuperLink state and Fleet protocol, embedded, without their holes.

    switchboard  which node may read, answer and confirm what, right now; wakes waiting polls
    store        Flower's object store with the big objects in files
    door         the outermost layer: path, key, signature, replay and size are judged before a body is read
    binding      a request speaks of the node whose key signed it, and of no other
    routes       Flower's Fleet handlers behind checks of ownership
    link         Flower's state, the roster's nodes, the app that carries all of it
    replies      a reply out of the object store into files, chunk by chunk
    session      one live Flower run: send an instruction, take the replies one at a time

Nothing else of this package imports flwr.
"""

from confide_server.fleet.link import FleetLink, Presence
from confide_server.fleet.replies import FleetReply
from confide_server.fleet.session import FleetSession

__all__ = ["FleetLink", "FleetReply", "FleetSession", "Presence"]
