const data = JSON.parse(document.getElementById("data").textContent), at = id => document.getElementById(id);
const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer;
const bench = env => {
  const mask = new Float32Array(bytes(env.mask)), help = new Float32Array(bytes(env.help));
  const harm = new Float32Array(bytes(env.harm)), close = new Float32Array(bytes(env.close));
  return { n: env.n, count: help.length / env.n, mask, help, harm, safe: harm.map(p => 1 - p), close,
    always: new Uint8Array(bytes(env.always)) };
};
const test = bench(data.bench), told = bench(data.told);

const allowed = (env, s, tau) => {
  const from = s * env.n, out = new Array(env.n).fill(false), limit = Math.fround(tau);
  let any = false, least = 0;
  for (let j = 0; j < env.n; j++) {
    out[j] = env.mask[from + j] < limit || env.always[from + j] === 1;
    any ||= out[j];
    if (env.mask[from + j] < env.mask[from + least]) least = j;
  }
  if (!any) out[least] = true;
  return out;
};
const logSoftmax = logits => {
  const top = Math.max(...logits), sum = logits.reduce((total, x) => total + Math.exp(x - top), 0);
  return logits.map(x => x - top - Math.log(sum));
};
const policy = (env, s, set, free) => {
  const from = s * env.n;
  const start = logSoftmax(free.map((ok, j) => ok ? set.kappa * env.close[from + j] : -1e9));
  const value = j => set.alpha * env.help[from + j] + (1 - set.alpha) * env.safe[from + j];
  return { start, now: logSoftmax(start.map((x, j) => x + set.strength * value(j))) };
};
const averages = (env, set) => {
  const sum = { help: 0, harm: 0, kl: 0 };
  for (let s = 0; s < env.count; s++) {
    const { start, now } = policy(env, s, set, allowed(env, s, set.tau));
    now.forEach((x, j) => {
      const p = Math.exp(x);
      sum.help += p * env.help[s * env.n + j];
      sum.harm += p * env.harm[s * env.n + j];
      sum.kl += p ? p * (x - start[j]) : 0;
    });
  }
  const mean = Object.fromEntries(Object.entries(sum).map(([name, x]) => [name, x / env.count]));
  return { ...mean, reward: (mean.help + 1 - mean.harm) / 2 };
};
const front = (env, tau) => {
  const edges = [];
  let harm = 0, help = 0;
  for (let s = 0; s < env.count; s++) {
    const from = s * env.n, free = allowed(env, s, tau);
    const own = free.flatMap((ok, j) => ok ? [[env.harm[from + j], env.help[from + j]]] : []);
    let here = own.reduce((a, b) => b[0] < a[0] || (b[0] === a[0] && b[1] > a[1]) ? b : a);
    harm += here[0]; help += here[1];
    for (;;) {
      let next = null, steepest = 0;
      for (const to of own) {
        const run = to[0] - here[0], rise = to[1] - here[1];
        if (run <= 0 || rise <= 0) continue;
        const slope = rise / run;
        if (slope > steepest * (1 + 1e-12) || (slope >= steepest * (1 - 1e-12) && run > next[0] - here[0])) {
          next = to; steepest = Math.max(slope, steepest);
        }
      }
      if (!next) break;
      edges.push([next[0] - here[0], next[1] - here[1]]);
      here = next;
    }
  }
  edges.sort((a, b) => b[1] / b[0] - a[1] / a[0]);
  const corners = [[harm / env.count, help / env.count]];
  for (const [run, rise] of edges) corners.push([(harm += run) / env.count, (help += rise) / env.count]);
  return { corners, slopes: [Infinity, ...edges.map(([run, rise]) => rise / run)] };
};
const helpAt = (corners, harm) => {
  if (harm < corners[0][0]) return NaN;
  const right = corners.findIndex(c => c[0] > harm);
  if (right < 0) return corners.at(-1)[1];
  const [a, b] = [corners[right - 1], corners[right]];
  return a[1] + (harm - a[0]) / (b[0] - a[0]) * (b[1] - a[1]);
};

const settings = () => ({ alpha: +at("alpha").value, tau: +at("tau").value, kappa: +at("kappa").value,
  strength: at("strength").value ** 2 / 50 });
const W = 480, H = 360, left = 46, low = 40, most = .45;
const x = harm => left + harm / most * (W - left - 12), y = help => H - low - help * (H - low - 12);
const add = (name, attributes, text = "") => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
  made.textContent = text;
  return at("front").appendChild(made);
};
const line = corners => {
  let last = [-9, -9];
  const kept = corners.map(([a, b]) => [x(a), y(b)]).filter((p, i) => {
    const keep = i === corners.length - 1 || Math.hypot(p[0] - last[0], p[1] - last[1]) > .7;
    if (keep) last = p;
    return keep;
  });
  return "M" + kept.map(p => p.map(v => v.toFixed(1)).join(" ")).join("L");
};
add("path", { class: "axis", d: `M${left} 12V${H - low}H${W - 12}` });
[0, .1, .2, .3, .4].forEach(v => add("text", { x: x(v), y: H - low + 18, "text-anchor": "middle" }, v));
[0, .2, .4, .6, .8, 1].forEach(v => add("text", { x: left - 8, y: y(v) + 4, "text-anchor": "end" }, v));
add("text", { x: W - 12, y: H - 4, "text-anchor": "end" }, "harm: average p_harm →");
add("text", { x: left + 8, y: 22 }, "↑ help");
add("path", { class: "all", d: line(front(test, 1).corners) });
const best = add("path", { class: "best" });
data.marks.forEach(mark => {
  const dot = add("circle", { class: "mark", cx: x(mark.harm), cy: y(mark.help), r: 3.5 });
  dot.appendChild(document.createElementNS("http://www.w3.org/2000/svg", "title")).textContent = mark.name;
});
const ring = add("circle", { class: "ring", r: 9 }), now = add("circle", { class: "now", r: 6 });

const fixed = (number, digits = 3) => {
  const shown = number.toFixed(digits);
  return shown.replace("-", Number(shown) === 0 ? "" : "\u2212");
};
const speak = set => {
  const said = { alpha: `${fixed(100 * set.alpha, 0)} % help`, tau: fixed(set.tau, 2), kappa: fixed(set.kappa, 0),
    strength: fixed(set.strength, 1) };
  Object.entries(said).forEach(([id, text]) => { at(`${id}-is`).value = text; at(id).setAttribute("aria-valuetext", text); });
};
const tell = set => {
  const s = at("dialogue").selectedIndex, free = allowed(told, s, set.tau), p = policy(told, s, set, free).now.map(Math.exp);
  const top = p.indexOf(Math.max(...p)), { query, replies } = data.dialogues[s];
  at("query").textContent = `“${query}”`;
  at("replies").replaceChildren(...replies.map((reply, j) => {
    const item = document.createElement("li"), said = document.createElement("p"), note = document.createElement("small");
    const bar = document.createElement("div");
    item.className = `${j === top ? "chosen" : ""} ${free[j] ? "" : "forbidden"}`;
    said.textContent = reply;
    note.textContent = `${free[j] ? `${fixed(100 * p[j], 1)} %` : "forbidden"} · help ${
      fixed(told.help[s * told.n + j], 2)} · harm ${fixed(told.harm[s * told.n + j], 2)}${j === top ? " · chosen" : ""}`;
    bar.className = "bar"; bar.style.width = `${100 * p[j]}%`;
    item.append(said, note, bar);
    return item;
  }));
};
let later, waiting = false, exact = {};
const show = () => {
  waiting = false;
  const set = settings(), mean = averages(test, set), { corners, slopes } = front(test, set.tau);
  const price = set.alpha ? (1 - set.alpha) / set.alpha : Infinity;
  const top = corners[slopes.findLastIndex(slope => slope > price || slope === Infinity)];
  exact = { ...mean, missing: helpAt(corners, mean.harm) - mean.help };
  Object.entries(exact).forEach(([id, value]) => { at(id).textContent = fixed(value); at(id).dataset.exact = value; });
  best.setAttribute("d", line(corners));
  [[now, mean.harm, mean.help], [ring, ...top]].forEach(([dot, a, b]) => {
    dot.setAttribute("cx", x(a)); dot.setAttribute("cy", y(b)); });
  speak(set); tell(set);
  clearTimeout(later);
  later = setTimeout(() => { at("said").textContent = `Help ${fixed(mean.help)}, harm ${fixed(mean.harm)}, ` +
    `average reward ${fixed(mean.reward)}; the best policy of the same harm helps ${fixed(exact.missing)} more.`; }, 400);
};
at("dialogue").append(...data.dialogues.map(d => new Option(`${d.topic}: ${d.query}`)));
const soon = () => { if (!waiting) { waiting = true; requestAnimationFrame(show); } };
at("controls").addEventListener("input", soon);
at("dialogue").addEventListener("change", soon);
show();
