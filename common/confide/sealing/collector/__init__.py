"""The coordinator half of sealing: asks, keeps every answer durably, decides, opens. In the order of the protocol:

- `collector`: of one group, for the run driver; `grouped`: one for each group of the roster, summed
- `cohort`, `attendance`: who may be summed, and who answers
- `epoch`: 1 advertise, 2 share
- `slot`: 3 uploads, 4 confirm, 5 reveal, 6 end; with `uploads` on disk and `opening` of the sum
- `state`, `recorder`: what is known, rebuilt from the journal
"""
