"""The stages between a scene and its result, one file each; ``nas.pipeline.search`` walks through them."""
