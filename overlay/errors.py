"""The program's families of error. Nothing here knows a protocol or does I/O.

A person's mistake is a `UserError`: one clear sentence, the way out, an exit code. What goes wrong on the wire is a
`ProtocolError`: `LocalProtocolError` when this program misused a state machine, `RemoteProtocolError` when the other
side broke the rules. A hostile packet never raises past its session: the caller turns it into a counted drop under
`RemoteProtocolError.reason`.
"""

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of the command line contract."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_RUNNING = 3
    REFUSED = 4
    UNREACHABLE = 5
    INTERRUPTED = 130


class UserError(Exception):
    """Something that a person can mend.

    `code` is a stable, hyphenated word for scripts (`invite-expired`), `message` one sentence that says what is wrong,
    `hint` one that says what to do about it.
    """

    def __init__(self, code: str, message: str, hint: str = "", exit_code: Exit = Exit.FAILED) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.exit_code = exit_code


class ProtocolError(Exception):
    """Base of the two below."""


class LocalProtocolError(ProtocolError):
    """This program used a state machine in a way that its state does not allow."""


class RemoteProtocolError(ProtocolError):
    """The other side sent what the protocol does not allow. `reason` names the drop counter (`short_header`)."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
