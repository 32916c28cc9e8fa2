"use strict";

// One method lights up everywhere when it is pointed at in the plots or in the table.
const light = (method, on) => {
  for (const e of document.querySelectorAll("[data-method]"))
    if (e.dataset.method === method) e.classList.toggle("lit", on);
};
for (const e of document.querySelectorAll("[data-method]")) {
  e.addEventListener("mouseenter", () => light(e.dataset.method, true));
  e.addEventListener("mouseleave", () => light(e.dataset.method, false));
}

// Sort the table by a column; the untouched model stays first.
document.querySelectorAll("#rows th.sort").forEach((head, column) => {
  let down = false;
  head.addEventListener("click", () => {
    down = !down;
    const body = document.querySelector("#rows tbody");
    const value = (tr) => {
      const v = tr.children[column].dataset.value;
      return v === undefined || v === "" ? null : isNaN(v) ? v : Number(v);
    };
    const order = (a, b) => {
      if (a.classList.contains("full") !== b.classList.contains("full")) return a.classList.contains("full") ? -1 : 1;
      const [x, y] = [value(a), value(b)];
      if (x === null || y === null) return (x === null) - (y === null);
      return (x < y ? -1 : x > y ? 1 : 0) * (down ? -1 : 1);
    };
    body.replaceChildren(...[...body.children].sort(order));
  });
});
