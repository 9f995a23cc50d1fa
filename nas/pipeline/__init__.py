"""Runs searches, trainings and comparisons: a file for each stage, which ``nas.pipeline.search`` calls in turn."""
