"""The page of a running memory server, in a real browser: it searches, answers and shows what an answer stands on."""

import base64

import pytest

from membuilder.llm.endpoints import ModelAccess, ModelEndpoint, Provider
from membuilder.serving.access import new_key
from tests.chromium import Page, needs_chromium
from tests.fault_server import FaultServer, answer
from tests.served import served

pytestmark = needs_chromium
EVIL = "I adopted a cat called <img src=x onerror=alert(1)><script>document.title = 'owned'</script>."
MOVE = "I moved to Leeds last week."


def entries_of_reply(browser: Page) -> list[str]:
    return browser.value("[...document.querySelectorAll('#reply .entry .text')].map(e => e.textContent)")


def answering(model: FaultServer) -> ModelAccess:
    endpoint = ModelEndpoint(name="m-1", provider=Provider.VLLM, base_url=model.base_url)
    return ModelAccess(endpoint=endpoint, api_key="sk-test")


@pytest.mark.parametrize("width", [380, 1280])
def test_the_live_page_searches_and_answers(tmp_path, browser, width):
    with (
        FaultServer(answer("It is <b>called</b> Miso.")) as model,
        served(tmp_path, answerer=answering(model)) as server,
    ):
        server.tell("ann", "s1", EVIL, MOVE)
        with server.listening() as address:
            browser.open(f"{address}/v1/users/ann/memory", width=width)
            assert browser.value("document.querySelectorAll('#list .entry').length") == 2
            browser.click("#ask")
            browser.type("Who moved to Leeds?")
            browser.press("Enter")
            browser.wait_for("document.querySelectorAll('#reply .entry').length > 0")
            assert MOVE in entries_of_reply(browser)[0]
            browser.press("Tab")
            browser.press("Tab")
            assert browser.value("document.activeElement.textContent") == "Answer"
            browser.press("Enter")
            browser.wait_for("document.querySelector('#reply .answer') !== null")
            assert browser.value("document.querySelector('#reply .answer').textContent") == "It is <b>called</b> Miso."
            assert any(EVIL in text for text in entries_of_reply(browser))
            quotes = browser.value("[...document.querySelectorAll('#reply details[open] blockquote')].length")
            assert quotes == 2  # the turns behind the entries stand open
            assert browser.value("document.querySelectorAll('#page script, #page img').length") == 0
            assert browser.value("document.title") == "Memory of ann"
            assert browser.value("document.documentElement.scrollWidth") <= width
            server.delete("/v1/users/ann")
            browser.click(".action[type=submit]")
            browser.wait_for("document.querySelector('#reply .failed') !== null")
            assert "nothing of this name" in browser.value("document.querySelector('#reply .failed').textContent")


def test_a_browser_gives_the_key_as_a_password(tmp_path, browser):
    key, line = new_key(["ann"])
    (tmp_path / "keys.jsonl").write_text(line + "\n")
    with served(tmp_path / "root", api_keys=tmp_path / "keys.jsonl") as server:
        assert "Basic" in server.get("/v1/users/ann/memory").headers["www-authenticate"]
        given = base64.b64encode(f"me:{key}".encode()).decode()
        headers = {"authorization": f"Basic {given}", "accept": "text/html"}
        assert server.request("GET", "/v1/users/ben/memory", headers=headers).status_code == 403
        assert server.request("GET", "/v1/users/ann/memory", headers=headers).status_code == 404
        wrong = headers | {"authorization": "Basic !!"}
        assert server.request("GET", "/v1/users/ann/memory", headers=wrong).status_code == 401
