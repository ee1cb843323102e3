"""The roster's nodes: found by key, number and name; when each was last here."""

import math
import sys
from concurrent.futures import ThreadPoolExecutor

from confide_server.fleet.flower.nodes import KnownNodes, Node
from cryptography.hazmat.primitives.asymmetric import ec

NODE = 7
KEY = ec.generate_private_key(ec.SECP384R1()).public_key()
A, B = Node("node-a", 1, b"pem of a", KEY), Node("node-b", 2, b"pem of b", KEY)


def test_a_node_is_known_by_key_number_and_name_until_the_roster_leaves_it_out() -> None:
    nodes = KnownNodes()
    assert nodes.of_key(A.public_key) is None and nodes.all() == ()
    nodes.replace(iter([A, B]))
    assert (nodes.of_key(A.public_key), nodes.id_of("node-b"), nodes.name_of(1)) == (A, 2, "node-a")
    nodes.replace([B])
    assert (nodes.of_key(A.public_key), nodes.id_of("node-a"), nodes.name_of(1)) == (None, None, None)
    assert nodes.all() == (B,) and nodes.id_of("node-b") == 2


def test_a_node_that_was_never_heard_has_been_silent_for_ever() -> None:
    nodes = KnownNodes()
    assert nodes.silent_s(NODE) == math.inf
    nodes.heard(NODE)
    assert nodes.silent_s(NODE) < math.inf
    nodes.activated(8)
    assert nodes.silent_s(8) < math.inf, "a connection is heard too"


def test_who_said_goodbye_has_left_until_they_connect_again() -> None:
    nodes = KnownNodes()
    assert not nodes.has_left(NODE)
    nodes.activated(NODE)
    nodes.said_goodbye(NODE)
    assert nodes.has_left(NODE) and nodes.has_connected(NODE) and nodes.activations(NODE) == 1
    nodes.activated(NODE)
    assert not nodes.has_left(NODE) and nodes.activations(NODE) == 2


def test_who_connected_to_an_earlier_process_has_connected_and_was_not_heard_by_this_one() -> None:
    nodes = KnownNodes()
    assert not nodes.has_connected(NODE)
    nodes.connected_before([NODE])
    assert nodes.has_connected(NODE)
    assert (nodes.activations(NODE), nodes.silent_s(NODE)) == (0, math.inf)


def test_most_heartbeats_need_no_note_and_the_first_after_a_connection_or_goodbye_does() -> None:
    nodes = KnownNodes()
    assert not nodes.is_alive(NODE)
    nodes.alive(NODE, 60.0)
    assert nodes.is_alive(NODE)
    nodes.said_goodbye(NODE)
    assert not nodes.is_alive(NODE)
    nodes.alive(NODE, 60.0)
    nodes.activated(NODE)
    assert not nodes.is_alive(NODE) and nodes.has_connected(NODE)
    nodes.alive(NODE, 0.0)
    assert not nodes.is_alive(NODE)


def test_connections_are_counted_from_many_threads_at_once() -> None:
    nodes, before = KnownNodes(), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: [nodes.activated(NODE) for _ in range(500)], range(8)))
    finally:
        sys.setswitchinterval(before)
    assert nodes.activations(NODE) == 4000
