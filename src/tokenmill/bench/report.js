const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

// Which task the heat map shows.
byId("heat-task").addEventListener("change", (event) => {
  for (const e of document.querySelectorAll(".heat")) e.hidden = e.dataset.task !== event.target.value;
});

// What a method kept: bits, layer by layer, head by head, token by token.
const { tokens, kept } = data;
const unpack = (row) => {
  const raw = atob(row.bits);
  return (layer, head, token) => {
    const at = (layer * row.heads + head) * row.tokens + token;
    return (raw.charCodeAt(at >> 3) >> (at & 7)) & 1;
  };
};
const spec = byId("kept-spec"), layer = byId("kept-layer"), head = byId("kept-head"), every = byId("kept-all");
const map = byId("kept-map"), text = byId("text");
const spans = tokens.map((token) => {
  const span = document.createElement("span");
  span.textContent = token;
  text.append(span);
  return span;
});

const draw = () => {
  const row = kept[spec.value];
  if (!row) return;
  const bit = unpack(row);
  const heads = head.value === "all" ? [...Array(row.heads).keys()] : [Number(head.value)];
  const share = (l, t) => heads.reduce((sum, h) => sum + bit(l, h, t), 0) / heads.length;
  const layers = every.checked ? [...Array(row.layers).keys()] : [Number(layer.value)];
  layer.disabled = every.checked;
  const colour = getComputedStyle(document.documentElement).getPropertyValue("--kept");
  let held = 0;
  spans.forEach((span, t) => {
    const value = layers.reduce((sum, l) => sum + share(l, t), 0) / layers.length;
    held += value;
    span.style.background = value ? `rgba(${colour},${(0.08 + 0.55 * value).toFixed(3)})` : "";
    span.className = value ? "" : "gone";
    span.title = `token ${t}: held by ${Math.round(100 * value)} % of the ${every.checked ? "layers and heads" : "heads"} shown`;
  });
  byId("kept-where").textContent = every.checked ? `all ${row.layers} layers` : `layer ${layer.value}`;
  byId("kept-count").textContent = `${(held).toFixed(held % 1 ? 1 : 0)} of ${tokens.length} tokens held a head`;
  map.width = tokens.length; map.height = row.layers;
  const pen = map.getContext("2d");
  for (let l = 0; l < row.layers; l++)
    for (let t = 0; t < tokens.length; t++) {
      const value = share(l, t);
      if (!value) continue;
      pen.fillStyle = `rgba(${colour},${value * (every.checked || l === Number(layer.value) ? 1 : 0.35)})`;
      pen.fillRect(t, l, 1, 1);
    }
};
const choose = () => {
  const row = kept[spec.value];
  if (!row) return;
  layer.max = row.layers - 1;
  const before = head.value;
  head.replaceChildren(new Option("all heads", "all"), ...[...Array(row.heads).keys()].map((h) => new Option(`head ${h}`, h)));
  head.value = [...head.options].some((o) => o.value === before) ? before : "all";
  draw();
};
spec.addEventListener("change", choose);
for (const e of [layer, head, every]) e.addEventListener("input", draw);
map.addEventListener("click", (event) => {
  const row = kept[spec.value], box = map.getBoundingClientRect();
  every.checked = false;
  layer.value = Math.min(row.layers - 1, Math.floor(((event.clientY - box.top) / box.height) * row.layers));
  draw();
});
choose();
document.documentElement.dataset.ready = "yes";
