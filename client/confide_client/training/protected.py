"""Which runs the node's own step protects. Apart from that step, whose libraries take seconds to import."""

PROTECTED = frozenset({"record", "user"})
"""Units of privacy for which the node's own step adds the noise."""
