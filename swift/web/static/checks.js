// Before the start: what the run needs, what the defaults become, what the data are.
"use strict";
(() => {
  const UI = window.swiftUI;
  const { t, el, button } = UI;

  function checks(form) {
    const node = button(t("check_first"), () => UI.busy(node, () => run(form)));
    node.id = "check-train";
    return node;
  }

  async function run(form) {
    const cards = ["plan", "resolved", "data"].map((what) => {
      const body = el("div", {}, el("div.sw-hint", {}, t("working")));
      return { what, body, node: el("section.sw-panel", { id: `check-${what}` }, el("h4", {}, t(`check_${what}`)), body) };
    });
    UI.replace(form.result, el("div.sw-checks", {}, cards.map((c) => c.node)));
    let shown = false;
    await Promise.all(cards.map(async ({ what, body }) => {
      try {
        const answer = await form.call(what, { command: form.command, fields: form.fields });
        if (answer.mistakes) {
          UI.replace(body, el("div.sw-error", {}, Object.values(answer.mistakes).join("\n")));
          if (!shown) form.mark(answer.mistakes, true);
          shown = true;
        } else UI.replace(body, DRAW[what](answer, form));
      } catch (error) {
        UI.replace(body, el("div.sw-error", {}, error.message));
      }
    }));
  }

  const DRAW = {
    plan(answer, form) {
      const [low, high] = answer.seconds.map((s) => UI.clock(s));
      const fit = el(`span.sw-state.${answer.fits ? "finished" : "failed"}`, {}, t(answer.fits ? "fits" : "fits_not"));
      const parts = answer.parts.filter(([, , share]) => share > 0.005).map(([name, size, share]) =>
        el("tr", {}, el("td", {}, t(`part_${name}`)), el("td.number", {}, size), el("td.share", {}, el("i", { style: `width:${100 * share}%` }))));
      const remedy = answer.remedy && el("div.sw-row", {}, t("remedy", { size: answer.remedy.total }),
        button(t("take_over"), () => form.take({ fields: { ...form.fields, ...answer.remedy.fields } }), { kind: "primary" }));
      return [
        el("p.sw-row", {}, el("b", {}, t("needs", { need: answer.total, have: answer.memory })), fit),
        el("p", {}, t("takes", { steps: answer.steps, low, high }), " ", el("span.sw-hint", {}, answer.machine)),
        remedy, el("table.sw-table", {}, el("tbody", {}, parts)),
      ];
    },
    resolved(answer) {
      if (!answer.rows.length) return el("div.sw-empty", {}, t("nothing_resolved"));
      return [
        el("div.sw-scroll", {}, el("table.sw-table", {}, el("tbody", {}, answer.rows.map(([name, value, why]) =>
          el("tr", {}, el("td.mono", {}, name), el("td.mono", {}, value), el("td", {}, why)))))),
        el("details", {}, el("summary", {}, t("all_options")), el("pre.sw-log", {}, answer.all)),
      ];
    },
    data(answer) {
      return [
        answer.sampled ? el("p.sw-hint", {}, t("sampled", { n: answer.sampled })) : null,
        el("iframe.sw-report", { srcdoc: answer.html, title: t("data_report"), sandbox: "" }),
      ];
    },
  };

  UI.checks = checks;
})();
