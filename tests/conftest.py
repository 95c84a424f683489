"""Which files are tested first, and the browser."""

pytest_plugins = ["tests.chromium"]

LONGEST = (
    "test_resume.py",
    "test_lora_runs.py",
    "test_many_processes.py",
    "test_ctrl_c.py",
    "test_gpu_stages.py",
    "test_real_model.py",
    "test_docs.py",
    "test_whole_story.py",
    "test_real_server.py",
    "test_vllm_server.py",
    "test_instances_memory.py",
    "test_reward_runs.py",
    "test_quickstart.py",
    "test_serving_fuzz.py",
    "test_serve_all.py",
    "test_postgres.py",
    "test_serving_crash.py",
    "test_stops.py",
    "test_engines.py",
    "test_startup.py",
    "test_dry_run.py",
    "test_serving.py",
    "test_client.py",
)


def pytest_collection_modifyitems(items) -> None:
    """The longest first: files run side by side, and a long one begun last would run alone at the end."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))  # stable: the others keep their order
