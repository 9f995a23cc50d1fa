"""nas: efficient vision backbones for a given device (profile, search, select, export)."""

__version__ = "0.2.0"
