// Draws the charts of a report with uPlot, from the data beside each. One rule for all kinds: what is drawn can be read off,
// with the mouse and with the keyboard, and is drawn anew when colours or widths change.
(() => {
  "use strict";
  const root = document.documentElement;
  const charts = new Map(); // element -> the functions of its chart
  const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const color = (i) => css(`--c${i % 8}`);
  const FONT = "12px system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', Arial, sans-serif";

  function fade(hex, alpha) {
    const n = parseInt(hex.slice(1), 16);
    return `rgba(${n >> 16}, ${(n >> 8) & 255}, ${n & 255}, ${alpha})`;
  }

  function words(value) {
    if (value == null) return "";
    const size = Math.abs(value);
    if (size >= 1e6 || (size > 0 && size < 1e-4)) return value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
    return value.toLocaleString("en-US", { maximumSignificantDigits: Math.max(4, Math.ceil(Math.log10(size + 1))) });
  }

  function el(name, className, parent, text) {
    const made = document.createElement(name);
    made.className = className;
    if (text !== undefined) made.textContent = text;
    parent.append(made);
    return made;
  }

  // ---- what all charts share

  function axis(label, more) {
    return {
      stroke: css("--muted"), font: FONT, labelFont: FONT, label, labelSize: 18, labelGap: 0, gap: 5, size: 24,
      grid: { stroke: css("--faint"), width: 1 }, ticks: { show: false },
      values: (u, splits) => splits.map(words), ...more,
    };
  }

  function widthOf(u, values) {
    return Math.max(34, 12 + 7 * Math.max(0, ...(values || []).map((v) => (v || "").length)));
  }

  // Where a logarithmic axis has its marks: at the numbers that are given, else at 1, 2 and 5 of each power of ten, or fewer.
  function decades(given, space, side) {
    return (u, i, min, max) => {
      const room = u.bbox[side] / uPlot.pxRatio || 300, whole = Math.log(max / min) || 1, fits = (a, b) => (Math.log(b / a) / whole) * room >= space;
      const from = Math.floor(Math.log10(min)), powers = [...Array(Math.ceil(Math.log10(max)) - from + 1).keys()].map((k) => 10 ** (k + from));
      let marks = given.length ? given : fits(1, 2) ? powers.flatMap((p) => [p, 2 * p, 5 * p]) : powers;
      marks = marks.filter((mark) => mark >= min * 0.999 && mark <= max * 1.001);
      return marks.reduce((kept, mark) => (kept.length && !fits(kept.at(-1), mark) ? kept : [...kept, mark]), []);
    };
  }

  function reach(given) {
    return (u, min, max) => {
      if (min == null) return given.log ? [1, 10] : [0, 1];
      if (given.log) {
        if (min === max) return [min / 2, max * 2];
        return given.tight ? [min, max] : [min / 1.15, max * 1.15];
      }
      if (min === given.low && given.start < min) min = given.start; // all is shown: zooming in begins elsewhere
      if (given.tight) return min === max ? [min - 0.5, max + 0.5] : [min, max];
      const pad = 0.06 * (max - min || Math.abs(max) || 1);
      return [given.zero && min >= 0 ? 0 : min - pad, given.top && max <= given.top ? given.top * 1.02 : max + pad];
    };
  }

  function options(element, height, more) {
    const paper = root.classList.contains("printing");
    return {
      width: element.clientWidth, height: paper ? Math.min(height, 190) : height, padding: [8, 26, 0, 0],
      cursor: {
        drag: { x: true, y: false, setScale: true }, focus: { prox: 16 },
        sync: more.sync ? { key: more.sync } : undefined, points: { size: 7 },
      },
      ...more.given,
    };
  }

  // ---- lines and bands

  function chart(element, data, sync) {
    const tables = [], series = [{ label: data.x, value: (u, v) => (v == null ? "" : `at ${words(v)}:`) }], bands = [];
    for (const band of data.bands) {
      const fill = fade(color(band.color), band.strength), hi = series.length;
      tables.push([band.x, band.high], [band.x, band.low]);
      series.push({
        label: band.label, stroke: "transparent", width: 0, points: { show: false }, fill: undefined, spanGaps: true,
        ...(band.label ? {} : { class: "heard" }), value: (u, v, s, i) => (i == null || v == null ? "" : `${words(u.data[hi + 1][i])} to ${words(v)}`),
      });
      series.push({ label: "", stroke: "transparent", width: 0, points: { show: false }, spanGaps: true, class: "heard" });
      bands.push({ series: [hi, hi + 1], fill });
    }
    const sparse = Math.max(0, ...data.lines.map((line) => line.x.length)) <= 60;
    for (const line of data.lines) {
      const stroke = color(line.color), dots = line.look.endsWith("dots"), haze = line.look === "haze";
      const one = { label: line.label, stroke, width: 1.6, value: (u, v) => words(v), points: { show: sparse, size: 5, fill: stroke } };
      if (line.look === "dashes" || (line.look !== "dots" && line.color >= 8)) one.dash = [6, 4];
      if (line.look === "step") one.paths = uPlot.paths.stepped({ align: -1 });
      if (line.look === "area") Object.assign(one, {
        paths: uPlot.paths.stepped({ align: 1 }), fill: fade(stroke, 0.35), fillTo: 0, points: { show: false },
      });
      if (dots) Object.assign(one, {
        paths: () => null, points: { show: true, size: data.diagonal ? 5 : 8, width: line.look === "open dots" ? 2 : 0, stroke,
          fill: line.look === "open dots" ? css("--card") : data.diagonal ? fade(stroke, 0.45) : stroke },
      });
      if (haze) Object.assign(one, {
        label: "", class: "heard", paths: () => null, points: { show: true, size: 4, width: 0, stroke, fill: fade(stroke, 0.3) },
      });
      tables.push([line.x, line.y]);
      series.push(one);
    }
    const joined = tables.length === 1 ? tables[0] : uPlot.join(tables.length ? tables : [[[], []]]);
    const legend = el("div", "", element);
    const whole = (side) => (data.whole.includes(side) ? { incrs: [1, 2, 5].flatMap((n) => [...Array(9).keys()].map((k) => n * 10 ** k)).sort((a, b) => a - b) } : {});
    const u = new uPlot(options(element, 240, {
      sync: data.diagonal || data.logX ? "" : `${sync} ${data.x}`,
      given: {
        series, bands,
        scales: {
          x: { time: false, distr: data.logX ? 3 : 1, range: reach({ tight: !data.mark || !data.logX, log: data.logX, start: data.start ?? Infinity, low: joined[0][0] }) },
          y: { distr: data.logY ? 3 : 1, range: reach({ zero: data.zero, top: data.top, log: data.logY }) },
        },
        axes: [
          axis(data.x, data.logX ? { splits: decades(data.ticks, 44, "width"), filter: (u, splits) => splits } : { space: 60, ...whole("x") }),
          axis(undefined, data.logY ? { splits: decades([], 22, "height"), filter: (u, splits) => splits, size: widthOf } : { size: widthOf, space: 34, ...whole("y") }),
        ],
        legend: { show: data.lines.length + data.bands.length > 0, live: true, mount: (self, node) => legend.append(node), markers: {
          width: 0, fill: (self, i) => { const b = bands.find((one) => one.series[0] === i); return b ? b.fill : series[i].stroke; },
        } },
        hooks: { draw: [(self) => { if (data.mark != null) rule(self, data.mark, "--c5", []); if (data.diagonal) diagonal(self); }] },
      },
    }), joined, element);
    element.append(legend);
    if (data.lines.length + data.bands.length === 1) legend.firstChild?.classList.add("alone");
    return { u, read: (i) => [`${data.x} ${words(joined[0][i])}`, ...series.slice(1).map((s, k) => {
      const v = joined[k + 1][i];
      return v == null || !s.label ? "" : `${s.label} ${words(v)}`;
    })].filter(Boolean).join(", ") };
  }

  function clipped(u, draw) {
    const { ctx, bbox } = u;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    draw(ctx, uPlot.pxRatio, bbox);
    ctx.restore();
  }

  function rule(u, x, name, dashes) {
    clipped(u, (ctx, ratio, box) => {
      const at = u.valToPos(x, "x", true);
      ctx.strokeStyle = css(name);
      ctx.lineWidth = 1.5 * ratio;
      ctx.setLineDash(dashes.map((length) => length * ratio));
      ctx.beginPath();
      ctx.moveTo(at, box.top);
      ctx.lineTo(at, box.top + box.height);
      ctx.stroke();
    });
  }

  function diagonal(u) {
    clipped(u, (ctx, ratio) => {
      const end = Math.min(u.scales.x.max, u.scales.y.max);
      ctx.strokeStyle = css("--muted");
      ctx.lineWidth = ratio;
      ctx.setLineDash([4 * ratio, 4 * ratio]);
      ctx.beginPath();
      ctx.moveTo(u.valToPos(0, "x", true), u.valToPos(0, "y", true));
      ctx.lineTo(u.valToPos(end, "x", true), u.valToPos(end, "y", true));
      ctx.stroke();
    });
  }

  // ---- rows: spans, cells and dumbbells share an axis of rows, first row on top

  function rows(element, data, names, count, height, xs, kinds, className, draw, readout) {
    const least = (14 * count) / height;
    const every = [1, 2, 5, 10, 20, 50, 100, 200, 500].find((step) => step >= least) ?? 1000;
    const shown = [...Array(count).keys()].filter((i) => i % every === 0);
    const u = new uPlot(options(element, height + 44, {
      given: {
        height: height + 44,
        series: [{}, { show: true, points: { show: false }, stroke: "transparent" }],
        scales: { x: { time: false, range: reach({ tight: true }) }, y: { range: [-0.5, count - 0.5], dir: -1 } },
        axes: [
          axis(data.x, { space: 60 }),
          axis(undefined, { splits: () => shown, values: (self, splits) => splits.map(names), size: widthOf, grid: { show: false } }),
        ],
        legend: { show: false },
        hooks: {
          draw: [(self) => {
            clipped(self, (ctx, ratio) => draw(self, ctx, ratio));
            for (const at of data.lines ?? []) rule(self, at, "--ink", [5, 4]);
          }],
          setCursor: [(self) => {
            const { left, top } = self.cursor;
            told.textContent = left == null || left < 0 ? "" : readout(self.posToVal(left, "x"), Math.round(self.posToVal(top, "y")));
          }],
        },
        cursor: { drag: { x: true, y: false }, points: { show: false } },
      },
    }), [xs, xs.map(() => null)], element);
    const under = el("div", "under", element), list = el("ul", "legend", under), told = el("p", "readout", under, "");
    legend(list, kinds, className);
    return { u, read: null };
  }

  function legend(list, kinds, className) {
    for (const [label, stroke] of kinds) {
      const item = el("li", "", list);
      el("i", className, item).style.background = stroke;
      item.append(label);
    }
  }

  function spans(element, data) {
    const count = data.names.length, height = Math.max(60, Math.min(22 * count, 560));
    const colors = data.kinds.map(([, i]) => (i === 1 ? color(1) : color(i)));
    const flags = [["refused", css("--c5")], ["lost", css("--ink")]];
    const kinds = [...data.kinds.map(([name], i) => [name, colors[i]]), ...flags.filter((flag, i) => data.marks.some((mark) => mark[2] === i))];
    return rows(element, data, (i) => data.names[i], count, height, [0, data.end.reduce((a, b) => Math.max(a, b), 1e-9)], kinds, "",
      (u, ctx, ratio) => {
        const space = Math.abs(u.valToPos(1, "y", true) - u.valToPos(0, "y", true)), thick = Math.max(ratio, 0.68 * space);
        data.row.forEach((row, i) => {
          const left = u.valToPos(data.start[i], "x", true), right = u.valToPos(data.end[i], "x", true);
          const gap = right - left > 4 * ratio ? ratio : 0; // a slit between two rounds
          ctx.fillStyle = data.of[i] ? colors[data.of[i]] : fade(colors[0], 0.85);
          ctx.fillRect(left, u.valToPos(row, "y", true) - thick / 2, Math.max(right - left - gap, 0.5 * ratio), thick);
        });
        for (const [row, time, which] of data.marks) {
          ctx.fillStyle = flags[which][1];
          ctx.fillRect(u.valToPos(time, "x", true) - ratio, u.valToPos(row, "y", true) - 0.48 * space, 2 * ratio, 0.96 * space);
        }
      },
      (x, row) => {
        const i = data.row.findIndex((one, k) => one === row && data.start[k] <= x && x <= data.end[k]);
        const what = i < 0 ? "no round ended after this" : `${data.kinds[data.of[i]][0]} from ${words(data.start[i])} to ${words(data.end[i])} s`;
        return data.names[row] === undefined ? "" : `${data.names[row]}, ${words(x)} s: ${what}`;
      });
  }

  function raster(element, data) {
    const cells = Uint8Array.from(atob(data.cells), (letter) => letter.charCodeAt(0));
    const most = cells.reduce((a, b) => Math.max(a, b), 1);
    const picture = document.createElement("canvas");
    picture.width = data.columns;
    picture.height = data.rows;
    const ctx2 = picture.getContext("2d"), image = ctx2.createImageData(data.columns, data.rows);
    const full = parseInt(color(0).slice(1), 16);
    cells.forEach((value, i) => {
      const alpha = value ? 40 + 215 * Math.sqrt(value / most) : 0;
      image.data.set([full >> 16, (full >> 8) & 255, full & 255, alpha], 4 * i);
    });
    ctx2.putImageData(image, 0, 0);
    const height = Math.max(120, Math.min(data.rows, 520)), name = (i) => words(i * data.perRow);
    const shade = (value) => fade(color(0), value ? (40 + 215 * Math.sqrt(value / most)) / 255 : 0);
    const kinds = [[`1 of the ${data.of}`, shade(1)], [`${most === 255 ? "255 or more" : most} ${data.of}`, shade(most)]];
    return rows(element, data, name, data.rows, height, [data.start, data.end], kinds, "",
      (u, ctx) => {
        const left = u.valToPos(data.start, "x", true), right = u.valToPos(data.end, "x", true);
        const top = u.valToPos(-0.5, "y", true), bottom = u.valToPos(data.rows - 0.5, "y", true);
        ctx.imageSmoothingEnabled = data.rows > bottom - top;
        ctx.drawImage(picture, left, top, right - left, bottom - top);
      },
      (x, row) => {
        const wide = (data.end - data.start) / data.columns, column = Math.floor((x - data.start) / wide);
        if (row < 0 || row >= data.rows || column < 0 || column >= data.columns) return "";
        const who = data.perRow > 1 ? `clients ${row * data.perRow} to ${(row + 1) * data.perRow - 1}` : `client ${row}`;
        const value = cells[row * data.columns + column];
        return `${who}, ${words(data.start + column * wide)} to ${words(data.start + (column + 1) * wide)} s: ${value === 255 ? "255 or more" : value} ${data.of}`;
      });
  }

  function dumbbells(element, data) {
    const count = data.names.length, most = Math.max(1e-9, ...data.dots.flatMap((dot) => dot.x));
    const kinds = data.dots.map((dot) => [dot.label, color(dot.color)]);
    return rows(element, data, (i) => data.names[i], count, Math.max(60, 24 * count), [0, most * 1.04], kinds, "dot",
      (u, ctx, ratio) => {
        for (let row = 0; row < count; row++) {
          const y = u.valToPos(row, "y", true), xs = data.dots.map((dot) => u.valToPos(dot.x[row], "x", true));
          ctx.strokeStyle = css("--faint");
          ctx.lineWidth = 3 * ratio;
          ctx.beginPath();
          ctx.moveTo(Math.min(...xs), y);
          ctx.lineTo(Math.max(...xs), y);
          ctx.stroke();
          data.dots.forEach((dot, i) => {
            ctx.fillStyle = color(dot.color);
            ctx.strokeStyle = css("--card");
            ctx.lineWidth = 1.5 * ratio;
            ctx.beginPath();
            ctx.arc(xs[i], y, 5.5 * ratio, 0, 2 * Math.PI);
            ctx.fill();
            ctx.stroke();
          });
        }
      },
      (x, row) => (data.names[row] === undefined ? "" : `${data.names[row]}: ${data.dots.map((dot) => `${dot.label} ${words(dot.x[row])} %`).join(", ")}`));
  }

  // ---- drawing, and drawing anew

  const KINDS = { chart, spans, raster, dumbbells };
  const heard = el("div", "heard", document.body, "");
  heard.setAttribute("aria-live", "polite");

  function draw(element) {
    const data = JSON.parse(document.getElementById(element.dataset.from).textContent);
    charts.get(element)?.u.destroy();
    element.replaceChildren();
    charts.set(element, KINDS[data.kind](element, data, element.dataset.sync));
    element.dataset.drawn = data.kind;
  }

  function again() {
    for (const element of charts.keys()) if (element.clientWidth) draw(element);
  }

  const seen = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting && target.clientWidth && !charts.has(target)) draw(target);
    }
  }, { rootMargin: "600px" });
  const sized = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const u = charts.get(target)?.u;
      if (u && target.clientWidth && u.width !== target.clientWidth) draw(target);
    }
  });
  const all = [...document.querySelectorAll(".chart")];
  for (const element of all) {
    seen.observe(element);
    sized.observe(element);
    element.addEventListener("keydown", (event) => steer(element, event));
  }

  function steer(element, event) {
    const { u, read } = charts.get(element) ?? {};
    if (!u || event.ctrlKey || event.metaKey || event.altKey) return;
    const { min, max } = u.scales.x, ends = [u.data[0][0], u.data[0].at(-1)], log = u.scales.x.distr === 3;
    const middle = u.cursor.idx == null ? (min + max) / 2 : u.data[0][u.cursor.idx];
    const to = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (to !== undefined && read) {
      const now = u.cursor.idx ?? (to > 0 ? -1 : u.data[0].length);
      const i = Math.max(0, Math.min(u.data[0].length - 1, now + to * (event.shiftKey ? 10 : 1)));
      const ys = u.series.map((s, k) => (k && s.label ? u.data[k][i] : null)).filter((v) => v != null);
      u.setCursor({ left: u.valToPos(u.data[0][i], "x"), top: ys.length ? u.valToPos(ys.at(-1), "y") : 10 });
      u.setLegend({ idx: i });
      heard.textContent = read(i);
    } else if (to !== undefined) {
      const left = Math.max(0, Math.min(u.bbox.width / uPlot.pxRatio, (u.cursor.left > 0 ? u.cursor.left : 0) + 8 * to));
      u.setCursor({ left, top: u.cursor.top > 0 ? u.cursor.top : 10 });
      heard.textContent = element.querySelector(".readout")?.textContent ?? "";
    } else if ((event.key === "ArrowUp" || event.key === "ArrowDown") && !read) {
      const row = Math.abs(u.valToPos(1, "y") - u.valToPos(0, "y"));
      u.setCursor({ left: Math.max(u.cursor.left, 1), top: Math.max(1, (u.cursor.top > 0 ? u.cursor.top : 0) + (event.key === "ArrowUp" ? -row : row)) });
      heard.textContent = element.querySelector(".readout")?.textContent ?? "";
    } else if ("+=-".includes(event.key) && !log) {
      const half = ((max - min) / 2) * (event.key === "-" ? 1.6 : 0.6);
      u.setScale("x", { min: Math.max(ends[0], middle - half), max: Math.min(ends[1], middle + half) });
    } else if (event.key === "0") {
      u.setScale("x", { min: ends[0], max: ends[1] });
    } else return;
    event.preventDefault();
  }

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);

  // On paper every chart is drawn, in the width of the paper and in light colours. Folded runs are unfolded for it.
  let folded = [];
  function paper(on) {
    if (on === root.classList.contains("printing")) return;
    root.classList.toggle("printing", on);
    if (on) folded = [...document.querySelectorAll(".one > details:not([open])")];
    for (const one of folded) one.open = on;
    for (const element of all) if (element.clientWidth && (on || charts.has(element))) draw(element);
  }
  addEventListener("beforeprint", () => paper(true));
  addEventListener("afterprint", () => paper(false));
  matchMedia("print").addEventListener("change", (event) => paper(event.matches));
})();
