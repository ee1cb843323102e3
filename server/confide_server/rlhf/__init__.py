"""What happens centrally with preferences: reward models, policies that are optimised for them, and the gate before a
release. Preferences themselves may stay at the nodes: methods "reward" and "dpo" are the federated halves.

    candidates -> annotation (what people said of them, frozen as a snapshot) -> central_reward -> reward_model
    training (a policy, as a document says it, by TRL) -> gate -> page
    prompted (prompts that are read once for many answers) -> policy
    opinions_of_nodes (what nodes are asked of public answers, and said): to preferences, and to the gate
    merging (an adapter and its base as one model) -> gate
    gate_subject (which model a folder holds) -> evidence -> release_evidence (whether it lets a release pass)
"""

# What `confide --help` says of each without importing it: the first paragraph of its own help.
SUMMARIES = {
    "rlhf": "Preferences, reward models, and policies that are optimised for them.",
}
