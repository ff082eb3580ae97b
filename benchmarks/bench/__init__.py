"""Studies: grids of data, models, objectives, seeds and estimators, run anywhere, once.

    study file -> Study -> cells -> jobs -> a folder -> report

A study file says what is compared (:mod:`.reading`), its cells are addressed by everything that
decides their numbers (:mod:`.study`), their work is cut into jobs that can be lost without harm
(:mod:`.jobs`), and a runner hands these to processes or to a Dask cluster (:mod:`.runner`).
"""

from .checks import check
from .command import Bench, preview, run
from .cost import forecast
from .reading import read_study, shipped
from .runner import run_study
from .study import Cell, Study, StudyError

__all__ = [
    "Bench",
    "Cell",
    "Study",
    "StudyError",
    "check",
    "forecast",
    "preview",
    "read_study",
    "run",
    "run_study",
    "shipped",
]
