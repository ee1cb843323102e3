"""The node's own page: what this organization was asked, allowed, refused, sent and spent, and its operator's acts.

On this machine only (loopback), for whoever opens the one-time link that `confide node page` prints. It reads the state
folder's files, as `confide node status` does, and works whether the agent runs or not.

    app       the routes, and who may open them
    findings  what is on disk, gathered for the page
    spending  epsilon against limits over time, from the node's own ledger
    words     headline, policy and audit entries as sentences
"""
