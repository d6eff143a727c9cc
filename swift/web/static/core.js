// What all parts of the page share: words, elements, calls to the server, tabs, a small line chart.
"use strict";
(() => {
  const words = window.SWIFT_WORDS || {};

  function t(key, values) {
    let found = words[key] ?? key;
    for (const [name, value] of Object.entries(values || {})) found = found.replaceAll(`{${name}}`, String(value));
    return found;
  }

  // el("div.card", {onclick}, child, "text", ...): text is always text, never markup.
  function el(what, props, ...children) {
    const [tag, ...classes] = what.split(".");
    const node = document.createElement(tag || "div");
    if (classes.length) node.className = classes.join(" ");
    for (const [name, value] of Object.entries(props || {})) {
      if (value === undefined || value === null || value === false) continue;
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (name in node && name !== "list" && name !== "style") node[name] = value;
      else node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.flat().filter((c) => c !== null && c !== undefined && c !== false));
    return node;
  }

  function replace(node, ...children) {
    node.replaceChildren(...children.flat().filter((c) => c !== null && c !== undefined && c !== false));
  }

  // A call to a function of the server's table; a refusal is thrown as an Error with its words.
  function caller(server) {
    return async (what, args) => {
      // Gradio's client answers with nothing when the server can't be reached.
      const answer = await server.call({ what, args: args || {} }).catch(() => undefined);
      const reached = answer !== null && typeof answer === "object";
      tellOffline(!reached);
      if (!reached) throw new Error(t("offline"));
      if (answer.error) throw new Error(answer.error);
      return answer;
    };
  }

  function tellOffline(away) {
    const banner = document.getElementById("sw-offline");
    if (away && !banner) document.body.append(el("div", { id: "sw-offline", role: "alert" }, t("offline")));
    else if (!away && banner) banner.remove();
  }

  function note(message, kind) {
    let box = document.getElementById("sw-notes");
    if (!box) {
      box = el("div", { id: "sw-notes", role: "status", ariaLive: "polite" });
      document.body.append(box);
    }
    const line = el(`div.sw-note.${kind || "info"}`, {}, message);
    box.append(line);
    setTimeout(() => line.remove(), kind === "bad" ? 9000 : 4000);
  }

  async function copy(value) {
    try {
      await navigator.clipboard.writeText(value);
    } catch {
      const area = el("textarea", { value, style: "position:fixed;opacity:0" });
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    note(t("copied"));
  }

  function download(name, content, type) {
    const url = URL.createObjectURL(new Blob([content], { type: type || "text/plain" }));
    const link = el("a", { href: url, download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  }

  const button = (label, onclick, props) =>
    el(`button.sw-button${props?.kind ? `.${props.kind}` : ""}`, { type: "button", onclick, ...props }, label);

  // Runs `work` with the button off, and shows what goes wrong.
  async function busy(node, work) {
    if (node.disabled) return;
    node.disabled = true;
    node.classList.add("busy");
    try {
      await work();
    } catch (error) {
      note(error.message, "bad");
    } finally {
      node.disabled = false;
      node.classList.remove("busy");
    }
  }

  // ---- tabs, and what one part of the page has for another ----
  const mail = {};
  const readers = {};

  // A tab that a narrow screen hides behind the "..." menu has no button: then the server turns the page.
  function goTab(name) {
    const shown = document.getElementById(`tab-${name}-button`);
    if (shown && shown.offsetParent !== null && getComputedStyle(shown).visibility !== "hidden") shown.click();
    else if (window.swiftUI.turn) window.swiftUI.turn(name);
  }

  function send(part, message) {
    if (readers[part] && readers[part].node.isConnected) readers[part].read(message);
    else mail[part] = message;
  }

  function receive(part, node, read) {
    readers[part] = { node, read };
    if (mail[part] !== undefined) {
      read(mail[part]);
      delete mail[part];
    }
  }

  // Calls `work` every `seconds` while the node can be seen, for as long as it is on the page.
  function every(seconds, node, work) {
    let running = false;
    const timer = setInterval(async () => {
      if (!node.isConnected) return clearInterval(timer);
      if (running || document.hidden || node.offsetParent === null) return;
      running = true;
      try {
        await work();
      } catch (error) {
        console.warn(error); // the next round tries again
      } finally {
        running = false;
      }
    }, seconds * 1000);
  }

  // ---- figures ----
  function clock(seconds) {
    if (seconds === undefined || seconds === null || !isFinite(seconds)) return "";
    const s = Math.max(0, Math.round(seconds));
    const [h, m] = [Math.floor(s / 3600), Math.floor((s % 3600) / 60)];
    const pad = (n) => String(n).padStart(2, "0");
    return h ? `${h}:${pad(m)}:${pad(s % 60)}` : `${m}:${pad(s % 60)}`;
  }

  function figure(value) {
    if (value === undefined || value === null) return "";
    const size = Math.abs(value);
    if (value === 0) return "0";
    if (size < 1e-3 || size >= 1e6) return value.toExponential(2);
    return String(Number(value.toPrecision(4)));
  }

  const bytes = (n) => (n >= 2 ** 30 ? `${(n / 2 ** 30).toPrecision(3)} GiB` : `${Math.round(n / 2 ** 20)} MiB`);
  const when = (seconds) =>
    new Date(seconds * 1000).toLocaleString(words.locale || undefined, {
      month: "short",
      day: "numeric",
      hour: "2-digit",
      minute: "2-digit",
    });

  window.swiftUI = {
    t, el, replace, caller, note, copy, download, button, busy, goTab, send, receive, every, clock, figure, bytes, when,
  };
})();
