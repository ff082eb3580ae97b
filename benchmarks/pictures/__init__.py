"""Pictures of a training run and of what a model has learned, as PNG files.

Figures are drawn on canvases of their own: no window opens, and matplotlib's global state, backend
included, stays as the caller has it.
"""

from .codes import codebook_use, latent_space, principal_axes, usage
from .curves import learning_curve, power_laws
from .figures import COLOURS, GREY, blank_figure, save_figure
from .images import image_grid, reconstructions, samples
from .walks import between, through

__all__ = [
    "COLOURS",
    "GREY",
    "between",
    "blank_figure",
    "codebook_use",
    "image_grid",
    "latent_space",
    "learning_curve",
    "power_laws",
    "principal_axes",
    "reconstructions",
    "samples",
    "save_figure",
    "through",
    "usage",
]
