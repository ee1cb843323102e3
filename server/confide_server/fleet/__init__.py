"""How instructions reach nodes: `port` is the interface without flwr, `flower` everything that touches it."""
