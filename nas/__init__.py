"""nas: efficient vision backbones for a given device (profile, search, select, export)."""

__version__ = "0.1.0"
