// A line chart as SVG: several series of [x, y], a crosshair with their values, smoothing.
"use strict";
(() => {
  const UI = window.swiftUI;
  const COLORS = ["#2563eb", "#ea580c", "#16a34a", "#9333ea", "#dc2626", "#0891b2", "#ca8a04", "#db2777"];
  const [W, H, LEFT, RIGHT, TOP, BOTTOM] = [520, 220, 56, 12, 12, 26];

  function svg(tag, attributes, ...children) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  function ticks(low, high, count) {
    const span = high - low || Math.abs(high) || 1;
    const raw = span / count;
    const unit = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((k) => k * unit).find((s) => s >= raw);
    const found = [];
    for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-6; v += step) found.push(v);
    return found;
  }

  function smoothed(points, weight) {
    let [total, share] = [0, 0];
    return points.map(([x, y]) => {
      total = weight * total + (1 - weight) * y;
      share = weight * share + (1 - weight);
      return [x, total / share];
    });
  }

  // series: [{name, points, color?}]; options: {title, smooth}
  function chart(series, options) {
    const kept = series.filter((s) => s.points.length);
    if (!kept.length) return null;
    const all = kept.flatMap((s) => s.points);
    let [x0, x1] = [Math.min(...all.map((p) => p[0])), Math.max(...all.map((p) => p[0]))];
    let [y0, y1] = [Math.min(...all.map((p) => p[1])), Math.max(...all.map((p) => p[1]))];
    if (x0 === x1) [x0, x1] = [x0 - 1, x1 + 1];
    if (y0 === y1) [y0, y1] = [y0 - (Math.abs(y0) || 1) * 0.1, y1 + (Math.abs(y1) || 1) * 0.1];
    const margin = (y1 - y0) * 0.05;
    [y0, y1] = [y0 - margin, y1 + margin];
    const sx = (x) => LEFT + ((x - x0) / (x1 - x0)) * (W - LEFT - RIGHT);
    const sy = (y) => H - BOTTOM - ((y - y0) / (y1 - y0)) * (H - TOP - BOTTOM);
    const root = svg("svg", { viewBox: `0 0 ${W} ${H}`, class: "sw-chart", role: "img", "aria-label": options.title });
    for (const y of ticks(y0, y1, 4)) {
      root.append(svg("line", { x1: LEFT, x2: W - RIGHT, y1: sy(y), y2: sy(y), class: "grid" }));
      root.append(svg("text", { x: LEFT - 6, y: sy(y) + 4, class: "tick", "text-anchor": "end" }, UI.figure(y)));
    }
    for (const x of ticks(x0, x1, 5)) {
      if (Number.isInteger(x))
        root.append(svg("text", { x: sx(x), y: H - 8, class: "tick", "text-anchor": "middle" }, UI.figure(x)));
    }
    kept.forEach((s, i) => {
      s.color = s.color || COLORS[i % COLORS.length];
      const draw = (points, extra) => {
        const d = points.map(([x, y], k) => `${k ? "L" : "M"}${sx(x).toFixed(1)},${sy(y).toFixed(1)}`).join("");
        root.append(svg("path", { d, class: "line", stroke: s.color, ...extra }));
      };
      const smooth = options.smooth && s.points.length > 8;
      draw(s.points, smooth ? { opacity: 0.3 } : {});
      if (smooth) draw(smoothed(s.points, 0.85), {});
      if (s.points.length === 1)
        root.append(svg("circle", { cx: sx(s.points[0][0]), cy: sy(s.points[0][1]), r: 3, fill: s.color }));
    });
    const legend = UI.el("div.sw-legend", {}, kept.map((s) => key(s)));
    const cross = svg("line", { y1: TOP, y2: H - BOTTOM, class: "cross", visibility: "hidden" });
    root.append(cross);
    root.addEventListener("mousemove", (event) => {
      const box = root.getBoundingClientRect();
      const x = x0 + ((((event.clientX - box.left) / box.width) * W - LEFT) / (W - LEFT - RIGHT)) * (x1 - x0);
      const near = (s) => s.points.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a));
      const at = sx(near(kept[0])[0]);
      for (const [name, value] of Object.entries({ x1: at, x2: at, visibility: "visible" })) cross.setAttribute(name, value);
      UI.replace(legend, UI.el("span.tick", {}, UI.t("step_n", { n: near(kept[0])[0] })), kept.map((s) => key(s, near(s)[1])));
    });
    root.addEventListener("mouseleave", () => {
      cross.setAttribute("visibility", "hidden");
      UI.replace(legend, kept.map((s) => key(s)));
    });
    return UI.el("figure.sw-figure", {}, UI.el("figcaption", {}, options.title), root, legend);
  }

  function key(s, value) {
    const last = value ?? s.points[s.points.length - 1][1];
    return UI.el("span.key", {}, UI.el("i", { style: `background:${s.color}` }), `${s.name} ${UI.figure(last)}`);
  }

  UI.chart = chart;
})();
