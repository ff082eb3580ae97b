"""How fast this is, against Pyro, Pythae, PyTorch by hand, and the matrix products alone.

``pyrovae bench speed`` measures all in one run, contenders in turn, and writes a table and a
picture. Each module times one thing: :mod:`training_steps`, :mod:`own_models`,
:mod:`importance_weights`, :mod:`annealing`, :mod:`compiling`; :mod:`objective_steps` compares our
objectives with one another.
"""

from .bench import PARTS, bench

__all__ = ["PARTS", "bench"]
