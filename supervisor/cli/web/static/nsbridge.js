// Keeps the page live: changes come as server-sent events, already as texts, and are set as text, never as markup.
"use strict";

const MOST_RECORDS = 100;
const page = document.documentElement;
const about = document.body.dataset.agent;
const table = document.getElementById("agents");
const form = document.getElementById("choice");
const rows = new Map();  // by the agent's name
let arrived = 0;  // the configuration's order, for rows without one

function setText(element, text) {
  if (element && element.textContent !== text) element.textContent = text;
}

function fill(row, change) {
  row.dataset.tone = change.tone;
  for (const [key, value] of Object.entries(change.order)) row.setAttribute(`data-by-${key}`, value);
  for (const [key, text] of Object.entries(change.cells)) setText(row.querySelector(`[data-cell="${key}"]`), text);
  for (const [plot, points] of Object.entries(change.plots))
    row.querySelector(`[data-plot="${plot}"]`)?.setAttribute("points", points);
}

function bodyOf(route) {
  for (const body of table.tBodies) if (body.dataset.route === route) return body;
  const body = table.createTBody();
  body.dataset.route = route;
  body.dataset.at = ++arrived;
  return body;
}

function added(change) {
  const row = document.getElementById("row").content.firstElementChild.cloneNode(true);
  const link = row.querySelector("a");
  row.dataset.agent = change.name;
  link.textContent = change.name;
  link.href = `/agent/${encodeURIComponent(change.name)}`;
  bodyOf(change.route).append(row);
  rows.set(change.name, row);
  return row;
}

function removed(name) {
  const row = rows.get(name);
  if (!row) return;
  const body = row.parentElement;
  row.remove();
  rows.delete(name);
  if (table && !body.rows.length) body.remove();
}

function takeRows(data) {
  const there = new Set(data.rows.map((change) => change.name));
  if (data.all && table) for (const name of [...rows.keys()]) if (!there.has(name)) removed(name);
  data.gone.forEach(removed);
  for (const [at, change] of data.rows.entries()) {
    const row = rows.get(change.name) ?? (table ? added(change) : null);
    if (row) fill(row, change);
    if (data.all && table) row.parentElement.dataset.at = arrived = at;
  }
  choose();
}

function words(row) {
  return ["name", "state", "why", "container"].map((key) => row.querySelector(`.${key}`).textContent).join(" ").toLowerCase();
}

function isChosen(row, wanted, onlyTrouble) {
  const isTrouble = row.dataset.tone === "warn" || row.dataset.tone === "bad" || Number(row.dataset.byDead) > 0;
  if (onlyTrouble && !isTrouble) return false;
  const text = words(row);
  return wanted.every((word) => text.includes(word));
}

// Show the chosen routes in the chosen order. A route is shown with both of its rows.
function choose() {
  if (!form) return;
  const wanted = form.q.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const body of table.tBodies) {
    body.hidden = ![...body.rows].some((row) => isChosen(row, wanted, form.trouble.checked));
    if (!body.hidden) shown++;
  }
  setText(document.getElementById("shown"), `${shown} of ${table.tBodies.length} routes`);
  order(form.sort.value);
}

function order(key) {
  const attribute = `data-by-${key}`;
  const worth = (body) => Math.max(...[...body.rows].map((row) => Number(row.getAttribute(attribute))));
  const bodies = [...table.tBodies];
  const worths = new Map(bodies.map((body) => [body, key === "name" ? -Number(body.dataset.at) : worth(body)]));
  const sorted = [...bodies].sort((one, other) => worths.get(other) - worths.get(one) || one.dataset.at - other.dataset.at);
  if (sorted.some((body, at) => body !== bodies[at])) table.append(...sorted);
}

function takeDaemon(data) {
  page.dataset.up = data.up ? "yes" : "no";
  setText(document.getElementById("up"),
    data.up ? `nsbridged ${data.version}, pid ${data.pid}, since ${data.since}` : data.reason);
  document.getElementById("away").hidden = data.up;
  for (const [tone, count] of Object.entries(data.counts ?? {}))
    setText(document.querySelector(`[data-count="${tone}"]`), String(count));
}

function record(list, parts, name) {
  const item = document.createElement("li");
  for (const [tag, text] of parts) {
    const part = document.createElement(tag === "detail" ? "span" : tag);
    if (tag === "detail") part.className = "detail";
    part.textContent = text;
    item.append(part, " ");
  }
  if (name) item.className = name;
  const element = document.getElementById(list);
  element.prepend(item);
  while (element.childElementCount > MOST_RECORDS) element.lastElementChild.remove();
}

const timeOf = (data) => (data.time.split("T")[1] ?? "").replace("Z", "");

function takeEvent(data) {
  const change = [data.event, data.from, data.from && data.to ? "→" : "", data.to].filter(Boolean).join(" ");
  record("events", [["time", timeOf(data)], ["b", data.name], ["span", change], ["detail", data.detail]]);
}

function takeLog(data) {
  record("log", [["time", timeOf(data)], ["span", data.level], ["b", data.name], ["detail", data.message]], data.level);
}

function live() {
  const sign = document.getElementById("live");
  const query = new URLSearchParams({ for: "page", name: about });
  const source = new EventSource(`/api/events?${query}`);
  const show = (text, lost) => {
    sign.hidden = false;
    sign.classList.toggle("lost", lost);
    setText(sign, text);
  };
  source.onopen = () => show("live", false);
  source.onerror = () => {
    show("nsbridge web does not answer", true);
    if (source.readyState === EventSource.CLOSED) setTimeout(live, 2000);  // refused: it does not retry by itself
  };
  const takes = { daemon: takeDaemon, rows: takeRows, event: takeEvent, log: takeLog };
  for (const [kind, take] of Object.entries(takes))
    source.addEventListener(kind, (message) => take(JSON.parse(message.data)));
}

for (const row of document.querySelectorAll("[data-agent][data-tone]")) rows.set(row.dataset.agent, row);
if (table) for (const body of table.tBodies) body.dataset.at = ++arrived;
if (form) {
  form.addEventListener("input", choose);
  form.addEventListener("submit", (event) => event.preventDefault());
  choose();
}
live();
