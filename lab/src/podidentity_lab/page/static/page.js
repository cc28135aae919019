// The live part of the page. It works without: the page is whole when it is loaded, and the switches are forms.
"use strict";

const ROWS_LIMIT = 200;
const ANNOUNCEMENT_MS = 5000;
const byId = (id) => document.getElementById(id);
const list = byId("trails");
let pending = new Map(); // row ID to HTML: what the next frame shows
let frame = 0;
let figures = { requests: 0, refused: 0, missed: 0 };
let news = { requests: 0, refused: 0 };

history.replaceState(null, "", location.pathname + location.hash); // the secret is in the cookie now

function element(html) {
  const template = document.createElement("template");
  template.innerHTML = html; // escaped by the server
  return template.content.firstElementChild;
}

function isOn(id) {
  return byId(id).getAttribute("aria-pressed") === "true";
}

function draw() {
  frame = 0;
  if (isOn("pause")) return;
  for (const [id, html] of pending) {
    const row = byId(id);
    if (row) row.replaceWith(element(html));
    else list.prepend(element(html));
  }
  pending.clear();
  while (list.childElementCount > ROWS_LIMIT) list.lastElementChild.remove();
  const missed = figures.missed ? `, ${figures.missed} not shown because there were too many` : "";
  byId("figures").textContent =
    `${figures.requests} since this page was opened, ${figures.refused} of them refused${missed}. Newest first.`;
}

function schedule() {
  while (pending.size > ROWS_LIMIT) pending.delete(pending.keys().next().value);
  frame ||= requestAnimationFrame(draw);
}

function takeBatch(event) {
  const batch = JSON.parse(event.data);
  for (const [id, html] of batch.rows) {
    pending.delete(id);
    pending.set(id, html);
  }
  for (const name of Object.keys(figures)) figures[name] += batch[name];
  for (const name of Object.keys(news)) news[name] += batch[name];
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
  const source = new EventSource("/events");
  source.addEventListener("open", () => tell("Live", "live"));
  source.addEventListener("error", () => tell("The lab or its page has ended, or does not answer; trying again", "lost"));
  source.addEventListener("batch", takeBatch);
  source.addEventListener("groups", takeGroups);
  source.addEventListener("faults", takeSwitches);
}

for (const id of ["pause", "refused-only"]) {
  byId(id).addEventListener("click", () => {
    byId(id).setAttribute("aria-pressed", String(!isOn(id)));
    list.classList.toggle("refused-only", isOn("refused-only"));
    schedule();
  });
}

for (const form of document.querySelectorAll("form")) {
  form.addEventListener("submit", (event) => {
    event.preventDefault(); // focus stays on the switch; the answer comes with the events
    fetch(form.action, { method: "POST" }).catch(() => tell("The switch was not turned: no answer", "lost"));
  });
}

setInterval(() => {
  if (!news.requests || isOn("pause")) return;
  byId("announcement").textContent = `${news.requests} new requests, ${news.refused} refused`;
  news = { requests: 0, refused: 0 };
}, ANNOUNCEMENT_MS);

connect();
