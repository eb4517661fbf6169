"use strict";
const MOST_ROWS = 400;
const element = (id) => document.getElementById(id);
const exchanges = new Map(); // id → summary, in the order in which they came
let selected = "";
let secrets = false;

function make(tag, text = "", kind = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

const statusKind = (status) => (status === null ? "" : status < 400 ? "good" : status < 500 ? "warn" : "bad");
const words = { open: "…", cut: "cut", lost: "?", done: "–" };
const statusOf = (each) => (each.status === null ? words[each.state] : String(each.status));

function took(each) {
  if (each.took_ms === null) return "…";
  return each.took_ms < 1000 ? `${Math.round(each.took_ms)} ms` : `${(each.took_ms / 1000).toFixed(1)} s`;
}

function isShown(each) {
  const exposure = element("exposure").value;
  const wanted = element("filter").value.toLowerCase();
  return (!exposure || each.exposure === exposure)
    && `${each.method} ${each.target} ${each.status}`.toLowerCase().includes(wanted);
}

function row(each) {
  const made = document.createElement("tr");
  made.tabIndex = 0;
  made.dataset.id = each.id;
  made.setAttribute("aria-selected", String(each.id === selected));
  made.append(
    make("td", new Date(each.at * 1000).toLocaleTimeString("en-GB")),
    make("td", each.method),
    make("td", (each.replay_of ? "↻ " : "") + each.target),
    make("td", statusOf(each), `number ${statusKind(each.status)}`),
    make("td", took(each), "number"),
  );
  made.title = each.target;
  return made;
}

function draw() {
  const shown = [...exchanges.values()].filter(isShown).reverse();
  const focused = document.activeElement?.dataset.id;
  element("rows").replaceChildren(...shown.map(row));
  if (focused) [...element("rows").children].find((each) => each.dataset.id === focused)?.focus();
  element("none").hidden = shown.length > 0;
}

let drawing = false;
function drawSoon() { // many changes, one drawing
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => { drawing = false; draw(); });
}

function take(summary) {
  exchanges.set(summary.id, summary);
  for (const id of exchanges.keys()) {
    if (exchanges.size <= MOST_ROWS) break;
    exchanges.delete(id);
  }
  const known = [...element("exposure").options].some((each) => each.value === summary.exposure);
  if (!known) {
    const option = make("option", summary.exposure);
    option.value = summary.exposure;
    element("exposure").append(option);
    const wished = decodeURIComponent(location.hash.slice(1));
    if (wished === summary.exposure) element("exposure").value = wished;
  }
  drawSoon();
  if (summary.id === selected && summary.state !== "open") show(selected);
}

function message(name, each) {
  const part = document.createElement("div");
  part.className = name;
  part.append(make("h3", each.line));
  const list = document.createElement("dl");
  for (const [field, value] of each.fields) list.append(make("dt", field), make("dd", value));
  part.append(list);
  const notes = [`${each.body.size} bytes`, ...each.body.notes];
  if (each.body.size || each.body.notes.length) part.append(make("p", notes.join("; "), "note"));
  if (each.body.text) part.append(make("pre", each.body.text, each.body.kind));
  return part;
}

function complain(text) {
  element("problem").textContent = text;
  element("problem").hidden = !text;
}

async function ask(path, options = {}) {
  const answer = await fetch(path, { headers: { "X-Overlay-Inspector": "1" }, cache: "no-store", ...options });
  const document = await answer.json();
  if (!answer.ok) throw new Error(`${document.error.message} ${document.error.hint}`);
  return document;
}

async function show(id) {
  selected = id;
  let found;
  try {
    found = await ask(`exchanges/${encodeURIComponent(id)}${secrets ? "?secrets=1" : ""}`);
  } catch (error) {
    element("detail").hidden = false;
    complain(error.message);
    return;
  }
  if (selected !== id) return;
  const { summary, request, answer } = found;
  complain("");
  element("title").textContent = `${summary.method} ${summary.target}`;
  const facts = [summary.id, summary.exposure, summary.source && `from ${summary.source}`, took(summary),
    summary.replay_of && `replay of ${summary.replay_of}`,
    summary.state === "cut" && "ended before its end", summary.state === "lost" && "the answer was not understood",
    summary.upgraded && `${summary.sent} bytes sent, ${summary.received} received`];
  element("facts").textContent = facts.filter(Boolean).join(" · ");
  element("replay").disabled = summary.upgraded;
  element("secrets").hidden = !secrets && !request.masked && !(answer && answer.masked);
  element("secrets").textContent = secrets ? "Hide secrets" : "Show secrets";
  element("messages").replaceChildren(message("request", request));
  element("messages").append(answer ? message("answer", answer) : make("p", "No answer yet.", "note"));
  element("detail").hidden = false;
  draw();
}

element("rows").addEventListener("click", (event) => {
  const line = event.target.closest("tr");
  if (line) { secrets = false; show(line.dataset.id); }
});
element("rows").addEventListener("keydown", (event) => {
  const line = event.target.closest("tr");
  if (!line) return;
  if (event.key === "Enter") { secrets = false; show(line.dataset.id); }
  if (event.key === "ArrowDown" && line.nextElementSibling) line.nextElementSibling.focus();
  if (event.key === "ArrowUp" && line.previousElementSibling) line.previousElementSibling.focus();
});
element("replay").addEventListener("click", async () => {
  element("replay").disabled = true;
  try {
    const made = await ask(`exchanges/${encodeURIComponent(selected)}/replay`, { method: "POST" });
    secrets = false;
    await show(made.id);
  } catch (error) {
    complain(error.message);
  }
  element("replay").disabled = false;
});
element("secrets").addEventListener("click", () => { secrets = !secrets; show(selected); });
element("filter").addEventListener("input", drawSoon);
element("exposure").addEventListener("change", drawSoon);

const events = new EventSource("events");
events.onopen = () => { exchanges.clear(); drawSoon(); element("state").textContent = "live"; };
events.onerror = () => { element("state").textContent = "not connected"; };
events.onmessage = (event) => take(JSON.parse(event.data));
