"""What a service-account file looks like that the push sandbox accepts: Google's form, a key of its own."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from shared.contracts.identifiers import fresh_id

PROJECT = "perennial-demo"


def service_account(sandbox_url: str, project: str = PROJECT) -> dict[str, str]:
    """A new account whose tokens come from the sandbox at `sandbox_url`. Makes an RSA key: about 0.1 s."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return {
        "type": "service_account",
        "project_id": project,
        "private_key_id": fresh_id(),
        "private_key": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
        "client_email": f"push@{project}.iam.gserviceaccount.com",
        "token_uri": f"{sandbox_url.rstrip('/')}/token",
    }
