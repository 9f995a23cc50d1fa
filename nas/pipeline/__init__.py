"""The stages between a run's inputs and its result, one file each; ``nas.pipeline.search`` walks through them."""
