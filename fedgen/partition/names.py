"""Names of clients that are numbered rather than named by their owners."""


def client_names(num_clients: int) -> list[str]:
    """``client-000``, ``client-001``, ...: as many digits as make order by name the order by number.

    >>> client_names(2)
    ['client-000', 'client-001']
    """
    width = max(3, len(str(num_clients - 1)))
    return [f"client-{number:0{width}d}" for number in range(num_clients)]
