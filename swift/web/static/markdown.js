// What models write, as elements: headings, lists, tables, code, emphasis, links. Never markup: all text is text.
"use strict";
(() => {
  const UI = window.swiftUI;
  const { el } = UI;
  const INLINE = /(`+)([\s\S]*?[^`])\1(?!`)|\*\*([^*]+)\*\*|__([^_]+)__|\*([^*\s][^*]*)\*|\[([^\]]+)\]\((https?:\/\/[^\s)]+)\)/g;

  function inline(text) {
    const found = [];
    let at = 0;
    for (const m of text.matchAll(INLINE)) {
      if (m.index > at) found.push(text.slice(at, m.index));
      if (m[2] !== undefined) found.push(el("code", {}, m[2]));
      else if (m[3] || m[4]) found.push(el("strong", {}, m[3] || m[4]));
      else if (m[5]) found.push(el("em", {}, m[5]));
      else found.push(el("a", { href: m[7], target: "_blank", rel: "noopener noreferrer" }, m[6]));
      at = m.index + m[0].length;
    }
    if (at < text.length) found.push(text.slice(at));
    return found;
  }

  function code(language, lines) {
    const text = lines.join("\n");
    return el("div.sw-code", {}, el("div.sw-codehead", {}, el("span", {}, language), UI.button(UI.t("copy"), () => UI.copy(text), { kind: "small" })), el("pre", {}, el("code", {}, text)));
  }

  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((c) => c.trim());

  function markdown(text) {
    const lines = text.split("\n");
    const blocks = [];
    let paragraph = [];
    const flush = () => {
      if (!paragraph.length) return;
      const parts = paragraph.flatMap((line, i) => (i ? [el("br"), ...inline(line)] : inline(line)));
      blocks.push(el("p", {}, parts));
      paragraph = [];
    };
    for (let i = 0; i < lines.length; i++) {
      const line = lines[i];
      const fence = line.match(/^\s*(```+|~~~+)\s*([\w+#.-]*)/);
      const heading = line.match(/^(#{1,6})\s+(.*)/);
      const item = line.match(/^(\s*)([-*+]|\d+[.)])\s+(.*)/);
      if (fence) {
        flush();
        const body = [];
        while (++i < lines.length && !lines[i].trim().startsWith(fence[1])) body.push(lines[i]);
        blocks.push(code(fence[2], body));
      } else if (heading) {
        flush();
        blocks.push(el(`h${Math.min(heading[1].length + 3, 6)}`, {}, inline(heading[2])));
      } else if (item) {
        flush();
        const ordered = /\d/.test(item[2]);
        const list = el(ordered ? "ol" : "ul", ordered ? { start: parseInt(item[2]) } : {});
        let next;
        while (i < lines.length && (next = lines[i].match(/^(\s*)([-*+]|\d+[.)])\s+(.*)/)) && /\d/.test(next[2]) === ordered) {
          const depth = Math.min(Math.floor(next[1].length / 2), 4);
          list.append(el("li", { style: depth ? `margin-left:${depth}em` : null }, inline(next[3])));
          i++;
        }
        i--;
        blocks.push(list);
      } else if (line.includes("|") && /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/.test(lines[i + 1] || "") && lines[i + 1].includes("-")) {
        flush();
        const head = cells(line);
        const rows = [];
        for (i += 2; i < lines.length && lines[i].includes("|"); i++) rows.push(cells(lines[i]));
        i--;
        blocks.push(el("div.sw-scroll", {}, el("table.sw-table", {}, el("thead", {}, el("tr", {}, head.map((c) => el("th", {}, inline(c))))), el("tbody", {}, rows.map((r) => el("tr", {}, r.map((c) => el("td", {}, inline(c)))))))));
      } else if (/^\s*>\s?/.test(line)) {
        flush();
        blocks.push(el("blockquote", {}, inline(line.replace(/^\s*>\s?/, ""))));
      } else if (/^\s*([-*_])(\s*\1){2,}\s*$/.test(line)) {
        flush();
        blocks.push(el("hr"));
      } else if (!line.trim()) flush();
      else paragraph.push(line);
    }
    flush();
    return blocks;
  }

  // A reply's thinking and what it says: {thinking, open, text}; open while the thinking goes on.
  function thought(text) {
    const m = text.match(/^\s*<think>\n?/);
    if (!m) return { thinking: "", open: false, text };
    const end = text.indexOf("</think>");
    if (end < 0) return { thinking: text.slice(m[0].length), open: true, text: "" };
    return { thinking: text.slice(m[0].length, end).trim(), open: false, text: text.slice(end + 8).trimStart() };
  }

  UI.markdown = markdown;
  UI.thought = thought;
})();
