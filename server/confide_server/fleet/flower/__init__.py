"""The coordinator's one adapter to Flower: its SuperLink state and Fleet protocol, embedded, without their holes.

    nodes           the roster's nodes by key, number and name, and when each was last here
    in_flight       which node may read, answer and confirm what, right now; wakes waiting polls
    store           Flower's object store with the big objects in files
    serving         connections: counted, and bounded in time and size until a request is there
    request_filter  path, key, signature, replay and size are judged before a body is read
    translation     protobuf in and out, errors as Flower answers them
    binding         a request speaks of the node whose key signed it, and of no other
    routes          Flower's Fleet handlers behind checks of ownership
    link            Flower's state, the roster's nodes, the app that carries all of it
    replies         a reply out of the object store into files, chunk by chunk
    session         one live Flower run: send an instruction, take the replies one at a time

Nothing else of this package imports flwr.
"""

from confide_server.fleet.flower.link import FleetLink, Presence, Standing
from confide_server.fleet.flower.replies import FleetReply
from confide_server.fleet.flower.session import FleetSession

__all__ = ["FleetLink", "FleetReply", "FleetSession", "Presence", "Standing"]
