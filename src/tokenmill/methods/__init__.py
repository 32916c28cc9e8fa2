"""One paper, one file; the folder says what the method does to tokens.

`tokenmill.methods("score")` lists names, and this package goes by the same name: so it can be called.
"""

import sys
import types

from tokenmill.catalog import methods


class _Callable(types.ModuleType):
    __call__ = staticmethod(methods)


sys.modules[__name__].__class__ = _Callable
