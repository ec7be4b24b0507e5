"""Attention on a card: the rows, the peers, and what `make gpu-check` writes down. scripts/gpu_check.sh runs it."""


class NotRun(Exception):
    """A side or a step cannot run here; the message says why."""


# The exit status of a step that says so in its last line, "not run: <why>".
NOT_RUN = 77
