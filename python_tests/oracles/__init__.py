"""The methods written again from their papers, as slowly and plainly as they read: the other side of every comparison.

Each function takes one picture, computes in float64 with loops, and knows nothing of ``ficoco_ext``. Where a paper
leaves something open, the function lists its choice under "Choices". Indices are returned as lists, ascending; of equal
scores the lowest index is taken.
"""
