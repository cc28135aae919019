// The live part of the page. It works without: the page is whole when it is loaded, and the switches are forms.
"use strict";

const ROWS_LIMIT = 200;
const ANNOUNCEMENT_MS = 5000;
const RETRY_MS = 3000;
const byId = (id) => document.getElementById(id);
const list = byId("trails");
let pending = new Map(); // number to HTML: the rows that the next frame shows
let frame = 0;
let source = null;
let start = null; // the server's totals when this page was opened
let figures = { requests: 0, refusals: 0, unread: 0, omitted: 0 }; // since then
let lastNumber = 0;
let rowCount = 0; // of requests since then that had a row
let announced = { requests: 0, refusals: 0 };

history.replaceState(null, "", location.pathname + location.hash); // the secret is in the cookie now

function elements(htmls) {
  const template = document.createElement("template");
  template.innerHTML = htmls.join(""); // escaped by the server
  return [...template.content.children];
}

function isOn(id) {
  return byId(id).getAttribute("aria-pressed") === "true";
}

function draw() {
  frame = 0;
  if (isOn("pause")) return;
  const rows = [...pending].sort((one, other) => one[0] - other[0]).slice(-ROWS_LIMIT);
  elements(rows.map(([, html]) => html)).forEach((row, index) => show(rows[index][0], row));
  pending.clear();
  while (list.childElementCount > ROWS_LIMIT) list.lastElementChild.remove();
  byId("figures").textContent = sentence();
}

function show(number, row) {
  const former = byId(`trail-${number}`);
  if (former) {
    const [details, formerDetails] = [row, former].map((element) => element.querySelector("details"));
    if (details && formerDetails) details.open = formerDetails.open;
    return former.replaceWith(row);
  }
  let next = list.firstElementChild;
  while (next && Number(next.id.slice("trail-".length)) > number) next = next.nextElementSibling;
  list.insertBefore(row, next);
}

function sentence() {
  const missed = figures.requests - rowCount;
  const parts = [`${figures.requests} since this page was opened, ${figures.refusals} of them refused`];
  if (missed > 0) parts.push(`${missed} not shown because there were too many`);
  if (figures.omitted) parts.push(`${figures.omitted} more left out of NMI's log`);
  if (figures.unread) parts.push(`${figures.unread} answers more than could be read`);
  return `${parts.join(", ")}. Newest first, the last ${ROWS_LIMIT}.`;
}

function schedule() {
  while (pending.size > ROWS_LIMIT) pending.delete(pending.keys().next().value);
  frame ||= requestAnimationFrame(draw);
}

function takeBatch(event) {
  const { rows, ...totals } = JSON.parse(event.data);
  const isFirst = start === null;
  start ??= totals;
  for (const [number, html] of rows) {
    pending.delete(number);
    pending.set(number, html);
    if (number > lastNumber) {
      lastNumber = number;
      if (!isFirst) rowCount += 1;
    }
  }
  for (const name of Object.keys(figures)) figures[name] = totals[name] - start[name];
  schedule();
}

function takeGroups(event) {
  for (const [key, html] of Object.entries(JSON.parse(event.data))) {
    const group = byId(`group-${key}`);
    const position = group.scrollTop;
    group.innerHTML = html; // escaped by the server
    group.scrollTop = position;
  }
}

function takeSwitches(event) {
  const faults = JSON.parse(event.data);
  for (const [name, on] of Object.entries(faults.on)) byId(`switch-${name}`).setAttribute("aria-pressed", String(on));
  byId("other-faults").textContent = faults.others;
}

function tell(text, kind) {
  const connection = byId("connection");
  if (connection.textContent !== text) connection.textContent = text;
  connection.className = `connection ${kind}`;
}

function connect() {
  const events = new EventSource("events");
  source = events;
  events.addEventListener("open", () => tell("Live", "live"));
  events.addEventListener("error", () => {
    if (source !== events) return;
    tell("The lab or its page has ended, or serves too many browsers; trying again", "lost");
    if (events.readyState !== EventSource.CLOSED) return; // it tries again by itself
    source = null;
    setTimeout(follow, RETRY_MS);
  });
  events.addEventListener("batch", takeBatch);
  events.addEventListener("groups", takeGroups);
  events.addEventListener("faults", takeSwitches);
}

function follow() {
  // Browsers open six connections to a host for all of its pages: one that nobody looks at must not hold any.
  if (document.hidden) {
    source?.close();
    source = null;
    tell("Paused while nobody looks", "");
  } else if (source === null) connect();
}

for (const id of ["pause", "refused-only"]) {
  byId(id).addEventListener("click", () => {
    byId(id).setAttribute("aria-pressed", String(!isOn(id)));
    list.classList.toggle("refused-only", isOn("refused-only"));
    schedule();
  });
}

for (const form of document.querySelectorAll("form")) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault(); // focus stays on the switch; the answer comes with the events
    const response = await fetch(form.action, { method: "POST", redirect: "manual" }).catch(() => null);
    const isTurned = response?.type === "opaqueredirect";
    byId("refusal").textContent = isTurned ? "" : await refusal(response);
  });
}

async function refusal(response) {
  return response ? `The switch was not turned: ${await response.text()}` : "The switch was not turned: no answer";
}

setInterval(() => {
  const news = { requests: figures.requests - announced.requests, refusals: figures.refusals - announced.refusals };
  if (news.requests <= 0 || isOn("pause")) return;
  byId("announcement").textContent = `${news.requests} new requests, ${news.refusals} refused`;
  announced = { ...figures };
}, ANNOUNCEMENT_MS);

document.addEventListener("visibilitychange", follow);
follow();
