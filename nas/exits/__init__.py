"""Early exits: how networks with them are trained (``methods``), run (``net``), controlled (``policy``) and served."""

from nas.exits.runtime import Runtime

__all__ = ["Runtime"]
