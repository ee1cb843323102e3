"""The node: an organization's agent, beside its data, ruled by its own policy."""
