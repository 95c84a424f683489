"""What a store holds, shown: in the terminal, and as a page in a real browser. Nothing that was said is ever markup or
control.
"""

import asyncio
import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from membuilder.bank.html_page import render_page
from membuilder.bank.store import writing
from membuilder.building.builder import Builder, ask_model
from membuilder.colours import colours_of
from membuilder.inspect import history, main, read_contents, show_bank, show_entry, show_session
from membuilder.schemes.four_agents.prompts import PromptConfig
from membuilder.schemes.four_agents.scheme import FourAgents
from membuilder.types import Agent, Bank
from tests.chromium import Page, needs_chromium
from tests.fakes import HashEmbedder
from tests.scripted import ScriptedModel, talk

SCRIPT = "<script>document.title='hacked';alert(1)</script><img src=x onerror=alert(2)></script><!--"
STEERING = "[bold red]loud[/] \x1b[2J\x1b]0;title\x07 \u202egnorw\u202c"
SESSIONS = (
    ["I adopted a cat.", "I bake bread on Sundays."],
    ["The cat is called Miso.", SCRIPT],
    ["Miso moved to Oslo with us.", STEERING],
)


def script(agent: Agent, prompt: str) -> str:
    """m1 (episodic), m2 (procedural); m3 replaces m1, m4 is the script (semantic); m5 replaces m3, m6 steers."""
    session = next(n for n, (first, _) in enumerate(SESSIONS) if first in prompt.split("\n---\n")[0])
    if agent is Agent.CORE:
        return (
            json.dumps({"operation": "APPEND", "content": "Ann has a cat."}),
            json.dumps({"operation": "REWRITE", "content": f"Ann has a cat, Miso.\n{SCRIPT}"}),
            f"I will not. {SCRIPT} {STEERING}",
        )[session]
    added = {
        Agent.EPISODIC: (
            {"action": "ADD", "quote": [1]},
            *({"action": "UPDATE", "old_memory": old, "quote": [1]} for old in ("m1", "m3")),
        )[session],
        Agent.SEMANTIC: (None, {"action": "ADD", "quote": [2]}, {"action": "ADD", "memory": STEERING})[session],
        Agent.PROCEDURAL: ({"action": "ADD", "quote": [2]}, None, None)[session],
    }[agent]  # fmt: skip
    return json.dumps({"operations": [added] if added else []})


@pytest.fixture(scope="module")
def store_path(tmp_path_factory) -> Path:
    path, prompts = tmp_path_factory.mktemp("inspect") / "memory.db", PromptConfig()
    dialogue, embedder = talk(*SESSIONS, name="<b>d</b>"), HashEmbedder(8)
    scheme = FourAgents(prompts)
    builder = Builder(ask=ask_model(ScriptedModel(script), scheme), embedder=embedder, scheme=scheme)
    settings = {"dialogue": dialogue.id, "speakers": ["Ann", "Ben"], "model": "scripted", "dimension": 8}
    with writing(path, settings) as store:
        asyncio.run(builder.build(dialogue, store))
    builder.close()
    return path


def printed(renderable) -> str:
    console = Console(width=120, file=io.StringIO())
    console.print(renderable)
    return console.file.getvalue()


def test_the_bank_counts_entries_and_shows_the_core(store_path):
    shown = printed(show_bank(read_contents(store_path)))
    assert "3 sessions; 6 entries (3 episodic, 2 semantic, 1 procedural), 2 of them superseded" in shown
    assert "Ann has a cat, Miso." in shown
    assert re.search(r"m5 +episodic +2023-05-22 +\[2023-05-22\] Ann: Miso moved to Oslo with us\. +m3", shown)


def test_the_history_of_an_entry_reaches_both_ways(store_path):
    bank = read_contents(store_path).bank
    assert [entry.supersedes for entry in bank.entries] == [(), (), ("m1",), (), ("m3",), ()]
    for entry_id in ("m1", "m3", "m5"):
        assert [entry.id for entry in history(bank, entry_id)] == ["m1", "m3", "m5"]
    assert [entry.id for entry in history(bank, "m2")] == ["m2"]
    shown = printed(show_entry(read_contents(store_path), "m3"))
    assert "m3 was written in session 1 (D2)" in shown
    assert "D2:1 Ann: The cat is called Miso." in shown
    assert "in words of the model's own" in printed(show_entry(read_contents(store_path), "m6"))


def test_a_session_shows_what_it_changed_and_what_failed(store_path):
    contents = read_contents(store_path)
    second = printed(show_session(contents, 1))
    assert "- Ann has a cat." in second and "+ Ann has a cat, Miso." in second
    assert re.search(r"m3 +episodic", second) and re.search(r"m4 +semantic", second)
    assert not re.search(r"^(m1|m2|m5) ", second, re.MULTILINE)
    third = printed(show_session(contents, 2))
    assert re.search(r"core answered in [\d.]+ s, failed: not_json", third)


@pytest.mark.parametrize("arguments", [[], ["--session", "2"], ["--entry", "m6"]])
def test_nothing_said_steers_the_terminal(store_path, arguments, capsys):
    main([str(store_path), *arguments])
    shown = capsys.readouterr().out
    assert "[bold red]loud[/]" in shown  # markup is text
    assert not set(shown) & {"\x1b", "\x07", "\u202e", "\u202c"}


@pytest.mark.parametrize(
    "arguments, says",
    [(["--entry", "m99"], "no entry 'm99'; this store has 6"), (["--session", "3"], "no session 3; this store has 3"),
     (["--html", "/dev/null/x.html"], "could not write '/dev/null/x.html'")],
)  # fmt: skip
def test_what_is_not_there_ends_the_command(store_path, arguments, says):
    with pytest.raises(SystemExit, match=says):
        main([str(store_path), *arguments])


def test_a_store_that_is_not_there_ends_the_command(tmp_path):
    with pytest.raises(SystemExit, match="no such store"):
        main([str(tmp_path / "absent.db")])


# The page


def page_of(store_path: Path, folder: Path) -> Path:
    main([str(store_path), "--html", str(folder / "memory.html")])
    return folder / "memory.html"


def test_the_page_needs_nothing_beside_itself_and_holds_no_markup_of_others(store_path, tmp_path):
    page = page_of(store_path, tmp_path).read_text(encoding="utf-8")
    assert len(re.findall(r"<script", page)) == len(re.findall(r"</script", page)) == 2  # the data and the page's own
    assert not re.search(r"https?:|src=(?!x onerror)|url\(|@import|<link", page)
    assert "<img" not in page and "<!--" not in page
    assert "<title>Memory of &lt;b&gt;d&lt;/b&gt;</title>" in page
    raw = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1]
    data = json.loads(raw)
    assert data["sessions"][1]["turns"][1]["text"] == SCRIPT
    assert data["colours"] == colours_of(Agent) == read_contents(store_path).colours  # those of the figures
    assert "default-src 'none'" in page and "unsafe" not in page


def entries(page: Page) -> list[str]:
    return page.value("[...document.querySelectorAll('.entry')].map(e => e.dataset.id)")


def complaints(page: Page) -> list[str]:
    wrong = ("Page.javascriptDialogOpening", "Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
    return [event["method"] for event in page.events if event["method"] in wrong]


@needs_chromium
def test_the_page_in_a_browser(store_path, tmp_path, browser):
    path = page_of(store_path, tmp_path)
    browser.open(path)
    assert entries(browser) == ["m1", "m2", "m3", "m4", "m5", "m6"]
    assert browser.value("document.querySelectorAll('.bar').length") == 3
    assert browser.value("document.querySelector('h1').textContent") == "What is remembered of <b>d</b>"

    browser.click("#search")
    browser.type("MISO")
    assert entries(browser) == ["m3", "m5"]
    assert browser.value("[...document.querySelectorAll('mark')].map(e => e.textContent)") == ["Miso", "Miso"]
    assert browser.value("document.getElementById('count').textContent") == "2 of 6 entries"
    browser.type(" oslo")
    assert entries(browser) == ["m5"]

    browser.open(path)
    browser.click(".chip.episodic")
    assert entries(browser) == ["m2", "m4", "m6"]
    browser.click(".chip.episodic")
    browser.click("#current")
    assert entries(browser) == ["m2", "m4", "m5", "m6"]

    browser.open(path)
    browser.click(".bar:nth-child(2)")
    assert entries(browser) == ["m3", "m4"]
    assert browser.value("document.querySelector('.gone').textContent") == "Ann has a cat."
    assert "Ann has a cat, Miso." in browser.value("document.querySelector('.come').textContent")
    browser.click(".bar:nth-child(3)")
    assert "not_json" in browser.value("document.querySelector('.failed').textContent")
    browser.click(".entry[data-id=m5] .link")
    assert browser.value("document.querySelector('.target').dataset.id") == "m3"
    assert complaints(browser) == []


@needs_chromium
def test_what_was_said_is_inert_and_nothing_is_fetched(store_path, tmp_path, browser):
    path = page_of(store_path, tmp_path)
    browser.open(path)
    for number in (1, 2, 3):
        browser.click(f".bar:nth-child({number})")
        browser.value("document.querySelectorAll('details').forEach(e => e.open = true)")
        assert browser.value("document.querySelectorAll('#page script, #page img, #page b b').length") == 0
    browser.click(".bar:nth-child(2)")
    browser.value("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert SCRIPT in browser.value("document.getElementById('list').textContent")
    assert browser.value("document.title") == "Memory of <b>d</b>"
    assert complaints(browser) == []
    fetched = {e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"}
    assert {url.split(":")[0] for url in fetched} == {"file"} and path.as_uri() in fetched


@needs_chromium
def test_the_policy_stops_a_script_that_gets_in_all_the_same(store_path, tmp_path, browser):
    """The second wall: shown by a page whose data was put in unescaped."""
    path = page_of(store_path, tmp_path)
    page = path.read_text(encoding="utf-8")
    path.write_text(page.replace('<div id="page">', f'{SCRIPT}--><div id="page">'), encoding="utf-8")
    before = len(browser.events)
    browser.open(path)
    assert browser.value("document.title") == "Memory of <b>d</b>"
    messages = [e["params"]["entry"]["text"] for e in browser.events[before:] if e["method"] == "Log.entryAdded"]
    assert any("Content Security Policy" in message for message in messages)
    del browser.events[before:]


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [380, 1280])
def test_the_page_fits_its_window_and_can_be_read_in_light_and_dark(store_path, tmp_path, browser, width, dark):
    browser.open(page_of(store_path, tmp_path), width=width, dark=dark)
    assert browser.value("document.documentElement.scrollWidth") <= width
    for selector in (".entry .text", ".agent", ".soft", ".core .text"):
        assert contrast(browser, selector) >= 4.5  # WCAG AA


def contrast(page: Page, selector: str) -> float:
    """Contrast of a text with the first ground behind it, by WCAG's formula."""
    colours = page.value(
        f"(() => {{ let e = document.querySelector({json.dumps(selector)}); const ink = getComputedStyle(e).color;"
        " while (getComputedStyle(e).backgroundColor === 'rgba(0, 0, 0, 0)') e = e.parentElement;"
        " return [ink, getComputedStyle(e).backgroundColor]; })()"
    )
    light, dark = sorted((luminance(colour) for colour in colours), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_page_of_nothing_is_a_page():
    page = render_page({"dialogue": "d", "speakers": [], "model": "m"}, (), Bank())
    assert '"entries":[]' in page
