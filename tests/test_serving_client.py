"""The Python client, and that it says what the service says in process."""

import logging
import subprocess
import sys

import pytest

from membuilder.bank.json_lines import json_lines
from membuilder.errors import ConfigError
from membuilder.serve import Client
from membuilder.serving.client import ClientError, Conflict, NotAllowed, NotFound, TryLater
from membuilder.serving.http_records import JobReply, MemoryReply, NewSession, SearchReply
from membuilder.serving.limits import RequestLimits
from tests.listening import key_for, listening
from tests.served import served

CAT, MOVE, PIANO = "I adopted a cat called Miso.", "I moved to Leeds last week.", "I bought a piano last Tuesday."


def said(*texts: str) -> list[dict[str, str]]:
    return [{"role": "user", "name": "Ann", "content": text} for text in texts]


class OverHttp:
    """The story's calls by the client."""

    def __init__(self, client: Client):
        self._client = client
        for name in ("correct", "forget_entry", "forget_session", "forget_user"):
            setattr(self, name, getattr(client, name))

    def remember(self, user: str, session_id: str, when: str, *texts: str) -> str:
        job = self._client.remember(user, said(*texts), session_id=session_id, timestamp=when)
        return self._client.wait(user, job["id"])["state"]

    def found(self, user: str, query: str) -> list[str]:
        return [each["entry"]["text"] for each in self._client.search(user, query, k=2, current_only=True)["found"]]

    def memory(self, user: str) -> dict:
        return self._client.memory(user)

    def move(self, user: str, other: str) -> None:
        self._client.import_memory(other, self._client.export(user))


class InProcess:
    """The same calls of the service itself."""

    def __init__(self, server):
        self._call, self._service = server._portal.call, server.service

    def remember(self, user: str, session_id: str, when: str, *texts: str) -> str:
        given = NewSession(session_id=session_id, timestamp=when, messages=said(*texts))
        job, _ = self._call(self._service.remember, user, given.session(), given.digest())
        return JobReply.of(self._call(self._service.settled, job)).state

    def found(self, user: str, query: str) -> list[str]:
        retrieval = self._call(lambda: self._service.search(user, query, 2, current_only=True))
        return [each.entry.text for each in SearchReply.of(retrieval).found]

    def memory(self, user: str) -> dict:
        return MemoryReply.of(self._call(self._service.contents, user)).model_dump(mode="json")

    def move(self, user: str, other: str) -> None:
        memory = self._call(self._service.exported, user)
        assert list(json_lines(memory))
        self._call(self._service.import_memory, other, memory)

    def __getattr__(self, name: str):
        return lambda *arguments: self._call(getattr(self._service, name), *arguments)


def story(memories) -> list:
    """What a user's memory says while it is written, corrected, moved and erased."""
    told = [memories.remember("ann", "s1", "2024-03-01T10:00:00Z", CAT, PIANO)]
    told += [memories.remember("ann", "s2", "2024-04-01T10:00:00Z", MOVE), memories.found("ann", "cat")]
    entry = next(each["id"] for each in memories.memory("ann")["entries"] if "Miso" in each["text"])
    memories.correct("ann", entry, "Ann's cat is called Momo.")
    told.append(memories.found("ann", "cat"))
    memories.move("ann", "ben")
    memories.forget_session("ann", "s2")
    moved = next(each["id"] for each in memories.memory("ben")["entries"] if "piano" in each["text"])
    memories.forget_entry("ben", moved)
    told += [[each["text"] for each in memories.memory(user)["entries"]] for user in ("ann", "ben")]
    memories.forget_user("ann")
    return told


def test_one_story_goes_the_same_over_http_and_in_process(tmp_path):
    with listening(tmp_path / "http") as address, Client(address) as client:
        over_http = story(OverHttp(client))
        with pytest.raises(NotFound):
            client.memory("ann")
    with served(tmp_path / "in process") as server:
        assert story(InProcess(server)) == over_http
    assert over_http[:2] == ["done", "done"] and over_http[3][0] == "Ann's cat is called Momo."


def test_a_job_and_an_entry_are_told_whole(tmp_path):
    with listening(tmp_path) as address, Client(address) as client:
        job = client.remember("ann", said(CAT), wait=True)
        assert client.job("ann", job["id"]) == job and job["state"] == "done"
        (entry,) = client.memory("ann")["entries"]
        told = client.entry("ann", entry["id"])
        assert told["entry"] == entry and [turn["text"] for turn in told["turns"]] == [CAT]


def test_refusals_have_types_and_tell_status_kind_and_detail(tmp_path):
    with listening(tmp_path) as address, Client(address) as client:
        client.remember("ann", said(CAT), session_id="s1", wait=True)
        for kind, status, name, call in (
            (NotFound, 404, "not-found", lambda: client.memory("nobody")),
            (Conflict, 409, "session-conflict", lambda: client.remember("ann", said(MOVE), session_id="s1")),
            (ClientError, 422, "invalid-request", lambda: client.search("a b", "cat")),
            (ClientError, 422, "invalid-request", lambda: client.remember("ann", [])),
            (ClientError, 501, "no-answerer", lambda: client.answer("ann", "What is the cat called?")),
        ):
            with pytest.raises(ClientError) as refused:
                call()
            error = refused.value
            assert (type(error), error.status, error.kind) == (kind, status, name) and error.detail in str(error)


def test_a_name_cannot_lead_a_request_elsewhere(tmp_path):
    with listening(tmp_path) as address, Client(address) as client:
        client.remember("ann", said(CAT), session_id="s1", wait=True)
        for name in (".", "..", "../ann", "ben/../ann", "ann?x=", "ann#", "%61nn", ""):
            with pytest.raises(ClientError):
                client.memory(name)
            with pytest.raises(ClientError):
                client.forget_session("ann", name)
        assert len(client.memory("ann")["sessions"]) == 1


def test_a_key_is_sent_and_never_shown(tmp_path, caplog, capsys):
    caplog.set_level(logging.DEBUG)
    key = key_for(tmp_path / "keys", "ann")
    told = []
    with listening(tmp_path / "root", api_keys=tmp_path / "keys") as address:
        with Client(address, key=key) as client:
            client.remember("ann", said(CAT), wait=True)
            with pytest.raises(NotAllowed) as refused:
                client.memory("ben")
            told += [repr(client), str(vars(client)), repr(refused.value)]
        with Client(address, key="mb-other") as client, pytest.raises(NotAllowed):
            client.memory("ann")
    with Client(address, key=key) as client, pytest.raises(TryLater) as gone:
        client.memory("ann")
    assert gone.value.status is None and gone.value.kind == "no-reply"
    with pytest.raises(ConfigError) as wrong:
        Client(address, key=f"{key}\n")
    told += [repr(gone.value), repr(gone.value.__cause__), str(wrong.value), caplog.text, *capsys.readouterr()]
    assert not [text for text in told if key in text]


def test_too_many_requests_are_to_be_sent_later(tmp_path):
    with listening(tmp_path, requests=RequestLimits(requests_per_minute=1)) as address, Client(address) as client:
        with pytest.raises(TryLater) as refused:
            for _ in range(3):
                try:
                    client.memory("ann")
                except NotFound:
                    pass
        assert (refused.value.status, refused.value.kind) == (429, "too-many-requests")


def test_what_is_no_reply_of_the_server_is_told_by_its_status(tmp_path):
    with listening(tmp_path) as address, Client(f"{address}/elsewhere") as client:
        with pytest.raises(NotFound):
            client.memory("ann")


def test_the_client_needs_no_web_framework():
    check = "from membuilder.serve import Client; import sys; print({'fastapi', 'torch', 'mcp'} & {*sys.modules})"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"
