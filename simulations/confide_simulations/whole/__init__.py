"""The whole mission in one command: `confide demo whole`. Pieces of the separate demos, put one behind the other.

- `run`: all stages in order
- `federated`: one consortium, two sealed and private runs: fine-tuning, and a reward from comparisons
- `aligned`: a policy by that reward, its gate, and the signed release of either
- `served`: the endpoint with the organizations' documents, asked by OpenAI's own client
- `ledgers`: what each organization spent, by its own ledger
- `lineage`, `page`: where an answer comes from, and the page that shows it
"""
