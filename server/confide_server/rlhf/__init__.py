"""What happens centrally with preferences: reward models, policies that are optimised for them, and the gate before a
release. Preferences themselves may stay at the nodes: methods "reward" and "dpo" are the federated halves."""
