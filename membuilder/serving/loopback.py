"""Which names and addresses mean this machine and nothing else."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Tell whether a name or address means this machine and nothing else."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
