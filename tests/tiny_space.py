"""The tiny space of most tests: two stages, two families, three widths."""

TINY = {
    "name": "tiny",
    "stem": {"op": "stem(kernel=3, act=relu)", "out": 8, "stride": 1},
    "stages": [{"out": 8, "depth": 2, "stride": 1}, {"out": 16, "depth": 2, "stride": 2}],
    "ops": {
        "ghost": {"cheap": [3], "kernel": [3], "se": [0, 1], "hidden": {"min": 1, "max": 3, "step": 8}},
        "mbconv": {"kernel": [3], "se": [0], "hidden": {"min": 1, "max": 3, "step": 8}},
    },
    "skip": True,
    "head": {"op": "head(hidden=16)"},
}
