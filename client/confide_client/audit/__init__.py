"""The hash-chained audit log, and audits of what a model remembers.

- `log`, `sentences`: what was asked, allowed, refused and sent; the same in words
- `canaries`, `auditing`: records that are planted, and what a model shows of them
"""
