"""Where noise comes from, on integers; what it is for, and what it costs, is not known here.

- `randomness`: the one byte source, and the samplers on it; `rounded_gaussian`: a Gaussian number, rounded, exactly
- `lattice`: clipped sums as integers, with Gaussian noise added there
- `rounding`: a vector rounded at random, its norm bounded for certain
"""
