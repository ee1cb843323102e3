"""The node half of sealing: treats the coordinator as an adversary.

- `member`: epoch and order of steps; `slot`: train and upload, confirm, reveal, end
- `chain`, `tokenizer_link`: which model may follow which
- `seal_log`, `heights`, `revealed`: what is remembered durably: of this run; peers' ledgers; every list revealed for
"""
