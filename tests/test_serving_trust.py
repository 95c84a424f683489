"""Whom the memory server lets do what: keys, what one user can learn of another, pages of other sites."""

import base64
import re
import signal
import time
from pathlib import Path

import pytest

from membuilder.errors import DataError
from membuilder.serve import main
from membuilder.serving.access import Keys, new_key
from membuilder.serving.problems import Problem
from tests.patience import HANGS
from tests.served import served
from tests.serving_processes import Serving
from tests.test_serving import CAT

SECRET = "I bought a house in Zanzibar last week."
ANN = "/v1/users/ann"
BASIC = 'Basic realm="MemBuilder", charset="UTF-8"'
"""What lets a browser ask its user for a key."""


def key_file(folder: Path, *users: str) -> tuple[Path, list[str]]:
    """A file with a key for each user or pattern, and the keys."""
    keys, lines = zip(*(new_key([user]) for user in users), strict=True)
    path = folder / "keys.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path, list(keys)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def said(text: str, **more: object) -> dict:
    return {"messages": [{"role": "user", "content": text, **more}]}


@pytest.fixture
def locked(tmp_path):
    path, (ann, ben) = key_file(tmp_path, "ann", "ben")
    with served(tmp_path / "root", api_keys=path) as server:
        server.keys = {"ann": ann, "ben": ben}
        body = {"session_id": "s1", "messages": [{"role": "user", "content": SECRET}]}
        url = "/v1/users/ben/sessions?wait=true"
        assert server.request("POST", url, json=body, headers=bearer(ben)).status_code == 200
        yield server


# Keys


def test_without_a_key_nothing_of_a_user_is_done_or_read(locked):
    schema = locked.get("/openapi.json").json()["paths"]
    routes = [(method, path) for path, methods in schema.items() for method in methods if "{user}" in path]
    assert len(routes) >= 12
    for method, path in routes:
        url = re.sub(r"{\w+}", "x", path.replace("{user}", "ben"))
        for headers in ({}, bearer("mb-guessed"), {"authorization": locked.keys["ben"]}, {"authorization": "Bearer"}):
            reply = locked.request(method.upper(), url, headers=headers, content=b"{no json")
            assert (reply.status_code, reply.headers["www-authenticate"]) == (401, BASIC), (method, path)
    assert locked.get(f"/v1/users/ben/memory?key={locked.keys['ben']}").status_code == 401


def test_a_key_learns_nothing_of_others_whether_they_are_there_or_not(locked):
    replies = []
    for user in ("ben", "nobody"):
        for way in ("memory", "entries/0123456789abcdef", "jobs/x", "search?query=Zanzibar&k=0", "export"):
            reply = locked.request("GET", f"/v1/users/{user}/{way}", headers=bearer(locked.keys["ann"]))
            replies.append((reply.status_code, {**reply.json(), "id": None}, sorted(reply.headers)))
    assert replies[0][0] == 403 and all(each == replies[0] for each in replies)


def test_patterns_name_users_and_nothing_beside_them(tmp_path):
    path, (team, all_of_them) = key_file(tmp_path, "team-*", "*")
    keys = Keys(path)
    assert keys.check(f"bearer  {team} ", "team-7") and keys.check(f"Bearer {all_of_them}", "whoever")
    for user in ("team", "Team-7", "a-team-7", "xteam-7"):
        with pytest.raises(Problem) as refused:
            keys.check(f"Bearer {team}", user)
        assert refused.value.status_code == 403


def test_the_file_tells_no_key_and_a_broken_one_changes_nothing(tmp_path, capsys):
    assert main(["--new-key", "ann"]) == 0
    line, told = capsys.readouterr()
    key = re.search(r"mb-\S+", told)[0]
    assert key not in line and len(key) > 40
    path = tmp_path / "keys.jsonl"
    path.write_text(line)
    keys = Keys(path)
    for broken in ('{"sha256": 7}', '{"key": "mb-plain"}', "[", None):
        path.unlink() if broken is None else path.write_text(f"{line}{broken}\n")
        with pytest.raises(DataError):
            keys.read()
        assert keys.check(f"Bearer {key}", "ann")
    path.write_text("")
    keys.read()
    with pytest.raises(Problem):
        keys.check(f"Bearer {key}", "ann")


def test_another_address_than_loopback_needs_keys(tmp_path, capsys):
    for host in ("0.0.0.0", "192.168.1.4", "::", "example.org", "", "127.0.0.1.example.org"):
        assert main(["--root", str(tmp_path / "root"), "--host", host]) == 2
        assert "--api-keys" in capsys.readouterr().err
    assert not (tmp_path / "root").exists()


# One key, and what another's user has


@pytest.fixture(scope="module")
def two_users(tmp_path_factory):
    """A real process; its keys, and what of ben's no reply to ann may tell."""
    folder = tmp_path_factory.mktemp("trust")
    path, (ann, ben) = key_file(folder, "ann", "ben")
    with Serving(folder / "root", folder / "log", "--api-keys", path) as server:
        job = server.remember("ben", "ben-session-7", SECRET, **bearer(ben))
        assert job.json()["state"] == "done"
        server.remember("ann", "s1", CAT, **bearer(ann))
        memory = server.call("GET", "/v1/users/ben/memory", **bearer(ben)).json()
        server.ann, server.ben, server.keys_path, server.folder = ann, ben, path, folder
        server.job, server.entry = job.json()["id"], memory["entries"][0]["id"]
        yield server


BEN_BY_OTHER_NAMES = (
    "ben", "Ben", "BEN", "%62en", "b%65n", "%2562en", "ben%00", "%00ben", "ben%20", "%20ben", "ben%0a",
    "ben%0d%0ax:%20y", "ben%2f", "%2fben", "ann%2f..%2fben", "ann/../ben", "ann/%2e%2e/ben",
    "ann/..%2fben", "ann%5c..%5cben", "./ben",
    "%2e/ben", "/ben", "ann//ben", "ann;ben", "ann,ben", "ann%00ben", "ben.", "b*n", "b%3Fn", "*", "%5Bb%5Den",
    "b%d0%b5n", "%ef%bd%82%ef%bd%85%ef%bd%8e", "be%cc%81n", "ben%e2%80%8b", "%e2%80%aeneb", "%c1%a2en", "b%u0065n",
    "ann%c0%af..%c0%afben", "%252e%252e%252fben", "ann%23/../ben", "ann%3f/../ben",
)  # fmt: skip


def way(method: str, target: str, body: object = None, headers: dict[str, str] | None = None) -> tuple:
    return method, target, body, headers or {}


def ways_by_name(server: Serving) -> list[tuple]:
    return [("GET", f"/v1/users/{name}/{of}") for name in BEN_BY_OTHER_NAMES for of in ("memory", "export")]


def ways_by_id(server: Serving) -> list[tuple]:
    entry, job, session = server.entry, server.job, "ben-session-7"
    return [
        ("GET", f"{ANN}/entries/{entry}"),
        ("GET", f"{ANN}/entries/{entry.upper()}"),
        ("PATCH", f"{ANN}/entries/{entry}", {"text": "x"}),
        ("DELETE", f"{ANN}/entries/{entry}?with_turns=true"),
        ("GET", f"{ANN}/jobs/{job}"),
        ("GET", f"{ANN}/jobs/{session}"),
        ("GET", f"{ANN}/jobs/%25"),
        ("DELETE", f"{ANN}/sessions/{session}"),
        ("GET", f"{ANN}/entries/%2e%2e%2f%2e%2e%2fben%2fentries%2f{entry}"),
        ("GET", f"{ANN}/jobs/{job}' OR user='ben"),
        ("GET", f"{ANN}/jobs/{job}%27%20OR%20user=%27ben"),
    ]


def ways_around(server: Serving) -> list[tuple]:
    ben, memory = "/v1/users/ben", "/v1/users/ben/memory"
    about = [
        {"x-original-url": memory}, {"x-rewrite-url": memory}, {"x-forwarded-prefix": "/v1/users/ben"},
        {"x-http-method-override": "GET"}, {"x-user": "ben", "cookie": "user=ben"}, {"host": "ben"},
        {"authorization": f"Bearer {server.ann}, Bearer mb-x"}, {"authorization": "Basic YmVuOmJlbg=="},
        {"authorization": f"Bearer {server.ann}\r\nauthorization: Bearer mb-x"}, {"accept": "text/html"},
        {"forwarded": "for=127.0.0.1"}, {"x-forwarded-for": "127.0.0.1"}, {"range": "bytes=0-99"},
    ]  # fmt: skip
    return [
        *(("GET", memory, None, each) for each in about),
        *(("GET", f"{ANN}/memory", None, each) for each in about),
        *((method, memory) for method in ("HEAD", "OPTIONS", "TRACE", "POST", "PUT")),
        ("GET", f"{ANN}/memory?user=ben&user=ben"),
        ("GET", f"{ANN}/search?query=Zanzibar&user=ben"),
        ("GET", f"{ANN}/search?query=x&query=Zanzibar&k=1&k=100"),
        ("POST", f"{ANN}/answer", {"question": "Zanzibar?"}),
        ("POST", f"{ben}/answer", {"question": "Zanzibar?"}),
        ("POST", f"{ben}/sessions?wait=true", {"session_id": "ben-session-7", "messages": []}),
        ("POST", f"{ben}/import", b"{}"),
        ("DELETE", ben),
        ("DELETE", f"{ben}/sessions/ben-session-7"),
        ("GET", f"http://127.0.0.1{memory}"),
        ("GET", f"http://ben@127.0.0.1{memory}#x"),
        ("GET", f"{ANN}/export"),
        ("GET", "/metrics"),
        ("GET", "/ready"),
        ("GET", "/health"),
        ("GET", "/openapi.json"),
        ("GET", "/v1/users"),
        ("GET", "/v1/users/"),
        ("GET", f"{ben}/memory/"),
    ]


@pytest.mark.parametrize("ways", [ways_by_name, ways_by_id, ways_around])
def test_one_key_sees_nothing_of_another_whichever_way_it_asks(two_users, ways):
    told = [b"Zanzibar", b"ben-session", two_users.job.encode(), two_users.entry.encode(), two_users.ben.encode()]
    for method, target, body, headers in (way(*each) for each in ways(two_users)):
        reply = two_users.call(method, target, body, **bearer(two_users.ann) | headers)
        found = [each for each in told if each in reply.raw]  # also of what was sent
        assert not found, (method, target, headers, reply.raw[:2000])
        assert reply.status in (200, 400, 401, 403, 404, 405, 409, 422, 501), (method, target, headers, reply.raw)
        if "ben" in target and method != "OPTIONS" and ANN not in target:
            assert reply.status >= 400, (method, target)
    memory = two_users.call("GET", "/v1/users/ben/memory", **bearer(two_users.ben)).json()
    assert [entry["id"] for entry in memory["entries"]] == [two_users.entry]
    assert SECRET in memory["entries"][0]["text"]


def test_two_users_may_have_the_same_ids_and_texts(two_users):
    """And what one is told of hers leads nowhere else, whatever name she gives the server."""
    reply = two_users.remember("ann", "ben-session-7", SECRET, **bearer(two_users.ann) | {"host": "evil.example"})
    assert reply.headers["location"] == f"{ANN}/jobs/{reply.json()['id']}" and two_users.job not in reply.raw.decode()
    assert two_users.call("DELETE", f"{ANN}/sessions/ben-session-7", **bearer(two_users.ann)).status == 204
    assert two_users.call("GET", f"/v1/users/ben/entries/{two_users.entry}", **bearer(two_users.ben)).status == 200


def test_keys_are_read_again_when_told_to_and_nothing_is_printed_of_them(two_users):
    before = two_users.keys_path.read_text()
    key, line = new_key(["carol"])
    for text, code in ((line, 404), (f"{line}\n[", 404), ("", 401), (before + line, 404)):
        two_users.keys_path.write_text(text)
        printed = len(two_users.printed)
        two_users.signal(signal.SIGHUP)
        until = time.monotonic() + HANGS
        while time.monotonic() < until:
            reply = two_users.call("GET", "/v1/users/carol/memory", **bearer(key))
            if reply.status == code and (not text.endswith("[") or "stay as they were" in two_users.printed[printed:]):
                break
            time.sleep(0.02)
        assert reply.status == code
    assert two_users.call("GET", f"{ANN}/memory", **bearer(two_users.ann)).status == 200
    two_users.keys_path.unlink()
    two_users.signal(signal.SIGHUP)
    assert two_users.call("GET", f"{ANN}/memory", **bearer(two_users.ann)).status == 200
    two_users.keys_path.write_text(before)
    two_users.signal(signal.SIGHUP)
    for word in (key, two_users.ann, two_users.ben, "Zanzibar", "Miso", "Traceback"):
        assert word not in two_users.printed


# Pages of other sites


OTHER_SITES = (
    {"host": "evil.example"}, {"host": "evil.example:8800"}, {"host": "127.0.0.1.evil.example"}, {"host": ""},
    {"host": "localhost.evil.example"}, {"host": "127.0.0.1@evil.example"}, {"host": "[::1"}, {"host": "0.0.0.0"},
    {"origin": "http://evil.example"}, {"origin": "null"}, {"origin": "https://127.0.0.1"}, {"origin": "file://"},
    {"origin": "http://127.0.0.1:3000"}, {"origin": "http://127.0.0.1.evil.example"},
)  # fmt: skip


def test_without_keys_no_page_of_another_site_is_answered(tmp_path):
    with served(tmp_path) as server:
        server.tell("ann", "s1", SECRET)
        requests = (("GET", f"{ANN}/memory"), ("GET", "/metrics"), ("DELETE", ANN), ("POST", f"{ANN}/sessions"))
        for headers in OTHER_SITES:
            (which,) = headers
            for method, url in requests:
                reply = server.request(method, url, headers=headers, json=said("I moved."))
                assert reply.status_code == (421 if which == "host" else 403), headers
                assert reply.json()["type"] == f"urn:membuilder:other-{'host' if which == 'host' else 'site'}"
                assert "access-control-allow-origin" not in reply.headers
        assert len(server.texts("ann")) == 1


def test_without_keys_its_own_page_is_answered_under_every_name_of_loopback(tmp_path):
    with served(tmp_path) as server:
        for host in ("127.0.0.1", "127.0.0.1:8800", "localhost:8800", "LOCALHOST", "[::1]:8800", "127.9.9.9"):
            headers = {"host": host, "origin": f"http://{host}"}
            assert server.request("GET", "/health", headers=headers).status_code == 200, host
    path, (ann,) = key_file(tmp_path, "ann")
    with served(tmp_path / "root", api_keys=path) as server:  # a key is no page's, and the server may have a name
        headers = {"host": "memory.example", "origin": "https://chat.example"} | bearer(ann)
        assert server.request("GET", f"{ANN}/memory", headers=headers).status_code == 404


def test_a_key_that_a_browser_adds_by_itself_serves_no_page_of_another_site(tmp_path):
    path, (ann,) = key_file(tmp_path, "ann")
    password = "Basic " + base64.b64encode(f"me:{ann}".encode()).decode()
    with served(tmp_path / "root", api_keys=path) as server:
        for origin, status in (("https://chat.example", 403), ("null", 403), ("https://memory.example", 404)):
            headers = {"host": "memory.example", "origin": origin, "authorization": password}
            assert server.request("DELETE", ANN, headers=headers).status_code == status, origin
