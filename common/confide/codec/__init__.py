"""What turns a model update into integers in a ring and back: flatten, rotate, quantise, mask, pack."""
