// The page: puts the parts together. Whatever players type is only ever set as text, never as markup.

import { Keys } from "./keys.js";
import { Link } from "./link.js";
import { Plot } from "./plot.js";
import { Screen } from "./screen.js";

const find = (id) => document.getElementById(id);
const REMEMBERED = 8192; // times of frames, and delays
const MESSAGE_FOR = 7000; // ms

const world = { fps: 8, block: 0.5, paused: false, twin: false, street: false, model: "" };
const log = { shown: [], skipped: 0, delays: [] }; // times at which frames appeared, ms; delays from key to picture, ms
const plot = new Plot(find("plot"));
const pressed = new Map(); // number of a key change -> when it happened
let seq = 0;
let picture = null; // the file to start from
let live = false;

// ---- frames ---------------------------------------------------------------------------------------------------------

const screen = new Screen([find("dream"), find("street")], (header, now, skipped) => {
  log.shown.push(now);
  if (log.shown.length > REMEMBERED) log.shown.shift();
  log.skipped += skipped;
  log.last = header;
  if (pressed.has(header.seq)) {
    const delay = now - pressed.get(header.seq);
    for (const number of pressed.keys()) if (number <= header.seq) pressed.delete(number);
    log.delays.push(delay);
    if (log.delays.length > REMEMBERED) log.delays.shift();
    plot.add("delays", delay);
    find("hud-delay").textContent = `${Math.round(delay)} ms`;
  }
  showEvent(header.event, header.streetEvent);
  showTwin(header.sizes.length > 1);
  const seconds = Math.max(0, (header.block + (header.index + 1) / (world.fps * world.block)) * world.block);
  find("hud-time").textContent = `${seconds.toFixed(1)} s`;
});

function showEvent(event, known) {
  find("event-now").hidden = !event;
  const text = event && !known ? `${event} (not in the street)` : event || "";
  if (find("event-text").textContent !== text) find("event-text").textContent = text;
}

function showTwin(on) {
  find("street-figure").hidden = !on;
  find("screens").classList.toggle("twins", on);
  find("screens").style.setProperty("--across", on ? 2 : 1);
}

// ---- the line to the server -----------------------------------------------------------------------------------------

const link = new Link({
  message: (message) => receive[message.type]?.(message),
  async frame(header, pictures, receivedAt) {
    const late = await screen.add(header, pictures, receivedAt);
    link.send({ type: "ack", n: header.n, late: Math.round(late) });
  },
  state(state, reason) {
    live = false;
    const words = { connecting: "connecting", lost: "connection lost", closed: "closed" };
    showLink(state, words[state]);
    if (state === "lost") notice("The line is broken", "Your world waits; trying to reach it again.");
    if (state === "closed") notice("Over", reason, "Play here", () => link.open());
  },
});

const receive = {
  welcome(message) {
    Object.assign(world, { fps: message.fps, block: message.block, twin: message.twin, model: message.model });
    live = true;
    screen.reset();
    pressed.clear();
    document.documentElement.style.setProperty("--ratio", message.width / message.height);
    find("model").textContent = ` / ${message.model}`;
    find("twin").hidden = !message.twin;
    offerEvents(message.events);
    notice();
    showLink("live", "live");
    if (message.resumed) say("Back in the same world.");
    sendKeys(keys.held);
    sendPause();
  },
  queue({ position, places }) {
    showLink("waiting", "waiting");
    const taken = places === 1 ? "The only place is taken." : `All ${places} places are taken.`;
    const where = position === 1 ? "You are next in line" : `You are number ${position} in line`;
    notice("Full house", `${taken} ${where}; your dream begins by itself.`);
  },
  state(state) {
    world.seed = state.seed;
    world.street = state.twin;
    find("hud-seed").textContent = state.seed;
    find("twin").setAttribute("aria-pressed", state.twin);
    if (state.blockTime !== null) {
      plot.add("blocks", 1000 * state.blockTime);
      find("hud-block").textContent = `${Math.round(1000 * state.blockTime)} ms`;
    }
    if (state.finished) notice("The end", "This was a replay.", "Once more", restart);
    else if (world.finished) notice();
    world.finished = state.finished;
    showLink("live", state.players > 1 ? `live, ${state.players} playing` : "live");
  },
  note: ({ text, bad }) => say(text, bad),
};

function showLink(state, text) {
  find("link").dataset.state = state;
  find("link").textContent = text;
}

function sendKeys(held) {
  pressed.set(++seq, performance.now());
  link.send({ type: "keys", held, seq });
}

// ---- what is done once ----------------------------------------------------------------------------------------------

function setPaused(paused) {
  world.paused = paused;
  find("pause").setAttribute("aria-pressed", paused);
  find("pause").textContent = paused ? "Resume" : "Pause";
  if (live) paused ? notice("Paused", "", "Resume", () => setPaused(false)) : notice();
  sendPause();
}

const sendPause = () => link.send({ type: "pause", paused: world.paused, hidden: document.hidden });

function begin(message) {
  if (world.paused) setPaused(false);
  link.send(message);
}

const restart = () => begin({ type: "restart" });

function toggleHud() {
  const hidden = find("hud").toggleAttribute("hidden");
  find("hud-button").setAttribute("aria-pressed", !hidden);
}

async function download(path, name) {
  say("Saving …");
  const response = await fetch(path, { headers: { "X-Session": link.session ?? "" } }).catch(() => null);
  if (!response?.ok) return say(await reason(response), true);
  const anchor = document.createElement("a");
  anchor.href = URL.createObjectURL(await response.blob());
  anchor.download = name;
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(anchor.href), 60000);
  say(`Saved as ${name}.`);
}

const stamp = () => new Date().toISOString().slice(0, 19).replace(/\D/g, "-");
const saveClip = () => download("clip", `yume-${stamp()}.mp4`);
const typeEvent = () => find("event-box").focus();

async function reason(response) {
  if (!response) return "The server does not answer.";
  const body = await response.json().catch(() => ({}));
  return body.message ?? `That did not work (${response.status}).`;
}

let quiet = 0;
function say(text, bad = false) {
  clearTimeout(quiet);
  find("message").textContent = text;
  find("message").hidden = !text;
  find("message").classList.toggle("bad", bad);
  quiet = setTimeout(() => (find("message").hidden = true), MESSAGE_FOR);
}

function notice(title = "", text = "", button = "", action = null) {
  find("notice").hidden = !title;
  find("notice-title").textContent = title;
  find("notice-text").textContent = text;
  find("notice-button").textContent = button;
  find("notice-button").hidden = !button;
  find("notice-button").onclick = action;
}

const keys = new Keys([find("walk"), find("look")], sendKeys, {
  Enter: typeEvent, Space: () => setPaused(!world.paused), KeyP: () => setPaused(!world.paused), KeyR: restart,
  KeyF: saveClip, KeyH: toggleHud,
});
find("pause").onclick = () => setPaused(!world.paused);
find("restart").onclick = restart;
find("clip").onclick = saveClip;
find("hud-button").onclick = toggleHud;
find("twin").onclick = () => begin({ type: "start", seed: world.seed, twin: !world.street });
find("replay").onclick = (event) => {
  event.preventDefault();
  download("replay", `yume-${stamp()}.replay.json`);
};
document.addEventListener("visibilitychange", sendPause);
addEventListener("click", (event) => event.detail && event.target.closest?.("button")?.blur()); // keys go back to the dream
addEventListener("keydown", ({ code, target }) => code === "Escape" && target.blur?.());

// ---- events ---------------------------------------------------------------------------------------------------------

function offerEvents(kinds) {
  const options = kinds.flatMap(({ phrases }) => phrases).map((phrase) => Object.assign(document.createElement("option"), { value: phrase }));
  find("phrases").replaceChildren(...options);
  const chips = kinds.map(({ kind, phrases }) => {
    const chip = document.createElement("button");
    chip.type = "button";
    chip.textContent = kind.replaceAll("_", " ");
    chip.title = phrases[0];
    chip.onclick = () => sendEvent(phrases[0]);
    return chip;
  });
  find("chips").replaceChildren(...chips);
}

const sendEvent = (text) => link.send({ type: "event", text });

find("event-form").onsubmit = (event) => {
  event.preventDefault();
  sendEvent(find("event-box").value.trim());
  find("event-box").value = "";
  find("event-box").blur(); // back to walking
};
find("event-end").onclick = () => sendEvent("");

// ---- another beginning ----------------------------------------------------------------------------------------------

function choose(file) {
  picture = file ?? null;
  find("picture-name").textContent = picture?.name ?? "Choose a picture …";
  find("picture-label").classList.toggle("chosen", Boolean(picture));
  find("picture-clear").hidden = !picture;
  if (!picture) find("picture").value = "";
}

async function start() {
  if (picture) {
    const response = await fetch("picture", { method: "POST", body: picture, headers: { "X-Session": link.session ?? "" } }).catch(() => null);
    if (!response?.ok) {
      choose(null);
      return say(await reason(response), true);
    }
  }
  const seed = find("seed").value.trim();
  const twin = world.street && !picture; // a picture of one's own has no street
  begin({ type: "start", seed: seed ? Number(seed) : null, text: find("start-text").value.trim() || null, picture: Boolean(picture), twin });
  document.activeElement.blur();
}

find("start-form").onsubmit = (event) => {
  event.preventDefault();
  start();
};
find("picture").onchange = ({ target }) => choose(target.files[0]);
find("picture-clear").onclick = () => choose(null);
find("picture-label").onkeydown = (event) => ["Enter", "Space"].includes(event.code) && (event.preventDefault(), find("picture").click());
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  addEventListener(kind, (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    find("drop").hidden = kind === "drop" || (kind === "dragleave" && event.relatedTarget !== null) || kind === "dragleave";
    if (kind === "drop" && event.dataTransfer.files.length) {
      choose(event.dataTransfer.files[0]);
      start();
    }
  });
}

// ---- numbers --------------------------------------------------------------------------------------------------------

setInterval(() => {
  const now = performance.now();
  const recent = log.shown.filter((time) => time > now - 2000);
  const rate = recent.length > 1 ? (1000 * (recent.length - 1)) / (recent.at(-1) - recent[0]) : 0;
  find("hud-fps").textContent = rate ? `${rate.toFixed(1)} of ${world.fps}` : "-";
  plot.add("rates", rate);
  plot.draw(world.fps, 1000 * world.block);
}, 500);

globalThis.yume = { log, world, screen, link }; // for measuring from outside
