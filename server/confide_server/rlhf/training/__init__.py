"""How a policy is optimised: one document says it, files that the document names by hash give it, TRL does it.

- `documents`: the specification of a run; `inputs`: what it names, found in the files that were given
- `rules`: rewards that can be verified; `trl_adapter`: the only module that imports TRL
"""
