"""Which files are tested first."""

LONGEST = (
    "test_many_processes.py",
    "test_resume.py",
    "test_quickstart.py",
    "test_vllm_server.py",
    "test_engines.py",
    "test_startup.py",
    "test_dry_run.py",
    "test_client.py",
)


def pytest_collection_modifyitems(items) -> None:
    """The longest first: files run side by side, and a long one begun last would run alone at the end."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))  # stable: the others keep their order
