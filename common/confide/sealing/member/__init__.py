"""The node half of sealing: treats the coordinator as an adversary. In the order in which the protocol runs:

- `member`: which step goes where; `context`: what is fixed while the run lasts; `roster`: with whom it is summed
- `epoch`: 1 advertise, 2 share
- `slot`: 3 train and upload, 4 confirm, 5 reveal, 6 end; with `upload`, `confirm`, `reveal` and `slot_state`
- `chain`, `tokenizer_link`: which model may follow which
- `seal_log`, `heights`, `revealed`: what is remembered durably: of this run; peers' ledgers; every list revealed for
"""
