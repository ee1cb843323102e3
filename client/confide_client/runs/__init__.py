"""What the node knows of each run: offer, approval, plan, cost, slots."""
