// Makes pages live. Each works without this file; nothing here is needed to read or to act.
(() => {
  "use strict";
  const $ = (selector, root = document) => [...root.querySelectorAll(selector)];

  // A copy button for each command.
  const addCopy = (root) => {
    if (!navigator.clipboard) return;
    for (const pre of $("[data-copy]", root)) {
      if (pre.dataset.has) continue;
      pre.dataset.has = "1";
      let holder = pre.closest(".cmd");
      if (!holder) {
        holder = document.createElement("div");
        holder.className = "held";
        pre.before(holder);
        holder.append(pre);
      }
      const button = document.createElement("button");
      button.type = "button";
      button.className = "copy";
      button.textContent = "Copy";
      button.setAttribute("aria-label", `Copy: ${pre.getAttribute("aria-label")}`);
      button.addEventListener("click", async () => {
        try {
          await navigator.clipboard.writeText(pre.textContent);
          button.textContent = "Copied";
        } catch {
          getSelection().selectAllChildren(pre);
          button.textContent = "Selected";
        }
        setTimeout(() => (button.textContent = "Copy"), 1600);
      });
      holder.append(button);
    }
  };
  addCopy(document);

  // A confirmation is shown once, not again on reload.
  if ($("[data-flash]").length) {
    const url = new URL(location.href);
    url.searchParams.delete("done");
    history.replaceState(null, "", url);
  }

  // Clocks tick from the server's reading, so a wrong local clock does no harm.
  const startClocks = (root) => {
    for (const clock of $("[data-since]", root)) clock.begun = performance.now() - 1000 * Number(clock.dataset.since);
  };
  const words = (s) => (s < 10 ? `${s.toFixed(1)} s` : s < 60 ? `${Math.floor(s)} s` : `${Math.floor(s / 60)} min ${String(Math.floor(s % 60)).padStart(2, "0")} s`);
  startClocks(document);
  setInterval(() => {
    for (const clock of $("[data-since]")) clock.textContent = words(Math.max(0, (performance.now() - clock.begun) / 1000));
  }, 250);

  // Popovers close on Escape and on a click elsewhere.
  const popovers = ".use[open], .revs[open]";
  addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    for (const open of $(popovers)) {
      open.open = false;
      open.firstElementChild.focus();
    }
  });
  addEventListener("click", (event) => {
    for (const open of $(popovers)) if (!open.contains(event.target)) open.open = false;
  });

  // The Space's page follows its stage. The server renders; this puts the rendered parts in place.
  const main = document.querySelector("[data-events]");
  if (main) {
    let busy = false, again = false, timer = 0;
    const refresh = async () => {
      if (busy) return void (again = true);
      busy = true;
      try {
        const answer = await fetch(main.dataset.fragment, { headers: { Accept: "text/html" } });
        if (answer.status === 404) return void location.reload();
        if (answer.ok) place(new DOMParser().parseFromString(await answer.text(), "text/html"));
      } catch {
        // The platform is not there for a moment; the next event or poll brings it up to date.
      } finally {
        busy = false;
        if (again) {
          again = false;
          setTimeout(refresh, 700);
        }
      }
    };
    const place = (next) => {
      const head = next.querySelector('[data-live="badge"]');
      if (!head) return;
      const showsApp = main.dataset.key === "app";
      // The frame needs its address, which only the whole page has.
      if (head.dataset.key === "app" && !showsApp) return void location.reload();
      const isNewer = showsApp && head.dataset.key === "app" && head.dataset.serves !== main.dataset.serves;
      for (const name of ["badge", "banner", "panel"]) {
        if (name === "panel" && head.dataset.key === "app") continue;
        const old = main.querySelector(`[data-live="${name}"]`), fresh = next.querySelector(`[data-live="${name}"]`);
        if (!old || !fresh || old.innerHTML === fresh.innerHTML) continue;
        if (old.contains(document.activeElement) && main.dataset.key === head.dataset.key) continue;
        old.replaceChildren(...fresh.childNodes);
        startClocks(old);
        addCopy(old);
        for (const log of $(".log", old)) log.scrollTop = log.scrollHeight;
      }
      main.dataset.key = head.dataset.key;
      if (isNewer) offerReload(head.dataset.serves);
    };
    const offerReload = (serves) => {
      const banner = main.querySelector('[data-live="banner"]');
      const box = document.createElement("div");
      box.className = "banner";
      box.innerHTML = "<p><strong>A new version is live.</strong> <button class=link type=button>Show it</button></p>";
      box.querySelector("button").addEventListener("click", () => {
        main.dataset.serves = serves;
        const frame = main.querySelector("iframe.app");
        frame.src = frame.getAttribute("src");
        box.remove();
      });
      banner.replaceChildren(box);
    };
    const poll = () => {
      clearInterval(timer);
      timer = setInterval(() => document.hidden || refresh(), 3000);
    };
    let source = null;
    const listen = () => {
      source = new EventSource(main.dataset.events);
      let first = true;
      source.onmessage = (event) => {
        clearInterval(timer);
        timer = 0;
        // The first one repeats what the page shows, unless it changed in between.
        if (!first || JSON.parse(event.data).stage !== main.dataset.stage) refresh();
        first = false;
      };
      // Where events do not come through, look now and then; EventSource itself goes on trying.
      source.onerror = () => timer || poll();
    };
    listen();
    // A page in the background holds no connection; browsers allow few of them per host.
    addEventListener("visibilitychange", () => {
      if (document.hidden) source.close();
      else {
        refresh();
        listen();
      }
    });
  }

  for (const tall of $(".log.tall")) tall.scrollTop = tall.scrollHeight;

  // A log grows while it is open.
  const log = document.querySelector("[data-log]");
  if (log) {
    const note = document.querySelector("[data-following]");
    const ansi = /\x1b(?:\[[0-?]*[ -\/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])/g;
    let after = Number(log.dataset.after), wait = 1000;
    note.textContent = "Live.";
    log.scrollTop = log.scrollHeight;
    const more = async () => {
      try {
        const answer = await fetch(`${log.dataset.log}?after=${after}`, { headers: { Accept: "application/json" } });
        if (!answer.ok) throw new Error(String(answer.status));
        const { lines, done } = await answer.json();
        const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
        if (lines.length) {
          after = lines[lines.length - 1].n;
          log.append(lines.map((line) => line.text.replace(ansi, "").split("\r").pop() + "\n").join(""));
          if (log.textContent.length > 2e6) log.textContent = log.textContent.slice(-1e6);
          if (atEnd) log.scrollTop = log.scrollHeight;
        }
        note.textContent = done ? "Ended." : "Live.";
        if (done) return;
        wait = lines.length ? 700 : Math.min(wait + 300, 3000);
      } catch {
        note.textContent = "The platform does not answer; trying again.";
        wait = 4000;
      }
      setTimeout(more, wait);
    };
    more();
  }
})();
