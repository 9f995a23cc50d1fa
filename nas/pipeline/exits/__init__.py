"""Early exits on a network: heads trained, exits chosen, thresholds set, files written, figures measured."""
