"""Lay out the objects of a target: which boxes of which tensors they hold, and at which bytes."""
