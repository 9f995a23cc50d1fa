"""Operators of the user's own in one process: what a new process would begin with."""

from collections.abc import Iterator
from contextlib import contextmanager

from nas.ops import registry, user_files


def forget() -> None:
    """As if ``--ops`` had never been given."""
    for one in user_files.loaded():
        registry.forget(one.operators)
    user_files._SOURCES.clear()


@contextmanager
def forgotten() -> Iterator[None]:
    forget()
    try:
        yield
    finally:
        forget()


DOUBLE = '''
from nas.ops import Block, register
from nas.ops.layers import ConvBN, conv_slices


@register("double")
class Double(Block):
    def __init__(self, in_ch, out_ch, stride, hidden):
        super().__init__()
        self.max_hidden = hidden
        self.first = ConvBN(in_ch, hidden, 3, stride)
        self.second = ConvBN(hidden, out_ch, act="none")

    def forward(self, x):
        return self.second(self.first(x))

    def slices(self, hidden):
        return {**conv_slices("first", ((0, hidden),), None), **conv_slices("second", None, ((0, hidden),))}
'''
