"""Drawing of reductions; :mod:`ficoco_ext.visualize` names what is public."""
