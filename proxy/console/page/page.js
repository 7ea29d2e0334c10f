// The console page: one ticket, one machine. The ticket comes in the fragment (#ticket=…), which no server is sent.

import RFB from "./novnc/core/rfb.js";
import { wordsFor, mayComeBack, delay } from "./ending.js";

const $ = (id) => document.getElementById(id);
const XK = { ctrl: [0xffe3, "ControlLeft"], alt: [0xffe9, "AltLeft"], shift: [0xffe1, "ShiftLeft"] };
// How long a connection that never came to be is tried again: tickets want to be used within half a minute.
const FIRST_TRIES_MS = 30000;
// How long a lost console is looked for. The proxy ends it before with its own words when the ticket's time is over.
const LOST_TRIES_MS = 15 * 60000;

let ticket = null;
let rfb = null;
let timer = null;
let attempt = 0;
let since = 0;
let wasOpen = false;
let leaving = false;

function takeTicket() {
  const given = location.hash.slice(1).split("&").find((part) => part.startsWith("ticket="));
  if (given) {
    try {
      ticket = decodeURIComponent(given.slice("ticket=".length));
    } catch {
      ticket = null;
    }
    // Out of the address bar and the history; a reload of this tab still finds it.
    history.replaceState({ ticket }, "", location.pathname);
    return true;
  }
  ticket = history.state?.ticket ?? null;
  return false;
}

function show(state, text) {
  $("state").dataset.state = state;
  $("state").textContent = text;
  const open = state === "open";
  for (const id of ["cad", "clipboard"]) $(id).disabled = !open;
  $("disconnect").disabled = !(open || state === "waiting");
}

function notice(title, text, button) {
  $("notice").hidden = false;
  $("notice-title").textContent = title;
  $("notice-text").textContent = text;
  $("again").hidden = !button;
  if (button) {
    $("again").textContent = button;
    $("again").focus();
  }
}

function begin() {
  if (!ticket) {
    show("idle", "Not connected");
    notice("No ticket", "This page opens a machine's console with a ticket. Follow the link that your portal gives you.", null);
    return;
  }
  clearTimeout(timer);
  attempt = 0;
  since = Date.now();
  wasOpen = false;
  connect();
}

function connect() {
  clearTimeout(timer);
  leaving = false;
  show("waiting", attempt ? "Connecting again…" : "Connecting…");
  const socket = new WebSocket(`wss://${location.host}/ticket/${encodeURIComponent(ticket)}`, ["binary"]);
  socket.binaryType = "arraybuffer";
  socket.addEventListener("close", (event) => ended(viewer, event));
  const viewer = new RFB($("screen"), socket, { shared: true });
  rfb = viewer;
  viewer.scaleViewport = $("scale").getAttribute("aria-pressed") === "true";
  viewer.focusOnClick = true;
  viewer.background = "#10141b";
  viewer.addEventListener("connect", () => {
    attempt = 0;
    wasOpen = true;
    $("notice").hidden = true;
    show("open", "Connected");
    viewer.focus();
  });
  viewer.addEventListener("desktopname", (event) => {
    $("name").textContent = event.detail.name || "Console";
    document.title = event.detail.name ? `${event.detail.name} – console` : "Console";
  });
  viewer.addEventListener("clipboard", (event) => { $("clipboard-text").value = event.detail.text; });
}

function ended(viewer, event) {
  if (viewer !== rfb) return;
  rfb = null;
  // noVNC takes its canvas away on its own disconnect, which follows; what is left of it goes now.
  queueMicrotask(() => $("screen").replaceChildren());
  if ($("clipboard-dialog").open) $("clipboard-dialog").close();
  if (leaving) {
    show("ended", "Closed");
    notice("Console closed", "You closed this console.", "Connect again");
    return;
  }
  const words = wordsFor(event.code, event.reason, wasOpen);
  if (wasOpen && attempt === 0) since = Date.now();
  const patience = wasOpen ? LOST_TRIES_MS : FIRST_TRIES_MS;
  if (mayComeBack(event.code) && Date.now() - since < patience) {
    const wait = delay(attempt++, Math.random());
    show("waiting", "Connection lost");
    notice("Connecting again", `${words} Next attempt in ${Math.max(1, Math.round(wait / 1000))} s.`, "Try now");
    timer = setTimeout(connect, wait);
    return;
  }
  show("ended", "Ended");
  notice(wasOpen ? "The console has ended" : "No console", words, "Connect again");
}

function leave() {
  leaving = true;
  clearTimeout(timer);
  if (rfb) {
    rfb.disconnect();
  } else {
    show("ended", "Closed");
    notice("Console closed", "You closed this console.", "Connect again");
  }
}

function toggle(id) {
  const on = $(id).getAttribute("aria-pressed") !== "true";
  $(id).setAttribute("aria-pressed", String(on));
  return on;
}

// Keys that the machine saw pressed are released before the focus goes elsewhere.
function releaseModifiers() {
  for (const [keysym, code] of Object.values(XK)) rfb?.sendKey(keysym, code, false);
}

function typeText(text) {
  for (const character of text) {
    const code = character.codePointAt(0);
    const keysym = character === "\n" ? 0xff0d : character === "\t" ? 0xff09 : code < 0x100 ? code : 0x01000000 | code;
    rfb?.sendKey(keysym, null);
  }
}

$("again").addEventListener("click", () => (timer && $("state").dataset.state === "waiting" ? connect() : begin()));
$("cad").addEventListener("click", () => { rfb?.sendCtrlAltDel(); rfb?.focus(); });
$("scale").addEventListener("click", () => {
  const on = toggle("scale");
  // Unscaled, noVNC has scroll bars where the window is too small.
  if (rfb) rfb.scaleViewport = on;
});
$("clipboard").addEventListener("click", () => $("clipboard-dialog").showModal());
$("clipboard-send").addEventListener("click", () => {
  rfb?.clipboardPasteFrom($("clipboard-text").value);
  $("clipboard-dialog").close();
});
$("clipboard-type").addEventListener("click", () => {
  $("clipboard-dialog").close();
  typeText($("clipboard-text").value);
});
$("help").addEventListener("click", () => $("help-dialog").showModal());
for (const dialog of document.querySelectorAll("dialog")) dialog.addEventListener("close", () => rfb?.focus());
$("fullscreen").addEventListener("click", async () => {
  try {
    await (document.fullscreenElement ? document.exitFullscreen() : document.documentElement.requestFullscreen());
  } catch {
    $("fullscreen").disabled = true;
  }
});
document.addEventListener("fullscreenchange", () => {
  $("fullscreen").setAttribute("aria-pressed", String(Boolean(document.fullscreenElement)));
  rfb?.focus();
});
$("disconnect").addEventListener("click", leave);
addEventListener("keydown", (event) => {
  if (event.code !== "KeyB" || !event.ctrlKey || !event.altKey || !event.shiftKey) return;
  event.preventDefault();
  event.stopImmediatePropagation();
  if ($("bar").contains(document.activeElement)) {
    rfb?.focus();
  } else {
    releaseModifiers();
    rfb?.blur();
    $("bar").querySelector("button:enabled").focus();
  }
}, { capture: true });
addEventListener("online", () => { if ($("state").dataset.state === "waiting" && !rfb) connect(); });
addEventListener("hashchange", () => {
  if (takeTicket()) {
    const old = rfb;
    rfb = null;
    old?.disconnect();
    begin();
  }
});

takeTicket();
begin();
