// What is live of a page: without this file everything can be read and done, by loading the page anew.

const { base, live } = document.body.dataset;
const state = document.getElementById("link-state");
const MOST_LINES = 2000;
const REFRESH_MS = 1000;
const AGAIN_MS = 15000;

// A page asks for itself again; its parts that differ are exchanged, come and go, but for one that somebody is typing in.
let asked = false;
let again = false;
let missing = false;

async function refresh() {
  if (asked) {
    again = true;
    return;
  }
  asked = true;
  try {
    const answer = await fetch(location.href, { headers: { "Latticed-Live": "1" }, redirect: "error" });
    if (answer.status === 401) {
      end();
      return;
    }
    if (answer.ok || answer.status === 404) {
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      // What a page is about may be gone, and come back.
      if (missing || !answer.ok) replace(fresh);
      else exchange(fresh);
      missing = !answer.ok;
    }
  } catch {
    say("the console does not answer");
  } finally {
    setTimeout(() => {
      asked = false;
      if (again) {
        again = false;
        refresh();
      }
    }, REFRESH_MS);
  }
}

function replace(fresh) {
  prepare(fresh);
  document.getElementById("main").replaceWith(document.adoptNode(fresh.getElementById("main")));
}

function exchange(fresh) {
  for (const old of document.querySelectorAll("[data-part]")) {
    if (!fresh.getElementById(old.id) && !old.contains(document.activeElement)) old.remove();
  }
  let before = null;
  for (const next of fresh.querySelectorAll("[data-part]")) {
    prepare(next);
    let here = document.getElementById(next.id);
    if (!here) {
      here = document.adoptNode(next);
      if (before) before.after(here);
      else document.getElementById("main").append(here);
    } else if (!here.contains(document.activeElement) && next.outerHTML !== here.outerHTML) {
      here.replaceWith(document.adoptNode(next));
      here = next;
    }
    before = here;
  }
}

function say(words) {
  if (state && state.textContent !== words) state.textContent = words;
}

// A tab that is not seen holds no connection: a browser has six for a site.
let stream = null;
let over = false;

function end() {
  over = true;
  rest();
  say("the session is over");
}

function listen() {
  if (document.hidden || stream || !live || over) return;
  stream = new EventSource(`${base}/live`);
  stream.onopen = () => {
    say("live");
    // What changed since the page was made was told before it listened.
    refresh();
  };
  stream.onerror = () => {
    say("not live: the console does not answer");
    // After an answer that is no stream a browser does not ask again: the session is over, or too many pages are open.
    if (stream.readyState === EventSource.CLOSED) {
      rest();
      refresh();
      setTimeout(listen, AGAIN_MS);
    }
  };
  stream.onmessage = (event) => {
    const { targets, daemon } = JSON.parse(event.data);
    if (daemon === "gone") say("the daemon does not answer");
    if (daemon === "back") say("live");
    if (daemon === "denied") {
      say("not live: this user may not hear of events");
      return;
    }
    if (daemon || live === "*" || targets === null || targets.includes(live)) refresh();
  };
}

function rest() {
  if (stream) stream.close();
  stream = null;
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) rest();
  else listen();
});

// What goes on is looked at meanwhile: a form that was sent, and what a page says is under way.
let sent = false;
document.addEventListener("submit", () => {
  sent = true;
});
setInterval(() => {
  if (!document.hidden && (sent || document.querySelector("[data-goes-on]"))) refresh();
}, 2 * REFRESH_MS);

// Commands can be copied.
function prepare(within) {
  for (const box of within.querySelectorAll(".command")) {
    if (box.querySelector("button")) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "quiet copy";
    button.textContent = "Copy";
    box.append(button);
  }
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest(".copy");
  if (!button) return;
  try {
    await navigator.clipboard.writeText(button.parentElement.querySelector("code").textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(button.parentElement.querySelector("code"));
    button.textContent = "Selected";
  }
});

// A log follows while its page is seen.
async function follow(log) {
  for (;;) {
    if (document.hidden) {
      await new Promise((done) => document.addEventListener("visibilitychange", done, { once: true }));
      continue;
    }
    try {
      const answer = await fetch(`${log.dataset.follow}?after=${encodeURIComponent(log.dataset.next)}`, { redirect: "error" });
      if (answer.status === 401) {
        end();
        return;
      }
      if (!answer.ok) throw new Error(answer.status);
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      const atEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 40;
      log.dataset.next = fresh.querySelector(".end").dataset.next;
      const lines = fresh.querySelectorAll("[data-seq]");
      for (const line of lines) log.append(document.adoptNode(line));
      while (log.childElementCount > MOST_LINES) log.firstElementChild.remove();
      if (atEnd) log.scrollTop = log.scrollHeight;
      say("follows");
      if (!lines.length) await new Promise((done) => setTimeout(done, 1000));
    } catch {
      say("the daemon does not answer");
      await new Promise((done) => setTimeout(done, 3000));
    }
  }
}

function count() {
  for (const one of document.querySelectorAll("[data-left]")) {
    const left = Math.max(0, Number(one.dataset.left) - 1);
    one.dataset.left = String(left);
    one.textContent = String(left);
  }
}

prepare(document);
listen();
setInterval(count, 1000);
const log = document.querySelector("[data-follow]");
if (log) {
  log.scrollTop = log.scrollHeight;
  follow(log);
}
