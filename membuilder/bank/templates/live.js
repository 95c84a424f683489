"use strict";
// The page of a running server asks it. What comes back is shown as everything else here: as text, never as markup.
const live = { query: "", answer: null, found: null, problem: "", isBusy: false };

async function askServer(wantsAnswer) {
  const query = live.query.trim();
  if (!query || live.isBusy) return;
  Object.assign(live, { isBusy: true, problem: "", answer: null, found: null });
  renderLive();
  try {
    const reply = wantsAnswer
      ? await fetch(`${data.api}/answer`, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ question: query }) })
      : await fetch(`${data.api}/search?${new URLSearchParams({ query })}`);
    const told = await reply.json();
    if (!reply.ok) live.problem = told.detail;
    else if (wantsAnswer) Object.assign(live, { answer: told.answer, found: told.entries });
    else live.found = told.found.map(each => each.entry);
  } catch (error) {
    live.problem = "The server does not answer.";
  }
  live.isBusy = false;
  renderLive();
}

function asOnPage(entry) {
  return byId.get(entry.id) || { ...entry, agent: entry.part };
}

function renderLive() {
  const nodes = [];
  if (live.isBusy) nodes.push(make("p", { class: "soft" }, "Asking ..."));
  if (live.problem) nodes.push(make("p", { class: "failed" }, live.problem));
  if (live.answer !== null) nodes.push(make("p", { class: "answer" }, live.answer), make("h2", {}, live.found.length ? "It was given these entries, the best first" : "No entry fits it"));
  else if (live.found) nodes.push(make("h2", {}, live.found.length ? "What fits best" : "No entry fits"));
  for (const entry of live.found || []) {
    const card = entryCard(asOnPage(entry));
    if (live.answer !== null) for (const sources of card.querySelectorAll("details")) sources.open = true;
    nodes.push(card);
  }
  document.getElementById("reply").replaceChildren(...nodes);
}

function livePanel() {
  const query = make("input", { type: "search", id: "ask", placeholder: "Ask this memory", "aria-label": "Ask this memory", maxlength: 2000, oninput: event => { live.query = event.target.value; } });
  query.value = live.query;
  const button = (name, wantsAnswer, kind) => make("button", { type: kind, class: "action", onclick: event => { event.preventDefault(); askServer(wantsAnswer); } }, name);
  const form = make("form", { class: "tools ask" }, query, button("Search", false, "submit"), ...(data.answers ? [button("Answer", true, "button")] : []));
  return make("section", { class: "card live" }, form, make("div", { id: "reply", "aria-live": "polite" }));
}
