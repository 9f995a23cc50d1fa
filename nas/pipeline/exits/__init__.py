"""Adds early exits to a network: trains heads, chooses exits, sets thresholds, writes files, measures them."""
