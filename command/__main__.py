"""``python -m pyrovae``, for launchers (torchrun, a debugger) that take a module by its name.

Installed as ``pyrovae.__main__``. A namespace has no folder of its own, so this one stands for it.
"""

from pyrovae.benchmarks.__main__ import main

if __name__ == "__main__":
    main()
