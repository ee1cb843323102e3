"""What turns a model update into integers in a ring and back: flatten, rotate, quantise, mask, pack.

- `tensors`: named tensors as one flat vector, and the hash of a model
- `norms`: lengths of long vectors
- `layout`: the shape of one sealed vector, on which both sides must agree
- `seal_vector`: the two halves: a node's update into one masked file, the coordinator's sum of such files
- `kernels`, `keystream`, `compiled`: inner loops, masks and randomness, and how they are compiled
- `digest`: of an upload, in memory or as a file
"""
