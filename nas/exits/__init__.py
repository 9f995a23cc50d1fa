"""Early exits: how networks with them are trained (``methods``), run (``net``), controlled (``policy``) and served."""
