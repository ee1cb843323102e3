"""Questions that go to the organizations' own indices: documents stay where they are, signed quotations come back.

    cards = Desk... at each node                          # confide_client.retrieval
    inquirer = Inquirer(member, client, embedder, purpose="care")
    for answer in inquirer.ask("What does a visit cost?").answers: ...

The rules, and who learns what: docs/federated-retrieval.md.

- `documents`: card, inquiry and answer, each signed by who says it
- `refusals`: the names of why nothing is said
- `sealed`: so that only the receiver reads them
- `outline`: about what a node's documents are, with noise that its ledger is charged for
- `routing`: which nodes to ask
- `checking`: what an asker believes of an answer
- `asking`: all of an asker's steps in order
"""
