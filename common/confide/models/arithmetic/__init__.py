"""The arithmetic of this machine: the same model, computed as its processor does it best.

- `precision`: bfloat16 or float32, by measuring; `widened`: a float32 copy of a base, made once on a machine
- `linear`, `attention`: layers on a matrix unit where there is one; `linear_kernels`, `attention_kernels`: its kernels
- `matrix_unit`: the unit itself
- `unpadded`: a batch without padding, and what its rows share once; `frozen_prefix`: what never changes, kept
"""
