"""What kvshare raises. Each message is one line that names the node or file, what was found, and what is needed."""


class KvshareError(Exception):
    """Every failure of kvshare."""


class InvalidInputError(KvshareError, ValueError):
    """The caller's model, shapes or values are wrong."""


class RefusedError(KvshareError):
    """The input is well formed, but kvshare does not serve it, or the host is too old for it."""


class InternalError(KvshareError, RuntimeError):
    """A fault of kvshare or of the machine, such as a full disk."""


def class_for(code: str) -> type[KvshareError]:
    """The class for a status of the library: "invalid", "refused" or "internal"."""
    return {"invalid": InvalidInputError, "refused": RefusedError}.get(code, InternalError)
