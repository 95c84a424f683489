"""What the environment says of the network, which every HTTP client here heeds."""

from collections.abc import Iterator
from contextlib import contextmanager

from membuilder.errors import ConfigError


@contextmanager
def usable_network_settings() -> Iterator[None]:
    """Make clients inside. Raises ConfigError where a proxy or certificate of the environment cannot be used."""
    try:
        yield
    except (ValueError, ImportError, OSError) as error:  # an unknown proxy, one that needs a package, no such file
        where = "HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE or SSL_CERT_DIR"
        raise ConfigError(f"{where} cannot be used: {error}; correct it or unset it") from error
