"""The stages between a scene and its result, one file each; ``nas.search`` walks through them."""
