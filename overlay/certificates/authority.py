"""What a person says of a certificate authority. Imported by the command line: it costs nothing."""

from typing import Final

from overlay.errors import Exit, UserError

LETS_ENCRYPT: Final = "https://acme-v02.api.letsencrypt.org/directory"


def check_authority(email: str, directory: str) -> None:
    """`email`: whom it may write to; "": no authority is asked. Raises `UserError` ("acme-invalid", exit 2)."""
    if not email:
        if directory:
            raise UserError(
                "acme-invalid", "--acme-directory needs --acme-email.", "Give an address of yours.", Exit.USAGE
            )
        return
    user, at, host = email.partition("@")
    if not (user and at and host and email.isprintable()) or set(" ,?") & set(email):
        raise UserError(
            "acme-invalid",
            f"'{email}' is not an e-mail address.",
            "As in --acme-email admin@example.org.",
            Exit.USAGE,
        )
    if directory and not directory.startswith("https://"):
        raise UserError(
            "acme-invalid",
            "The ACME directory must be an https URL.",
            f"As in --acme-directory {LETS_ENCRYPT}.",
            Exit.USAGE,
        )
