"use strict";
// Everything a dialogue or a model wrote reaches the page through textContent only, so it is never markup.
const data = JSON.parse(document.getElementById("data").textContent);
const AGENTS = data.parts;  // whom entries may be of
const PAGE = 200;
const byId = new Map(data.entries.map(entry => [entry.id, entry]));
const turns = new Map(data.sessions.flatMap(session => session.turns.map(turn => [turn.id, turn])));
const replacedBy = new Map();
for (const entry of data.entries) for (const old of entry.supersedes) replacedBy.set(old, [...(replacedBy.get(old) || []), entry.id]);
const deleted = new Set((data.deleted || []).filter(id => !replacedBy.has(id)));
const isOld = entry => replacedBy.has(entry.id) || deleted.has(entry.id);
const answering = session => new Set(session.answers.map(answer => answer.agent));
const inSession = data.sessions.map(() => []);
for (const entry of data.entries) inSession[entry.session].push(entry);
const state = { query: "", agents: new Set(AGENTS), current: false, session: null, entry: null, limit: PAGE };

function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "class") node.className = value;
    else if (name === "agent") node.style.setProperty("--agent", data.colours[value]);
    else node.setAttribute(name, value);
  }
  node.append(...children.filter(child => child !== null));
  return node;
}

function marked(text) {
  const words = state.query.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return [text];
  const pattern = new RegExp(words.map(word => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|"), "gi");
  const parts = [];
  let end = 0;
  for (const match of text.matchAll(pattern)) {
    parts.push(text.slice(end, match.index), make("mark", {}, match[0]));
    end = match.index + match[0].length;
  }
  return [...parts, text.slice(end)];
}

const words = entry => [entry.id, entry.text, ...entry.source_turns].join(" ").toLowerCase();
const haystack = new Map(data.entries.map(entry => [entry.id, words(entry)]));
function matches(entry) {
  return state.agents.has(entry.agent) && !(state.current && isOld(entry))
    && (state.session === null || entry.session === state.session)
    && state.query.toLowerCase().split(/\s+/).every(word => haystack.get(entry.id).includes(word));
}

function goTo(id) {
  Object.assign(state, { query: "", agents: new Set(AGENTS), current: false, session: null, entry: id, limit: data.entries.length });
  render();
  document.querySelector(".target").scrollIntoView({ block: "center" });
}
const link = id => make("button", { class: "link number", onclick: () => goTo(id) }, id);
const list = ids => ids.flatMap((id, position) => position ? [", ", link(id)] : [link(id)]);

function entryCard(entry) {
  const newer = replacedBy.get(entry.id);
  const sources = entry.source_turns.map(id => turns.get(id)).filter(Boolean);
  return make("article", { class: `card entry ${entry.agent}${isOld(entry) ? " old" : ""}${state.entry === entry.id ? " target" : ""}`, agent: entry.agent, "data-id": entry.id },
    make("p", { class: "text" }, ...marked(entry.text)),
    make("div", { class: "meta" },
      make("span", { class: "agent" }, entry.agent), make("span", { class: "number" }, entry.id),
      entry.supersedes.length ? make("span", {}, "replaces ", ...list(entry.supersedes)) : null,
      newer ? make("span", {}, "replaced by ", ...list(newer)) : null,
      deleted.has(entry.id) ? make("span", {}, "deleted") : null),
    sources.length ? make("details", {}, make("summary", {}, `said in ${entry.source_turns.join(", ")}`), ...sources.map(quote)) : null);
}
const quote = turn => make("blockquote", {}, make("b", {}, `${turn.speaker}: `), turn.text);

function sessionHead(session) {
  return make("div", { class: "day" },
    make("button", { onclick: () => choose(session.number) }, session.time),
    make("span", { class: "soft small number" }, `session ${session.number} (${session.id})`));
}

function coreChange(session) {
  const before = new Set((session.number ? data.sessions[session.number - 1].core : "").split("\n").filter(Boolean));
  const after = new Set(session.core.split("\n").filter(Boolean));
  const lines = [...before].filter(line => !after.has(line)).map(line => make("p", { class: "gone" }, line));
  return [...lines, ...[...after].filter(line => !before.has(line)).map(line => make("p", { class: "come" }, line))];
}

// An entry is of the role of its name; where no role has it, of the one that names the part it writes to.
const wrote = (session, answer, entry) => entry.agent === answer.agent || !answering(session).has(entry.agent);

function sessionCard(session) {
  const rows = session.answers.map(answer => {
    const written = inSession[session.number].filter(entry => wrote(session, answer, entry) && matches(entry)).map(entryCard);
    const changed = answer.agent === "core" || !answering(session).has("core") ? [...coreChange(session), ...written] : written;
    return make("div", { class: "row", agent: answer.agent },
      make("span", { class: "agent" }, answer.agent), make("span", { class: "soft small number" }, `  ${answer.seconds.toFixed(2)} s`),
      answer.failure ? make("p", { class: "failed" }, make("b", {}, answer.failure.kind), `: ${answer.failure.detail}`) : null,
      ...answer.dropped.map(each => make("p", { class: "failed" }, make("b", {}, `dropped, ${each.kind}`), `: ${each.detail}`, make("pre", {}, each.operation))),
      ...(changed.length || answer.failure ? changed : [make("p", { class: "soft" }, "changed nothing")]),
      answer.text === null ? null : make("details", {}, make("summary", {}, "answer as given"), make("pre", {}, answer.text)));
  });
  return make("section", { class: "card session" },
    make("h3", {}, `Session ${session.number}, ${session.time}`),
    make("p", { class: "soft small" }, `${session.id}, ${session.turns.length} turns`),
    make("details", {}, make("summary", {}, "what was said"), ...session.turns.map(quote)), ...rows);
}

function choose(number) {
  Object.assign(state, { session: state.session === number ? null : number, entry: null, limit: PAGE });
  render();
}

function timeline() {
  const most = Math.max(1, ...inSession.map(entries => entries.length));
  const bars = data.sessions.map(session => {
    const bar = make("button", { class: "bar", "aria-pressed": state.session === session.number,
      title: `session ${session.number} (${session.id}), ${session.time}: ${inSession[session.number].length} new entries`, onclick: () => choose(session.number) });
    if (session.answers.some(answer => answer.failure)) bar.append(make("i", { title: "an answer failed" }));
    for (const agent of AGENTS) {
      const count = inSession[session.number].filter(entry => entry.agent === agent && state.agents.has(agent)).length;
      if (!count) continue;
      const part = make("span", { agent });
      part.style.height = `${100 * count / most}%`;
      bar.append(part);
    }
    return bar;
  });
  const last = data.sessions.length - 1;
  const chart = make("div", {}, make("div", { class: "bars", role: "group", "aria-label": "Sessions" }, ...bars),
    make("div", { class: "ends soft small number" }, make("span", {}, last < 0 ? "" : data.sessions[0].time), make("span", {}, last < 1 ? "" : data.sessions[last].time)));
  chart.style.maxWidth = `${Math.max(320, 70 * data.sessions.length)}px`;  // few sessions make no wide bars
  return make("section", { class: "card timeline" }, make("h2", {}, "New entries by session"), chart);
}

function header() {
  const answers = data.sessions.flatMap(session => session.answers);
  const failed = answers.filter(answer => answer.failure).length, dropped = answers.flatMap(answer => answer.dropped).length;
  const stat = (number, text) => make("span", {}, make("b", { class: "number" }, number.toLocaleString("en")), make("span", { class: "soft" }, text));
  return make("header", { class: "head" }, make("h1", {}, `What is remembered of ${data.dialogue}`),
    make("p", { class: "soft" }, [data.speakers.join(" and "), `written by ${data.model}`].filter(Boolean).join(", ")),
    make("div", { class: "stats" }, stat(data.entries.length, "entries"), stat(data.entries.length - replacedBy.size - deleted.size, "current"),
      stat(data.sessions.length, "sessions"), stat(data.core.length, "characters in the core"), stat(failed, "failed answers"),
      dropped ? stat(dropped, "dropped operations") : null));
}

function chip(agent) {
  const count = data.entries.filter(entry => entry.agent === agent).length;
  return make("button", { class: `chip ${agent}`, agent, "aria-pressed": state.agents.has(agent), onclick: () => {
    if (!state.agents.delete(agent)) state.agents.add(agent);
    state.limit = PAGE;
    render();
  } }, agent, make("span", { class: "soft small number" }, count.toLocaleString("en")));
}

function tools() {
  const search = make("input", { type: "search", placeholder: "Search the entries", "aria-label": "Search the entries", id: "search" });
  search.value = state.query;
  search.addEventListener("input", () => { Object.assign(state, { query: search.value, entry: null, limit: PAGE }); renderList(); });
  const current = make("input", { type: "checkbox", id: "current", onchange: event => { state.current = event.target.checked; renderList(); } });
  current.checked = state.current;
  return make("div", { class: "tools" }, search, ...AGENTS.map(chip), make("label", { class: "small" }, current, "current only"));
}

function renderList() {
  const found = data.entries.filter(matches), shown = found.slice(0, state.limit), nodes = [];
  if (state.session !== null) nodes.push(sessionCard(data.sessions[state.session]));
  let day = null;
  for (const entry of state.session === null ? shown : []) {
    if (entry.session !== day) nodes.push(sessionHead(data.sessions[day = entry.session]));
    nodes.push(entryCard(entry));
  }
  if (!found.length && state.session === null) nodes.push(make("p", { class: "soft none" }, data.entries.length ? "No entry fits. Search for other words, or turn an agent on." : "Nothing is remembered yet."));
  if (state.session === null && found.length > shown.length) nodes.push(make("button", { class: "more", onclick: () => { state.limit += PAGE; renderList(); } }, `Show more (${(found.length - shown.length).toLocaleString("en")} left)`));
  document.getElementById("list").replaceChildren(...nodes);
  document.getElementById("count").textContent = `${found.length.toLocaleString("en")} of ${data.entries.length.toLocaleString("en")} entries`;
}

function render() {
  const core = make("section", { class: "card core", agent: "core" }, make("h2", {}, "Core memory"), make("p", { class: `text${data.core ? "" : " soft"}` }, data.core || "empty"));
  document.getElementById("page").replaceChildren(header(), ...(data.api ? [livePanel()] : []), timeline(), tools(),
    make("div", { class: "columns" }, make("main", {}, make("p", { class: "soft small number", id: "count", "aria-live": "polite" }), make("div", { id: "list" })),
      make("aside", { class: "side" }, core)));
  renderList();
  if (data.api) renderLive();
}
render();
